"""Why a pod does not hold the replica that it is to hold. Pure: observations -> causes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from fencekv import leases
from fencekv.cli.observed import Cause, Object, Observed, State, condition, since

POD: Final = "pod"
VOLUME: Final = "volume"
SESSION: Final = "session"
COPY: Final = "copy"

# How a shard's process ends, where the number says why.
EXITS: Final = {
    74: "a commit failed: its disk is suspect, and the next start checks it before it is used",
    137: "it was killed; when the reason is OOMKilled, raise spec.shards.resources",
}


def explain_pod(seen: Observed, pod: str, *, blocks: bool) -> Cause:
    """The one cause that is nearest to the root: a pod that cannot be scheduled has no session either."""
    made = next(_causes(seen, pod), None)
    if made is None:
        state, step, what, do, when = _of_replica(seen, pod)
    else:
        state, step, what, do, when = made
    return Cause(state=state, step=step, what=what, do=do, blocks=blocks, since=when, pod=pod)


Found = tuple[State, str, str, str, str]


def _causes(seen: Observed, name: str) -> Iterator[Found]:
    pod = seen.pods.get(name)
    yield from _volume(seen.claims.get(name))
    if pod is None:
        what = f"there is no pod {name}"
        do = "`kubectl describe statefulset` says why; what stays away is replaced after replaceAfterSeconds"
        yield State.POD_MISSING, POD, what, do, ""
        return
    yield from _placed(name, pod)
    yield from _containers(name, pod)
    yield from _session(seen, name)


def _volume(claim: Object | None) -> Iterator[Found]:
    if claim is None:
        return
    phase, name = (claim.get("status") or {}).get("phase"), claim["metadata"]["name"]
    if phase == "Lost":
        what = f"the volume of PersistentVolumeClaim {name} is gone, and the replica with it"
        do = "delete the claim and the pod: the replica is made anew from the owner"
        yield State.VOLUME_LOST, VOLUME, what, do, ""
    elif phase == "Pending":
        what = f"PersistentVolumeClaim {name} is not bound"
        do = f"`kubectl describe pvc {name}`: is there a StorageClass, has it room in the zone of the pod's node?"
        yield State.VOLUME_PENDING, VOLUME, what, do, ""


def _placed(name: str, pod: Object) -> Iterator[Found]:
    status, scheduled, ready = pod.get("status") or {}, condition(pod, "PodScheduled"), condition(pod, "Ready")
    node = (pod.get("spec") or {}).get("nodeName") or "no node"
    if scheduled.get("status") == "False":
        what = f"{name} cannot be scheduled: {scheduled.get('message') or scheduled.get('reason')}"
        yield (
            State.POD_UNSCHEDULABLE,
            POD,
            what,
            "make room, or change spec.shards (nodeSelector, resources)",
            since(scheduled),
        )
    elif status.get("reason") == "NodeLost" or ready.get("status") == "Unknown":
        what = f"the kubelet of {node}, where {name} runs, does not answer"
        do = (
            "bring the node back; the failover does not need it. If the machine is certainly off, "
            "`kubectl delete pod --force` lets the StatefulSet make the pod anew"
        )
        yield State.NODE_GONE, POD, what, do, since(ready)
    elif (pod["metadata"]).get("deletionTimestamp"):
        what = f"{name} is being terminated on {node}"
        do = "if it stays so, look at the node: a StatefulSet makes the pod anew only when the old one is gone"
        yield State.POD_TERMINATING, POD, what, do, str(pod["metadata"]["deletionTimestamp"])


def _containers(name: str, pod: Object) -> Iterator[Found]:
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        state, last = container.get("state") or {}, (container.get("lastState") or {}).get("terminated") or {}
        waiting, ended = state.get("waiting"), state.get("terminated")
        if waiting and waiting.get("reason") not in {None, "ContainerCreating", "PodInitializing"}:
            text = ": ".join(filter(None, (str(waiting["reason"]), waiting.get("message"))))
            what = f"the container of {name} waits: {text}{_exit(last)}"
            yield State.CONTAINER_WAITING, POD, what, f"`kubectl logs {name} --previous` says why it ended", ""
        elif ended:
            what = f"the container of {name} ended{_exit(ended)}"
            yield (
                State.CONTAINER_ENDED,
                POD,
                what,
                "the kubelet starts it again",
                str(ended.get("finishedAt") or ""),
            )


def _exit(ended: Any) -> str:
    code = ended.get("exitCode")
    if code is None:
        return ""
    reason = f", {ended['reason']}" if ended.get("reason") else ""
    known = f": {EXITS[code]}" if code in EXITS else ""
    return f" (status {code}{reason}{known})"


def _session(seen: Observed, name: str) -> Iterator[Found]:
    lease_name, raw = leases.session_lease_name(name), seen.sessions.get(name)
    session = seen.session(name)
    pod_uid = seen.pods[name]["metadata"].get("uid")
    if session is None:
        what = f"{name} holds no session Lease" if raw is None else f"Lease {lease_name} is not one of ours"
        do = "its log says what it waits for: its folder's lock, its disk, or the API server"
        yield State.NO_SESSION, SESSION, what, do, ""
    elif session.session.pod_uid != pod_uid:
        what = f"{name} has not taken its Lease yet: {lease_name} is still that of an earlier pod"
        yield State.NO_SESSION, SESSION, what, "its log says what it waits for: folder, disk or API server", ""
    elif session.over(session.session):
        word = "fenced" if session.fenced == str(session.session) else "released"
        what = f"the session of {name} was {word}; the process ends and begins a new one"
        yield State.SESSION_OVER, SESSION, what, f"if it stays so: `kubectl delete pod {name}`", ""
    elif seen.is_still(lease_name):
        what = f"{name} did not renew its session in the {seen.looked_seconds:.1f} s that were looked at"
        do = (
            "is its process frozen, short of CPU, or cut off from the API server? Its node's state and its log say"
        )
        yield State.SESSION_SILENT, SESSION, what, do, ""


def _of_replica(seen: Observed, name: str) -> Found:
    """The pod lives and renews: what of the copy that it holds?"""
    report, replica = seen.reports.get(name), seen.replica(name)
    record = seen.record or {}
    epoch = int((record.get("spec") or {}).get("leaseTransitions") or 0)
    ready = condition(seen.pods.get(name), "Ready")
    if report is None:
        what = f"{name} renews its session, but its reports could not be read from here"
        return State.NOT_ANSWERING, COPY, what, f"`kubectl logs {name}`; is a NetworkPolicy in the way?", ""
    if replica is None:
        what = f"{name} has not opened its replica: it opens it just now, or could not"
        return State.NOT_OPENED, COPY, what, f"`kubectl logs {name}` names the replica and the reason", ""
    if int(replica.get("promised") or 0) > epoch:
        promised = replica["promised"]
        what = f"{name} has promised epoch {promised}, above the Lease's {epoch}: it confirms nothing below"
        do = "nothing: the operator grants above every epoch that is promised"
        return State.PROMISED_HIGHER, "gate 3: the promise of a standby", what, do, ""
    behind = _behind(seen, replica)
    if behind:
        what = f"{name} lacks {behind} entries of the owner's journal and catches up"
        do = "wait; if the number does not fall, look at its disk and at the network between the two"
        return State.BEHIND, COPY, what, do, ""
    if ready.get("status") == "False":
        what = f"{name} is not Ready: {ready.get('message') or ready.get('reason')}"
        return State.POD_NOT_READY, POD, what, f"`kubectl describe pod {name}`", since(ready)
    what = f"{name} holds everything and joins the set with the owner's next write of the Lease"
    return State.BEHIND, COPY, what, "wait a moment", ""


def _behind(seen: Observed, replica: Object) -> int:
    holder = ((seen.record or {}).get("spec") or {}).get("holderIdentity") or ""
    owner = seen.replica(str(holder).partition("/")[0])
    if owner is None:
        return 0
    return max(0, int(owner.get("lastSeq") or 0) - int(replica.get("lastSeq") or 0))
