"""Entry of a shard's container: `fencekv-shard` supervises, `fencekv-shard serve` serves.

The composition root: clocks, chance, threads, sockets and signals are made here and handed down.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
import time  # noqa: TID251 - the composition root
from collections.abc import Callable, Mapping, Sequence

logger = logging.getLogger("fencekv_shard")

STATUS_SESSION_OVER = 70
STATUS_COMMIT_FAILED = 74
STATUS_BAD_CONFIGURATION = 78


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the supervisor, or with `serve` the shard."""
    chosen = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(
        level=os.environ.get("FENCEKV_LOG_LEVEL", "INFO"),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    if chosen == ["serve"]:
        sys.exit(_serve(os.environ))
    if chosen:
        sys.stderr.write("usage: fencekv-shard [serve]\n")
        sys.exit(2)
    sys.exit(_supervise(os.environ))


def _supervise(environment: Mapping[str, str]) -> int:
    from fencekv.access import NoAccess  # noqa: PLC0415
    from fencekv_shard.supervisor import (  # noqa: PLC0415 - keeps PID 1 small
        RELEASE_PAUSE_SECONDS,
        REST_SECONDS,
        LeaseApi,
        Supervisor,
        check_alone,
    )

    check_alone(environment, os.getpid())
    try:
        api = LeaseApi(environment)
    except (NoAccess, OSError) as error:
        logger.error("%s", error)
        return STATUS_BAD_CONFIGURATION
    supervisor = Supervisor(
        api=api,
        environment=environment,
        new_nonce=lambda: secrets.token_hex(8),
        pause=lambda: time.sleep(RELEASE_PAUSE_SECONDS),
        rest=lambda: time.sleep(REST_SECONDS),
    )
    return supervisor.run()


def _serve(environment: Mapping[str, str]) -> int:
    from fencekv_shard.serve import BadConfiguration, serve  # noqa: PLC0415
    from fencekv_shard.session import SessionOver  # noqa: PLC0415

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve(environment, on_fatal=_commit_failed))
    except BadConfiguration as error:
        logger.error("%s", error)
        return STATUS_BAD_CONFIGURATION
    except SessionOver as error:
        logger.error("session over: %s", error)
        return STATUS_SESSION_OVER
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where there is one; everything works without it, slower."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return None
    return uvloop.new_event_loop


def _commit_failed(error: BaseException) -> None:
    """A failed commit says nothing certain about the disk: end at once, without another write."""
    sys.stderr.write(f"commit failed: {error}\n")
    sys.stderr.flush()
    os._exit(STATUS_COMMIT_FAILED)


if __name__ == "__main__":
    main()
