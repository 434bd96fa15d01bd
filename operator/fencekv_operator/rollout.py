"""How the shard pods come to a new template, and their number to what is wanted. Decided purely.

The StatefulSet's own controller knows nothing of in-sync sets, so it is told to update a pod only when that pod is
deleted, and this module says which one is to be deleted next. A pod that is deleted gracefully gives away what it
owns before it ends.

Invariants:
  * One pod at a time: none is restarted while another one is missing, leaves, or is not ready, but for a pod that
    is itself not ready and so takes nothing away.
  * No pod that is ready is restarted unless every partition is in sync on all of its other pods. Whoever carries
    it out asks the server once more (`Restart.in_sync`), because statuses lag behind.
  * The pool shrinks by one pod at a time, and never by one that a partition needs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from fencekv_operator.placement import Placed
from fencekv_operator.settings import ordinal_of

Object = dict[str, Any]

REVISION: Final = "controller-revision-hash"
# What a container waits for that time alone does not bring: the template or the cluster has to change.
HOPELESS: Final = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "CrashLoopBackOff",
    }
)
MESSAGE_CHARACTERS_MAX: Final = 200
PARTITIONS_SHOWN_MAX: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard pod as it was last seen."""

    pod: str
    uid: str
    revision: str
    leaving: bool
    ready: bool
    trouble: str  # why it is not ready, for people; empty: it is
    hopeless: bool  # it will not be ready by itself

    @classmethod
    def parse(cls, pod: Mapping[str, Any]) -> Self:
        """Reads a pod, whole or as the cache keeps it."""
        meta, status = pod["metadata"], pod.get("status") or {}
        leaving = "deletionTimestamp" in meta
        conditions = {each["type"]: each for each in status.get("conditions") or ()}
        ready = (conditions.get("Ready") or {}).get("status") == "True" and not leaving
        reason, message = _waiting(status)
        trouble = ""
        if leaving:
            trouble = (
                f"leaves since {meta['deletionTimestamp']}; if its node is gone, it leaves when the node does"
            )
        elif not ready:
            trouble = f"{reason}: {message}" if message else reason or _unscheduled(conditions) or "not ready yet"
        return cls(
            pod=meta["name"],
            uid=meta["uid"],
            revision=(meta.get("labels") or {}).get(REVISION, ""),
            leaving=leaving,
            ready=ready,
            trouble=trouble[:MESSAGE_CHARACTERS_MAX],
            hopeless=reason in HOPELESS and not leaving,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """Delete this pod, if it still is as it was seen, and if these pods still are in sync."""

    shard: Shard
    in_sync: Mapping[str, frozenset[str]]  # by partition: the pods that must be in sync; empty: none must be


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How far a template has come."""

    updated: int
    wanted: int
    restart: Restart | None  # None: it is not time, or all is done
    waits: str  # what the next step waits for, for people; empty: nothing

    @property
    def done(self) -> bool:
        """Whether every pod that is wanted has the newest template."""
        return self.updated == self.wanted

    @property
    def message(self) -> str:
        """How things stand, for people; empty: done."""
        if self.done:
            return ""
        what = self.waits and f"; waits for {self.waits}"
        if self.restart is not None:
            what = f"; restarts {self.restart.shard.pod}"
        return f"{self.updated} of {self.wanted} shards updated{what}"


def rollout(
    *, revision: str, pods: Sequence[str], shards: Mapping[str, Shard], partitions: Mapping[str, Placed]
) -> Rollout:
    """The next step towards `revision`.

    Args:
        revision: of the newest template; empty: it is not known yet.
        pods: names of the wanted pods, by ordinal.
        shards: every pod there is, also those above the wanted number.
        partitions: where each partition is, by name.
    """
    there = [shards[pod] for pod in pods if pod in shards]
    outdated = [shard for shard in there if shard.revision != revision] if revision else []
    updated = len(pods) - len(outdated)
    if not outdated:
        return Rollout(updated=len(pods), wanted=len(pods), restart=None, waits="")
    # Those not ready go first, and the highest ordinal, as people know it from a StatefulSet.
    chosen = min(outdated, key=lambda shard: (shard.ready, -ordinal_of(shard.pod)))
    busy = _busy(chosen, pods, shards, revision)
    behind = _behind(chosen.pod, partitions) if chosen.ready else ""
    waits = busy or behind
    needed: dict[str, frozenset[str]] = {}
    if chosen.ready:
        needed = {name: frozenset(each.replicas) - {chosen.pod} for name, each in partitions.items()}
    restart = None if waits else Restart(shard=chosen, in_sync=needed)
    return Rollout(updated=updated, wanted=len(pods), restart=restart, waits=waits)


def needed_pods(
    *, wanted: int, there: int, shards: Collection[str], partitions: Mapping[str, Placed]
) -> tuple[int, str]:
    """How many pods the pool shall have now, and what shrinking it further waits for (empty: nothing).

    Args:
        wanted: how many are asked for.
        there: how many the StatefulSet was last told to have.
        shards: names of the pods that exist.
        partitions: where each partition is, by name.
    """
    if there <= wanted:
        return wanted, ""
    last = there - 1
    held = [
        name
        for name, each in sorted(partitions.items())
        if any(ordinal_of(pod) == last for pod in {*each.replicas, *each.in_sync, each.owner} - {""})
    ]
    if held:
        return there, f"{_some(held)} to be moved away"
    if len(shards) != there:
        return there, "an earlier shard to start or to leave"
    return last, ""


def _busy(chosen: Shard, pods: Sequence[str], shards: Mapping[str, Shard], revision: str) -> str:
    """Which other pod has to be up first; empty: none."""
    for pod in sorted({*pods, *shards}, key=ordinal_of, reverse=True):
        shard = shards.get(pod)
        if shard is None:
            return f"{pod} to be created"
        if shard.leaving or (shard.pod != chosen.pod and not shard.ready):
            if not chosen.ready and not shard.leaving and shard.revision != revision:
                continue  # Both are down, and both wait for the new template.
            return f"{pod}: {shard.trouble}"
    return ""


def _behind(chosen: str, partitions: Mapping[str, Placed]) -> str:
    """Which partitions are not whole without the chosen pod; empty: none."""
    names = [
        name for name, each in sorted(partitions.items()) if frozenset(each.replicas) - {chosen} - each.in_sync
    ]
    return f"{_some(names)} to be in sync" if names else ""


def _some(names: Sequence[str]) -> str:
    more = len(names) - PARTITIONS_SHOWN_MAX
    return ", ".join(names[:PARTITIONS_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def _waiting(status: Mapping[str, Any]) -> tuple[str, str]:
    """Reason and message of the first container that waits for something; empty: none does."""
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason"):
            return str(waiting["reason"]), str(waiting.get("message") or "")
    return "", ""


def _unscheduled(conditions: Mapping[str, Mapping[str, Any]]) -> str:
    scheduled = conditions.get("PodScheduled") or {}
    return f"has no node: {scheduled.get('message', '')}" if scheduled.get("status") == "False" else ""
