"""A whole FenceKV in one seed: three shards, two operators, clients, a nemesis, and what must hold afterwards.

Invariants:
  * `run(seed)` is a function of the seed: trace and findings are the same in every run, whatever the hash seed.
  * The nemesis ends before the checks: all is healed, and what the clients then read is final.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from fencekv import leases
from fencekv.kube import (
    CRDS,
    KV_NAMESPACES,
    KV_PARTITIONS,
    LEASES,
    Kube,
    KubeAlreadyExists,
    KubeError,
    KubeNotFound,
    Unclear,
)
from fencekv.leases import PartitionLease, Session
from fencekv.partitioning import HashPartitioning
from fencekv_operator.failover import Failover
from fencekv_operator.leader import Leader
from fencekv_operator.placing import Preference
from fencekv_shard.audit import audit
from fencekv_shard.folder import Lock, open_or_create
from fencekv_shard.journal import decode_entry, record_entry
from fencekv_shard.store import Corrupt, Store
from fencekv_shard.transaction import Put
from simulation import checker
from simulation.clients import Client, Habits
from simulation.disk import Disks, simulated
from simulation.kube import ApiHost
from simulation.loop import Process, ProcessClock, SimulationLoop
from simulation.nemesis import Nemesis
from simulation.network import Faults, Network
from simulation.pods import Pod
from simulation.shards import KVNS, NAMESPACE, TABLE, Shard, SimShardClient

ROOT: Final = Path(__file__).resolve().parents[3]
DRIFT_MAX: Final = 0.01
BOOT_OFFSET_MAX: Final = 1e6
UNIX_OFFSET_MAX: Final = 3600.0
READY_SECONDS_MAX: Final = 30.0
HEAL_SECONDS_MAX: Final = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How large a world is, and for how long it is troubled."""

    shards: int = 3
    operators: int = 2
    partitions: int = 1
    clients: int = 4
    keys: int = 2  # of each partition
    trouble_seconds: float = 20.0
    gap_seconds_max: float = 3.0  # small: much is broken at once; large: one thing for long
    history_seconds: int = 0  # of the table; 0: nothing is trimmed
    unix_offset_max: float = UNIX_OFFSET_MAX
    everyone_leads: bool = False  # operators act whether or not they hold their own Lease
    born_in_trouble: bool = False  # partitions are made by operators, while all is troubled
    homing: bool = False  # owners are moved to their first pods whenever that can be
    faults: Sequence[str] = ()  # empty: all that the nemesis knows


@dataclass(slots=True, kw_only=True)
class Result:
    """What a run gave."""

    seed: int
    trace: list[str]
    findings: list[str]
    acknowledged: int
    history: checker.History = field(repr=False)


class World:
    """Everything of one run."""

    def __init__(self, seed: int, folder: Path, settings: Settings, disks: Disks) -> None:
        self.loop = SimulationLoop(seed)
        self.settings, self.folder = settings, folder
        self.chance: random.Random = self.loop.rng("world")
        self.network = Network(self.loop, faults=Faults(request_lost=0.002, reply_lost=0.002))
        self.api = ApiHost(self.loop, self.network)
        self.history = checker.History()
        self.disks = disks
        self.pods: list[Pod] = []
        self.shards: dict[str, Shard] = {}  # the last one of each pod
        self.operators: list[Process] = []
        self.clients: list[Client] = []
        self.acknowledgements: list[checker.Acknowledgement] = []
        self.keys = _keys(settings)
        self._grants: list[checker.Grant] = []
        self._granted = ("", 0, "")  # the last grant in the trace
        self._sessions: dict[Session, Shard] = {}  # all that there ever were
        self._early: list[str] = []  # grants that did not wait for the owner before
        self._clocks: dict[str, ProcessClock] = {}

    # Setting up

    async def main(self) -> list[str]:
        """The whole run; gives the findings."""
        self._apply_objects()
        self.api.subscribe("leases.coordination.k8s.io", self._lease_changed)
        for index in range(self.settings.shards):
            pod = Pod(
                loop=self.loop,
                api=self.api,
                namespace=NAMESPACE,
                name=f"{KVNS}-{index}",
                start_shard=self._start_shard,
            )
            self.pods.append(pod)
            pod.create()
        for index in range(self.settings.operators):
            self.start_operator(index)
        self._start_clients()
        if not self.settings.born_in_trouble and not await self._everybody_served(READY_SECONDS_MAX):
            return ["it never got ready", *self.loop.errors]
        nemesis = Nemesis(self, self.settings.faults)
        await nemesis.run(self.settings.trouble_seconds)
        nemesis.heal()
        self.loop.trace("healed")
        healed = await self._everybody_served(HEAL_SECONDS_MAX)
        for client in self.clients:
            client.stopped = True
        await asyncio.sleep(5.0)
        findings = [] if healed else ["it never got ready again after all was healed"]
        await self._stop()
        return [*findings, *self._check()]

    def clock(self, host: str) -> ProcessClock:
        """The clock of a host: it survives the host's processes."""
        if host not in self._clocks:
            chance = self.loop.rng(f"clock-{host}")
            self._clocks[host] = ProcessClock(
                loop=self.loop,
                boot_offset=chance.uniform(0, BOOT_OFFSET_MAX),
                unix_offset=chance.uniform(-self.settings.unix_offset_max, self.settings.unix_offset_max),
                drift=chance.uniform(-DRIFT_MAX, DRIFT_MAX),
            )
        return self._clocks[host]

    def start_operator(self, index: int) -> None:
        """Starts an operator's process, or starts it again."""
        name = f"operator-{index}"
        process = self.loop.process(f"{name}.{len(self.loop.processes)}", host=name)
        if index < len(self.operators):
            self.operators[index] = process
        else:
            self.operators.append(process)
        process.spawn(self._operate(process, name))

    namespace: Final = NAMESPACE

    @property
    def partitions(self) -> list[str]:
        """Their names."""
        return [f"{TABLE}-{index}" for index in range(self.settings.partitions)]

    def owner_pod(self) -> str:
        """The pod that the first partition's Lease names; empty: none."""
        path = LEASES.path(NAMESPACE, leases.partition_lease_name(self.partitions[0]))
        try:
            seen = PartitionLease.parse(self.api.ask("GET", path))
        except KubeNotFound:
            return ""
        return seen.session.pod if seen.session else ""

    def after_next_commit(self, process: Process, then: Callable[[], None]) -> None:
        """Does something right after the next fsync of a process, before its loop hears of it."""
        self.disks.after_commit[process.name] = then

    @property
    def _wish(self) -> Preference:
        return Preference.REQUIRED if self.settings.homing else Preference.NONE

    async def _operate(self, process: Process, name: str) -> None:
        kube, clock = self.api.kube(process), self.clock(name)
        leader = Leader(kube, namespace=NAMESPACE, identity=process.name, clock=clock)
        failover = Failover(
            kube=kube,
            shards=SimShardClient(self.network),
            clock=clock,
            chance=self.loop.rng(process.name),
            namespace=NAMESPACE,
            leading=lambda: leader.leading or self.settings.everyone_leads,
            on_transition=lambda _namespace, transition: self.loop.trace(f"transition {transition}"),
            on_change=lambda _namespace, _partition: None,
            preference=lambda _namespace, _name: self._wish,
        )
        births = self._bear(kube, failover, lambda: leader.leading or self.settings.everyone_leads)
        await asyncio.gather(leader.run(), failover.run(), births)

    async def _bear(self, kube: Kube, failover: Failover, leading: Callable[[], bool]) -> None:
        """Makes partitions as the reconciler does, where nobody made them before."""
        for index in range(self.settings.partitions if self.settings.born_in_trouble else 0):
            made: dict[str, Any] | None = None
            while made is None:
                await asyncio.sleep(self.chance.uniform(0.1, 2.0))
                try:
                    if leading():
                        made = await kube.create(KV_PARTITIONS, NAMESPACE, self._partition(index))
                        self.loop.trace(f"born {index}: {failover.born(made)}")
                except KubeAlreadyExists:
                    break
                except (KubeError, Unclear):
                    continue

    def _partition(self, index: int) -> dict[str, Any]:
        pods = [f"{KVNS}-{(index + step) % self.settings.shards}" for step in range(self.settings.shards)]
        body = _kvpartition(index, count=self.settings.partitions, pods=pods)
        body["spec"]["history"] = {"windowSeconds": self.settings.history_seconds}
        return body

    def _start_shard(self, process: Process, session: Session) -> None:
        shard = Shard(
            loop=self.loop,
            network=self.network,
            api=self.api,
            process=process,
            session=session,
            data=self.folder / session.pod,
            clock=self.clock(session.pod),
            disks=self.disks,
            stopping=asyncio.Event(),
            acknowledgements=self.acknowledgements,
        )
        self.shards[session.pod] = self._sessions[session] = shard
        process.spawn(shard.main())

    def _start_clients(self) -> None:
        habits = Habits(keys=self.keys)
        for index in range(self.settings.clients):
            name = f"client-{index}"
            process = self.loop.process(name)
            client = Client(
                name=name,
                network=self.network,
                process=process,
                history=self.history,
                chance=self.loop.rng(name),
                habits=habits,
                addresses=[f"{pod.name}:7070" for pod in self.pods],
            )
            self.clients.append(client)
            process.spawn(client.run())

    def _apply_objects(self) -> None:
        for path in sorted((ROOT / "crds").glob("kv*.yaml")):
            definition = yaml.safe_load(path.read_text())
            self.api.ask("POST", CRDS.path(None), body=definition)
        self.api.ask("POST", KV_NAMESPACES.path(NAMESPACE), body=_kvns(self.settings.shards))
        for index in range(0 if self.settings.born_in_trouble else self.settings.partitions):
            body = self._partition(index)
            partition = self.api.ask("POST", KV_PARTITIONS.path(NAMESPACE), body=body)
            lease = leases.new_partition_lease(
                partition=body["metadata"]["name"],
                partition_uid=partition["metadata"]["uid"],
                table=TABLE,
                kvns=KVNS,
                namespace=NAMESPACE,
            )
            self.api.ask("POST", LEASES.path(NAMESPACE), body=lease)

    # Watching

    def _lease_changed(self, change: Any) -> None:
        if change.new is None or not change.key.name.startswith("partition-"):
            return
        seen = PartitionLease.parse(change.new.object)
        holder = str(seen.session) if seen.session else ""
        if (seen.partition_uid, seen.epoch, holder) != self._granted:
            self._granted = (seen.partition_uid, seen.epoch, holder)
            self.loop.trace(f"lease {seen.name} epoch {seen.epoch} {holder}")
        if change.old is not None:
            self._check_waited(PartitionLease.parse(change.old.object), seen)
        grant = checker.Grant(partition=seen.partition_uid, epoch=seen.epoch, holder=holder, time=self.loop.time())
        self._grants.append(grant)

    def _check_waited(self, before: PartitionLease, after: PartitionLease) -> None:
        """At a grant, the owner before has let go, or its deadline has passed by its own clock."""
        if before.session is None or before.session == after.session or before.is_released:
            return
        shard = self._sessions[before.session]
        if shard.node is None or not shard.process.alive:
            return
        left = shard.node.session.deadline - shard.clock.now()
        if left > 0:
            self._early.append(
                f"{after.name} granted to {after.session} while {before.session} may act for {left:.3f} s"
            )

    async def _everybody_served(self, seconds: float) -> bool:
        """Waits until each client wrote something, and each key was written, by requests begun from now on."""
        since = len(self.history.operations)
        for _ in range(int(seconds / 0.5)):
            await asyncio.sleep(0.5)
            written = [
                one
                for one in self.history.operations[since:]
                if one.outcome is checker.Outcome.OK and one.kind is checker.Kind.PUT
            ]
            writers, keys = {one.client for one in written}, {one.key for one in written}
            if len(writers) == len(self.clients) and len(keys) == len(self.keys):
                return True
        return False

    async def _stop(self) -> None:
        for pod in self.pods:
            pod.stop()
        for process in self.loop.processes:
            process.crash()
        await asyncio.sleep(1.0)

    # Checking

    def _check(self) -> list[str]:
        partitioning = HashPartitioning(self.settings.partitions)
        journals, findings = [], [*self.loop.errors, *self.history.oddities]
        for name in self.partitions:
            found = self.api.ask("GET", LEASES.path(NAMESPACE, leases.partition_lease_name(name)))
            seen = PartitionLease.parse(found)
            journal, problems = self._final_journal(seen)
            journals.append(journal)
            findings += problems
        by_key = {key: journals[partitioning.partition_of(key)] for key in self.history.keys()}  # noqa: SIM118
        return [
            *findings,
            *self._early,
            *checker.check_owners(self._grants, self.acknowledgements),
            *checker.check_journal(self.history, by_key),
            *checker.check_versions(self.history),
            *checker.check_linearizable(self.history),
        ]

    def _final_journal(self, lease: PartitionLease) -> tuple[list[checker.JournalEntry], list[str]]:
        """The journal of the last owner, and what is wrong with those of the other members of the set."""
        assert lease.session is not None, lease
        raw: dict[str, list[bytes]] = {}
        problems: list[str] = []
        for pod in self.pods:
            first, kept, problem = _records(self.folder / pod.name / "partitions", lease.partition_uid)
            problems += [f"{pod.name}: {problem}"] if problem else []
            folded = self.disks.folded.get(lease.partition_uid, {})
            raw[pod.name] = [*(folded[seq] for seq in range(first)), *kept]
        owner = raw[lease.session.pod]
        for member in lease.in_sync:
            other = raw[member.partition("/")[0]]
            common = min(len(owner), len(other))
            if other[:common] != owner[:common]:
                problems.append(f"journals of {lease.session.pod} and {member} differ in their common part")
        entries = [decode_entry(record_entry(record)) for record in owner]
        final = [
            checker.JournalEntry(
                epoch=entry.epoch,
                writes={write.key: write.value if isinstance(write, Put) else None for write in entry.writes},
            )
            for entry in entries
        ]
        return final, problems


def run(seed: int, settings: Settings | None = None, *, prepare: Callable[[World], None] | None = None) -> Result:
    """One whole run. `prepare` may change the world before it begins."""
    disks = Disks()
    with tempfile.TemporaryDirectory(prefix="fencekv-simulation-") as folder, simulated(disks):
        world = World(seed, Path(folder), settings or Settings(), disks)
        if prepare is not None:
            prepare(world)
        with _quiet():
            findings = world.loop.run(world.main())
    acknowledged = sum(one.outcome is checker.Outcome.OK for one in world.history.operations)
    return Result(
        seed=seed,
        trace=world.loop.lines,
        findings=findings,
        acknowledged=acknowledged,
        history=world.history,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without logs: the trace tells what happened, and each line that nobody reads costs time."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _records(folder: Path, uid: str) -> tuple[int, list[bytes], str]:
    """What a journal still holds, from which seq on, and what is wrong with it, with base and tables too."""
    if not (folder / uid).exists():
        return 0, [], ""
    lock = Lock.take(folder, uid)
    store = open_or_create(folder, uid, new_id=lambda: "0" * 16)
    try:
        kept = store.records(0, count_max=1_000_000, bytes_max=1 << 40)
        return store.base.first_seq, kept, _contradiction(store)
    finally:
        store.close()
        lock.release()


def _contradiction(store: Store) -> str:
    try:
        audit(store)
    except Corrupt as error:
        return str(error)
    return ""


def _keys(settings: Settings) -> list[str]:
    """The first keys that lie in each partition, as many as each shall have."""
    partitioning = HashPartitioning(settings.partitions)
    chosen: list[str] = []
    for index in range(settings.partitions):
        names = (f"k{number}" for number in itertools.count())
        inside = (name for name in names if partitioning.partition_of(name) == index)
        chosen += itertools.islice(inside, settings.keys)
    return chosen


def _kvns(shards: int) -> dict[str, Any]:
    return {
        "apiVersion": KV_NAMESPACES.api_version,
        "kind": KV_NAMESPACES.kind,
        "metadata": {"name": KVNS, "namespace": NAMESPACE},
        "spec": {"shards": {"replicas": shards, "storage": {"size": "1Gi"}}},
    }


def _kvpartition(index: int, *, count: int, pods: list[str]) -> dict[str, Any]:
    return {
        "apiVersion": KV_PARTITIONS.api_version,
        "kind": KV_PARTITIONS.kind,
        "metadata": {
            "name": f"{TABLE}-{index}",
            "namespace": NAMESPACE,
            "labels": {leases.LABEL_NAMESPACE: KVNS, leases.LABEL_TABLE: TABLE},
        },
        "spec": {
            "namespace": KVNS,
            "table": TABLE,
            "tableUID": "00000000-0000-4000-8000-000000000000",
            "index": index,
            "partitioning": {"strategy": "hash", "count": count},
            "durability": "replicated",
            "minInSync": 1,
            "maxUnshippedSeconds": 1,
            "replicas": pods,
            "limits": {"valueBytesMax": 1048576},
        },
    }
