"""PID 1 of a shard's container, with a shard that ends at once."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from fencekv.leases import Session, new_session_lease
from fencekv_shard.__main__ import STATUS_BAD_CONFIGURATION
from fencekv_shard.supervisor import Api, Supervisor

Object = dict[str, Any]


class Leases:
    """An API server that has the session Lease of whoever was started last."""

    def __init__(self, termination_log: Path, told: list[str]) -> None:
        self._log, self._told = termination_log, told

    def get(self, name: str) -> tuple[int, Object]:
        lease = new_session_lease(
            session=Session.parse(self._log.read_text()),
            kvns="sample",
            namespace="default",
            valid_seconds=3,
            renewal=1,
            http="127.0.0.1:7070",
            peer="127.0.0.1:7071",
            unix_seconds=1.0,
        )
        lease["metadata"].update(uid="1", resourceVersion="1")
        return 200, lease

    def put(self, lease: Object) -> tuple[int, Object]:
        self._told.append("released")
        return 200, lease


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_what_others_wait_for_is_done_before_the_next_process_is_begun(tmp_path: Path) -> None:
    """The release lets another shard take over; to start a process takes the time of a core that it needs."""
    told: list[str] = []
    log = tmp_path / "termination-log"

    def rest() -> None:
        told.append("rest")
        os.kill(os.getpid(), signal.SIGTERM)

    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith("FENCEKV_")},
        "FENCEKV_POD": "sample-0",
        "FENCEKV_POD_UID": "uid",
        "FENCEKV_TERMINATION_LOG": str(log),
        "FENCEKV_SERVICEACCOUNT": str(tmp_path / "none"),
    }
    supervisor = Supervisor(
        api=cast("Api", Leases(log, told)),
        environment=environment,
        new_nonce=lambda: secrets.token_hex(8),
        pause=lambda: told.append("pause"),
        rest=rest,
    )
    assert supervisor.run() == STATUS_BAD_CONFIGURATION
    assert told == ["released", "rest"]
