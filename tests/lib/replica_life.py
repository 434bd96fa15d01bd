"""A replica beside its model, as state machines drive it: what all of them do."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from storage import UID, Holding, Model, ids, owner

from fencekv_shard.journal import Entry, in_sync_entry
from fencekv_shard.replica import Replica

T = TypeVar("T")


class ReplicaLife(RuleBasedStateMachine):
    """A replica on disk and its model. `small`: limits that are met at once, (module, name, value)."""

    small: ClassVar[Sequence[tuple[Any, str, int]]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="replica-"))
        self.new_id = ids()
        self.patches = [mock.patch.object(*limit) for limit in self.small]
        for patch in self.patches:
            patch.start()
        self.model = Model()
        self.epoch = 1
        self.executor = Holding()
        self.replica = self.open()

    def run(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 10))

    def open(self) -> Replica:
        return self.run(Replica.open(self.folder, UID, executor=self.executor, new_id=self.new_id))

    def take_own(self, entries: list[Entry]) -> None:
        """Appends as the owner does."""
        self.run(self.replica.append_own(entries, epoch=self.epoch))
        self.model.entries += entries

    @initialize()
    def begin(self) -> None:
        self.run(self.replica.promise(1))
        self.take_own([owner(0, epoch=1)])

    @rule(set_version=st.integers(1, 99), members=st.sets(st.sampled_from(["a/1", "b/2", "c/3"])))
    def change_set(self, set_version: int, members: set[str]) -> None:
        at = len(self.model.entries)
        entry = in_sync_entry(seq=at, txid=at, epoch=self.epoch, unix_ns=0, version=set_version, members=members)
        self.take_own([entry])

    @rule()
    def grant(self) -> None:
        last = self.replica.last
        self.epoch += 1
        self.run(self.replica.promise(self.epoch))
        previous = (last.epoch, last.seq, last.txid)
        self.take_own([owner(last.seq + 1, epoch=self.epoch, previous=previous, chain=self.replica.chain)])

    def check_whole(self) -> None:
        """Asserts at the end of a life that the whole replica equals its model."""
        raise AssertionError("a life says what equals what")

    def teardown(self) -> None:
        try:
            self.run(self.replica.verify())
            self.check_whole()
            self.run(self.replica.close())
        finally:
            for patch in self.patches:
                patch.stop()
            self.loop.close()
            shutil.rmtree(self.folder)
