"""When a replica that was moved away may go: only where the record proves that others hold everything."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fencekv.leases import PartitionLease, Session
from fencekv.partitioning import HashPartitioning
from fencekv_shard.api import Durability
from fencekv_shard.leaving import Held, may_leave
from fencekv_shard.spec import PartitionSpec

POD = "s-3"

SPEC = PartitionSpec(
    uid="u-1",
    name="orders-0",
    table="orders",
    index=0,
    partitioning=HashPartitioning(1),
    durability=Durability.REPLICATED,
    min_in_sync=1,
    unshipped_seconds_max=1.0,
    replicas=("s-0", "s-1", "s-2"),
    value_bytes_max=1024,
    key_pattern="",
    history_seconds=0.0,
    keep_data=True,
)
LEASE = PartitionLease(
    name="partition-orders-0",
    uid="l",
    resource_version="9",
    partition_uid="u-1",
    session=Session("s-0", "uid", "0000000000000001"),
    epoch=4,
    in_sync=("s-0/a", "s-1/b", "s-2/c"),
    set_version=7,
    owner_http="",
    owner_peer="",
    released="",
    release_target="",
    alone_since=None,
    accepted_loss=None,
)
HELD = Held(
    spec=SPEC, lease=LEASE, known_epoch=4, set_version=6, members=("s-0/a", "s-1/b", "s-3/d"), suspect=False
)
PLACED_HERE = replace(SPEC, replicas=("s-0", POD))

CASES = [
    ("moved away, and the set says so", HELD, True),
    ("learnt that it is no member", replace(HELD, set_version=7, members=("s-0/a", "s-1/b")), True),
    ("placed here again", replace(HELD, spec=PLACED_HERE), False),
    ("no record was seen", replace(HELD, lease=None), False),
    ("still a member", replace(HELD, lease=replace(LEASE, in_sync=("s-0/a", "s-1/b", "s-3/d"))), False),
    ("owns it", replace(HELD, lease=replace(LEASE, session=Session(POD, "u", "2"))), False),
    ("never granted", replace(HELD, lease=replace(LEASE, session=None)), False),
    ("released, and not granted yet", replace(HELD, lease=replace(LEASE, released="4.9")), False),
    ("too few members", replace(HELD, lease=replace(LEASE, in_sync=("s-0/a",))), False),
    ("another partition's record", replace(HELD, lease=replace(LEASE, partition_uid="u-0")), False),
    ("a record of an older epoch, put back", replace(HELD, known_epoch=5), False),
    ("a record of an older set, put back", replace(HELD, set_version=8, members=("s-0/a",)), False),
    ("the very set that it is a member of, said otherwise", replace(HELD, set_version=7), False),
    ("the record is doubted here", replace(HELD, suspect=True), False),
]


@pytest.mark.parametrize(("what", "held", "wanted"), CASES, ids=[case[0].replace(" ", "-") for case in CASES])
def test_may_leave(what: str, held: Held, wanted: bool) -> None:
    assert may_leave(POD, held) is wanted
