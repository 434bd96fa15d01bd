"""A small world for the failover loop: the real loop, the real session keeper, modelled shards, virtual time.

Invariants, checked at every commit of a partition Lease, whatever a test does:
  * Epochs of a partition only rise, through deletions of its Lease too; no epoch has two owners.
  * Nobody is granted a partition while its last owner could still act by its own clock, unless that one released
    it or is the one that is granted.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import yaml
from simulation.kube import ApiHost
from simulation.loop import Process, ProcessClock, SimulationLoop
from simulation.network import Network

from fencekv import leases
from fencekv.kube import CRDS, KV_NAMESPACES, KV_PARTITIONS, LEASES, PODS, KubeNotFound
from fencekv.leases import PartitionLease, Session
from fencekv_operator.facts import PartitionFacts, Reason, Transition
from fencekv_operator.failover import Failover
from fencekv_operator.placing import Preference
from fencekv_operator.reports import Replica, Report
from fencekv_sandbox.apiserver import Request
from fencekv_sandbox.apiserver.store import Change
from fencekv_shard.session import LeaseTimes, SessionKeeper, SessionOver

Object = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "default"
KVNS = "s"
TABLE_UID = "00000000-0000-4000-8000-000000000001"


class Memory:
    """What a volume remembers."""

    def __init__(self) -> None:
        self.renewal = 0
        self.suspicious = False
        self.replicas: dict[str, dict[str, Any]] = {}

    def remember(self, renewal: int) -> None:
        self.renewal = renewal

    def suspect(self) -> None:
        self.suspicious = True
        for replica in self.replicas.values():
            replica["suspect"] = True


class Shard:
    """One process of a pod: a real session, and replicas that copy their owner at once."""

    def __init__(self, world: World, pod: str, number: int) -> None:
        self.world, self.pod = world, pod
        self.process = world.loop.process(f"{pod}-{number}", host=pod)
        self.clock = ProcessClock(loop=world.loop, boot_offset=random.Random(pod).uniform(0, 1e5))
        self.session = Session(pod, world.pod_uids[pod], f"{number:016x}")
        self.memory = world.volumes[pod]
        self.keeper = SessionKeeper(
            kube=world.api.kube(self.process),
            clock=self.clock,
            memory=self.memory,
            session=self.session,
            kvns=KVNS,
            namespace=NAMESPACE,
            times=LeaseTimes(valid_seconds=world.valid_seconds),
        )
        self.process.spawn(self._run())

    async def _run(self) -> None:
        await self.keeper.take(http=f"{self.pod}:7070", peer=f"{self.pod}:7071")
        try:
            await self.keeper.run()
        except SessionOver:
            self.process.exit(70)

    def may_act(self) -> bool:
        """Whether this process, as it is or resumed, would serve as an owner now."""
        return self.process.alive and self.keeper.valid()

    def report(self) -> Report:
        replicas = {}
        for uid, state in self.memory.replicas.items():
            record = self.world.record(self.world.names[uid])
            mine = record is not None and record.session == self.session and not record.is_released
            role = "owner" if mine or self.session in self.world.stubborn else "standby"
            replicas[uid] = Replica(
                uid=uid, partition=self.world.names[uid], role=role, serving=role == "owner", **state
            )
        return Report(
            session=self.session, pod=self.pod, ready=True, renewal=self.keeper.number, replicas=replicas
        )


@functools.cache
def _definitions() -> list[Object]:
    """The project's CRDs; reading them takes longer than most stories here."""
    return [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("kv*.yaml"))]


class ShardReach:
    """`ShardClient` in this world."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def report(self, http_address: str) -> Report | None:
        await asyncio.sleep(0.002)
        shard = self._world.shards.get(http_address.split(":")[0])
        if shard is None or not shard.process.alive:
            return None
        if shard.process.pauses or shard.pod in self._world.deaf:
            await asyncio.sleep(3600)
        return shard.report()

    async def release(self, http_address: str, uid: str, epoch: int, target: str) -> bool:
        world = self._world
        world.release_requests.append((http_address, uid, epoch, target))
        if world.agrees:
            name = world.names[uid]
            world.change_record(
                name, lambda raw: leases.released_partition(raw, epoch=epoch, seq=0, target=target)
            )
        return world.agrees


class World:
    """API server, shards, operators."""

    def __init__(self, *, pods: int = 3, partitions: int = 1, seed: int = 1, **lease: int) -> None:
        self.loop = SimulationLoop(seed)
        self.network = Network(self.loop)
        self.api = ApiHost(self.loop, self.network)
        self.valid_seconds = lease.get("validSeconds", 4)
        self.pods = [f"{KVNS}-{ordinal}" for ordinal in range(pods)]
        self.pod_uids: dict[str, str] = {}
        self.volumes = {pod: Memory() for pod in self.pods}
        self.shards: dict[str, Shard] = {}
        self.every_shard: dict[Session, Shard] = {}
        self.names: dict[str, str] = {}  # partition UID -> name
        self.stubborn: set[Session] = set()  # claim to own, record or no record
        self.transitions: list[Transition] = []
        self.release_requests: list[tuple[str, str, int, str]] = []
        self.agrees = True  # owners do as they are asked
        self.wishes: dict[str, Preference] = {}  # by partition: how much its first pod is to own it
        self.deaf: set[str] = set()  # pods that do not answer the operator
        self.history: dict[str, list[tuple[int, Session]]] = {}  # partition UID -> grants
        self.operators: list[tuple[Process, Failover]] = []
        self.leading: dict[str, bool] = {}
        self.step_downs: list[str] = []  # why
        self._numbers = 0
        for definition in _definitions():
            self.api.ask("POST", CRDS.path(None), body=definition)
        space = {
            "apiVersion": KV_NAMESPACES.api_version,
            "kind": "KVNamespace",
            "metadata": {"name": KVNS, "namespace": NAMESPACE},
            "spec": {"lease": {"durationSeconds": 6, "validSeconds": 4, "renewSeconds": 1, **lease}},
        }
        self.api.ask("POST", KV_NAMESPACES.path(NAMESPACE), body=space)
        self.api.server.core.store.subscribe("leases.coordination.k8s.io", self._check)
        for index in range(partitions):
            self.make_partition(f"orders-{index}", index)

    # What the world does

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        """Runs a test's story."""
        self.loop.run(self._whole(main))
        assert self.loop.errors == []

    async def _whole(self, main: Callable[[], Awaitable[None]]) -> None:
        await main()

    async def started(self) -> Failover:
        """Pods, shards and one operator, and every partition granted."""
        for pod in self.pods:
            self.new_pod(pod)
            self.start(pod)
        failover = self.operator()
        await self.until(lambda: all(self.epoch(name) >= 1 for name in self.names.values()))
        await asyncio.sleep(3)
        self.transitions.clear()
        return failover

    async def until(self, condition: Callable[[], bool], *, seconds: float = 60.0) -> float:
        """Waits for it in virtual time; gives how long it took."""
        began = self.loop.time()
        while not condition():
            assert self.loop.time() - began < seconds, "it did not come to pass"
            await asyncio.sleep(0.01)
        return self.loop.time() - began

    def new_pod(self, pod: str) -> None:
        """A pod object, with a new UID."""
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod, "namespace": NAMESPACE, "labels": self._labels("shard")},
            "spec": {"containers": [{"name": "shard", "image": "shard"}]},
        }
        self.pod_uids[pod] = self.api.ask("POST", PODS.path(NAMESPACE), body=body)["metadata"]["uid"]

    def delete_pod(self, pod: str) -> None:
        """Forced: the object goes, whatever runs."""
        self.api.ask("DELETE", PODS.path(NAMESPACE, pod), body={"gracePeriodSeconds": 0})

    def start(self, pod: str) -> Shard:
        """A new process with a new session, on the pod's volume."""
        self._numbers += 1
        for uid in self.names:
            self.volumes[pod].replicas.setdefault(uid, self._empty(pod))
        shard = self.shards[pod] = Shard(self, pod, self._numbers)
        self.every_shard[shard.session] = shard
        return shard

    def lose_volume(self, pod: str) -> None:
        """An empty volume takes its place."""
        self.volumes[pod] = Memory()

    def terminated(self, pod: str, session: Session) -> None:
        """The kubelet reports the container of that session."""
        state = {"terminated": {"exitCode": 137, "message": f"{session}\n"}}
        container = {"name": "shard", "image": "shard", "imageID": "", "ready": False, "restartCount": 1}
        body = {"status": {"containerStatuses": [{**container, "state": {"waiting": {}}, "lastState": state}]}}
        content = "application/merge-patch+json"
        self.api.ask("PATCH", PODS.path(NAMESPACE, pod, "status"), body=body, content=content)

    def release(self, session: Session) -> None:
        """As its supervisor does, having seen the process end."""
        path = LEASES.path(NAMESPACE, leases.session_lease_name(session.pod))
        self.api.ask("PUT", path, body=leases.released_session(self.api.ask("GET", path), session))

    def change_record(self, name: str, change: Callable[[Object], Object]) -> None:
        """Writes a partition Lease as its owner would."""
        path = self._record_path(name)
        self.api.ask("PUT", path, body=change(self.api.ask("GET", path)))

    def put_record(self, name: str, lease: Object | None) -> None:
        """Deletes a partition Lease, or makes it again as it once was."""
        self.api.ask("DELETE", self._record_path(name))
        if lease is not None:
            metadata = {key: lease["metadata"][key] for key in ("name", "namespace", "labels", "annotations")}
            body = {**lease, "metadata": metadata}
            self.api.ask("POST", LEASES.path(NAMESPACE), body=body)

    def patch(self, path: str, body: Object) -> None:
        """A merge patch."""
        self.api.ask("PATCH", path, body=body, content="application/merge-patch+json")

    def operator(self, name: str = "operator-0", *, leading: bool = True) -> Failover:
        """One more operator process."""
        process = self.loop.process(name)
        self.leading[name] = leading

        async def main() -> None:
            failover = Failover(
                kube=self.api.kube(process),
                shards=ShardReach(self),
                clock=ProcessClock(loop=self.loop, boot_offset=77.0),
                chance=random.Random(name),
                namespace=None,
                leading=lambda: self.leading[name],
                on_transition=lambda _namespace, transition: self.transitions.append(transition),
                on_change=lambda _namespace, _name: None,
                step_down=self.step_downs.append,
                preference=lambda _namespace, name: self.wishes.get(name, Preference.NONE),
            )
            made.append(failover)
            await failover.run()

        made: list[Failover] = []
        process.spawn(main())
        holder = _Lazy(made)
        self.operators.append((process, holder))  # type: ignore[arg-type]
        return holder  # type: ignore[return-value]

    # What can be seen

    def raw_record(self, name: str) -> Object | None:
        try:
            return self.api.ask("GET", self._record_path(name))  # type: ignore[no-any-return]
        except KubeNotFound:
            return None

    def record(self, name: str) -> PartitionLease | None:
        raw = self.raw_record(name)
        return PartitionLease.parse(raw) if raw is not None else None

    def epoch(self, name: str = "orders-0") -> int:
        record = self.record(name)
        return record.epoch if record else 0

    def owner(self, name: str = "orders-0") -> str:
        record = self.record(name)
        return record.session.pod if record and record.session else ""

    def owning_shard(self, name: str = "orders-0") -> Shard:
        return self.shards[self.owner(name)]

    def facts(self, failover: Failover, name: str = "orders-0") -> PartitionFacts:
        facts = failover.facts(NAMESPACE, name)
        assert facts is not None, name
        return facts

    def reasons(self) -> list[Reason]:
        return [transition.reason for transition in self.transitions]

    # Inside

    def _check(self, change: Change) -> None:
        labels = change.last.object["metadata"].get("labels") or {}
        if change.new is None or labels.get(leases.LABEL_KIND) != leases.KIND_PARTITION:
            return
        record = PartitionLease.parse(change.new.object)
        if record.session is None or record.partition_uid not in self.names:
            return
        grants = self.history.setdefault(record.partition_uid, [])
        if (record.epoch, record.session) in grants:
            return  # another change of it, or a test put it back
        epoch, last = grants[-1] if grants else (0, None)
        assert record.epoch > epoch, f"epoch {record.epoch} after {epoch}"
        before = PartitionLease.parse(change.old.object) if change.old else None
        let_go = before is not None and before.epoch == epoch and before.is_released
        if last is not None and last != record.session and not let_go:
            assert not self.every_shard[last].may_act(), f"{last} may still act; granted to {record.session}"
        grants.append((record.epoch, record.session))
        self._copy(record)

    def _copy(self, record: PartitionLease) -> None:
        """The new owner's ownership entry reaches every member that runs."""
        for pod, volume in self.volumes.items():
            replica = volume.replicas.get(record.partition_uid)
            shard = self.shards.get(pod)
            if replica is None or shard is None or not shard.process.alive or shard.process.pauses:
                continue
            if f"{pod}/{replica['replica']}" in record.in_sync:
                replica.update(
                    epoch=record.epoch,
                    promised=record.epoch,
                    last_epoch=record.epoch,
                    last_seq=record.epoch,
                    set_version=record.set_version,
                    members=record.in_sync,
                    suspect=False,
                )

    def join(self, pod: str, name: str = "orders-0") -> None:
        """The owner takes a pod's replica into the in-sync set, once that has caught up."""
        record = self._known(name)
        replica = self.volumes[pod].replicas[record.partition_uid]
        self._set(name, {*record.in_sync, f"{pod}/{replica['replica']}"})

    def leave(self, pod: str, name: str = "orders-0") -> None:
        """The owner takes a pod's replica out of it."""
        members = self._known(name).in_sync
        self._set(name, {member for member in members if leases.pod_of(member) != pod})

    def _known(self, name: str) -> PartitionLease:
        record = self.record(name)
        assert record is not None, name
        return record

    def _set(self, name: str, members: set[str]) -> None:
        version = self._known(name).set_version + 1
        in_sync = tuple(sorted(members))
        self.change_record(name, lambda raw: leases.with_in_sync(raw, in_sync=in_sync, set_version=version))
        self._copy(self._known(name))

    def join_all(self) -> None:
        """All pods in sync everywhere."""
        for name in self.names.values():
            for pod in self.pods:
                if pod != self.owner(name):
                    self.join(pod, name)

    def _empty(self, pod: str) -> dict[str, Any]:
        self._numbers += 1
        return {
            "replica": f"{self._numbers:016x}",
            "promised": 0,
            "epoch": 0,
            "last_epoch": 0,
            "last_seq": -1,
            "last_txid": -1,
            "applied_seq": -1,
            "commit_seq": -1,
            "set_version": 0,
            "members": (),
            "closed_epoch": 0,
            "suspect": False,
        }

    def make_partition(self, name: str, index: int, *, recorded: bool = True) -> Object:
        """A KVPartition, with its record or without one; where shards run already, they hold it."""
        body = {
            "apiVersion": KV_PARTITIONS.api_version,
            "kind": "KVPartition",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {leases.LABEL_NAMESPACE: KVNS}},
            "spec": {
                "namespace": KVNS,
                "table": "orders",
                "tableUID": TABLE_UID,
                "index": index,
                "partitioning": {"strategy": "hash", "count": 128},
                "durability": "replicated",
                "minInSync": 1,
                "maxUnshippedSeconds": 1,
                "replicas": self.pods,
                "limits": {"valueBytesMax": 1024},
            },
        }
        made = self.api.ask("POST", KV_PARTITIONS.path(NAMESPACE), body=body)
        uid = made["metadata"]["uid"]
        self.names[uid] = name
        for pod in self.shards:
            self.volumes[pod].replicas.setdefault(uid, self._empty(pod))
        if not recorded:
            return made  # type: ignore[no-any-return]
        lease = leases.new_partition_lease(
            partition=name, partition_uid=uid, table="orders", kvns=KVNS, namespace=NAMESPACE
        )
        self.api.ask("POST", LEASES.path(NAMESPACE), body=lease)
        return made  # type: ignore[no-any-return]

    def _record_path(self, name: str) -> str:
        return LEASES.path(NAMESPACE, leases.partition_lease_name(name))

    def _labels(self, kind: str) -> dict[str, str]:
        return {leases.LABEL_NAMESPACE: KVNS, leases.LABEL_KIND: kind}


class OperatorCrash:
    """Ends an operator at its n-th request from now on: before it leaves, or when it was carried out."""

    def __init__(self, world: World, process: Process, *, at: int, carried_out: bool) -> None:
        self._api, self._process = world.api, process
        self._left, self._carried_out = at, carried_out
        self.hit = ""  # the request that it was
        self._submit, self._carry_out = world.api.submit, world.api._carry_out
        world.api.submit = self.submit  # type: ignore[method-assign]
        world.api._carry_out = self.carry_out  # type: ignore[method-assign]

    def submit(self, source: Process, request: Request, answer: Any) -> None:
        if not self._carried_out and self._is_it(source, request):
            source.crash()
            return
        self._submit(source, request, answer)

    def carry_out(self, source: Process, request: Request, answer: Any) -> None:
        self._carry_out(source, request, answer)
        if self._carried_out and self._is_it(source, request):
            source.crash()

    def _is_it(self, source: Process, request: Request) -> bool:
        if source is not self._process or self.hit:
            return False
        self._left -= 1
        if self._left < 0:
            self.hit = f"{request.method} {request.path}"
        return bool(self.hit)


class _Lazy:
    """The Failover of a process that has only just been started."""

    def __init__(self, made: list[Failover]) -> None:
        self._made = made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made[0], name)
