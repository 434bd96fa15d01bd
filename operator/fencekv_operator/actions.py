"""What the reconciler can do to the cluster. Values only: `plan` makes them, `reconcile` carries them out.

Invariants:
  * Every action is idempotent, or refused by the server if what it was planned on has changed since.
  * Whatever destroys names what it destroys by UID, or asks the server anew before it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fencekv.kube import Resource
from fencekv_operator.events import Notice
from fencekv_operator.rollout import Restart

Object = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """Make an object."""

    resource: Resource
    namespace: str
    body: Object


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Merge a patch into an object; with the resourceVersion that was seen it is a compare-and-swap."""

    resource: Resource
    namespace: str
    name: str
    patch: Object


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete that very object."""

    resource: Resource
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteAll:
    """Delete all objects with these labels, read by quorum."""

    resource: Resource
    namespace: str
    labels: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteOrphan:
    """Delete an object if a quorum read shows that its owner is gone, as a garbage collector does."""

    resource: Resource
    namespace: str
    name: str
    uid: str
    owner_resource: Resource
    owner_name: str
    owner_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPod:
    """Delete a shard pod gracefully, if quorum reads show that it still is the time to."""

    namespace: str
    kvns: str
    restart: Restart
    notice: Notice  # to be posted if it was deleted


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeLease:
    """Make the record of a partition that was never granted; one of an earlier namesake gives way to it."""

    partition: Object


@dataclass(frozen=True, slots=True, kw_only=True)
class DropLease:
    """Delete the ownership record of a partition if a quorum read shows that the partition is gone."""

    namespace: str
    partition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchStatus:
    """Merge a patch into an object's status."""

    resource: Resource
    namespace: str
    name: str
    status: Object


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit:
    """Post an Event."""

    notice: Notice


Action = (
    Create | Update | Delete | DeleteAll | DeleteOrphan | RestartPod | MakeLease | DropLease | PatchStatus | Emit
)
