"""What goes wrong in a simulation, by seeded chance: one fault after another, some of them overlapping.

Invariants:
  * After `heal` nothing is broken any more: no cut, no pause, no freeze, no loss; what is dead gets restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from fencekv import leases
from fencekv.kube import LEASES, KubeNotFound
from fencekv.leases import Session, SessionLease
from fencekv_sandbox.apiserver.store import Change
from simulation.kube import HOST, ApiFaults, Backup
from simulation.loop import Process
from simulation.network import Faults
from simulation.pods import Pod

if TYPE_CHECKING:
    from simulation.world import World

OPERATOR_AWAY_SECONDS: Final = 2.0

Fault = Callable[[], None]


class Nemesis:
    """Breaks things in one world."""

    def __init__(self, world: World, wanted: Sequence[str] = ()) -> None:
        self._world, self._loop = world, world.loop
        self._chance = world.loop.rng("nemesis")
        self._undo: list[Callable[[], None]] = []
        self._backup: Backup | None = None  # None: none was made yet.
        self._healed = False
        self._followed = ""  # the pod whose next renewal is to be the last one; empty: none
        known: dict[str, Fault] = {
            "crash": self._crash_shard,
            "crash_again": self._crash_shard,
            "crash_container": self._crash_container,
            "crash_two": self._crash_two,
            "replace_pod": self._replace_pod,
            "follow_elsewhere": self._follow_elsewhere,
            "pause": self._pause_shard,
            "pause_at_commit": self._pause_at_commit,
            "cut_one_way": self._cut_one_way,
            "cut_both": self._cut_both,
            "blind_operators": self._blind_operators,
            "cut_from_api": self._cut_from_api,
            "isolate": self._isolate,
            "freeze_api": self._freeze_api,
            "bad_api": self._bad_api,
            "bad_network": self._bad_network,
            "cut_watches": self._cut_watches,
            "crash_operator": self._crash_operator,
            "pause_operator": self._pause_operator,
            "drain": self._drain,
            "disk_full": self._disk_full,
            "failed_commit": self._failed_commit,
            "restore_api": self._restore_api,
            "delete_session_lease": self._delete_session_lease,
            "delete_partition_lease": self._delete_partition_lease,
            "stall": self._stall,
        }
        assert set(wanted) <= set(known), wanted
        self._faults = [(name, known[name]) for name in (wanted or known)]
        world.api.subscribe("leases.coordination.k8s.io", self._lease_changed)

    async def run(self, seconds: float) -> None:
        """Breaks things for a while."""
        until = self._loop.time() + seconds
        while self._loop.time() < until:
            await asyncio.sleep(self._chance.random() * self._world.settings.gap_seconds_max)
            name, fault = self._chance.choice(self._faults)
            self._loop.trace(f"nemesis {name}")
            fault()

    def heal(self) -> None:
        """Ends all that goes on."""
        for undo in tuple(self._undo):
            undo()
        assert not self._undo, self._undo
        self._followed, self._healed = "", True
        self._world.api.faults = ApiFaults()
        self._world.network.faults = Faults()
        self._world.disks.failing.clear()

    def _for_a_while(self, begin: Fault, end: Fault, seconds_max: float) -> None:
        begin()

        def over() -> None:
            if undo in self._undo:
                self._undo.remove(undo)
                timer.cancel()
                end()

        undo = over
        self._undo.append(undo)
        timer = self._loop.call_outside(0.05 + self._chance.random() * seconds_max, undo)

    def _pod(self) -> Pod:
        """Mostly the owner: that is where it hurts."""
        if self._chance.random() < 0.6:
            for pod in self._world.pods:
                if pod.name == self._world.owner_pod():
                    return pod
        return self._chance.choice(self._world.pods)

    # Processes

    def _crash_shard(self) -> None:
        self._pod().crash_shard()

    def _crash_container(self) -> None:
        self._pod().crash_container(reported=self._chance.random() < 0.5)

    def _crash_two(self) -> None:
        """As a power loss of two nodes."""
        for pod in self._chance.sample(self._world.pods, min(2, len(self._world.pods))):
            pod.crash_container(reported=self._chance.random() < 0.5)

    def _replace_pod(self) -> None:
        self._pod().replace()

    def _follow_elsewhere(self) -> None:
        """A deleted pod whose node is cut off lives on, and its successor dies as soon as it holds the Lease.

        Between two cuts the old one renews once more, and the operators may have heard nothing of that.
        """
        pod = self._pod().name

        def one_more() -> None:
            unblock()
            self._followed = pod

        block, unblock = self._blocking([(pod, HOST), (HOST, pod)])
        self._for_a_while(block, one_more, 3.5)

    def _lease_changed(self, change: Change) -> None:
        old, new = change.old, change.new
        if old is None or new is None or change.key.name != leases.session_lease_name(self._followed):
            return
        before, after = SessionLease.parse(old.object), SessionLease.parse(new.object)
        if before.session == after.session and before.renewal < after.renewal:
            pod, self._followed = self._followed, ""
            self._loop.call_outside(0.02, self._follow, pod)  # it gets its answer before

    def _follow(self, pod: str) -> None:
        if self._healed:
            return
        path = LEASES.path(self._world.namespace, leases.session_lease_name(pod))
        with contextlib.suppress(KubeNotFound):
            lease = self._world.api.ask("GET", path)
            number = SessionLease.parse(lease).renewal
            session = Session(pod, "elsewhere", f"{self._chance.getrandbits(64):016x}")
            body = leases.taken_over(
                lease, session=session, renewal=number + 1, valid_seconds=4, http="", peer="", unix_seconds=0.0
            )
            self._world.api.ask("PUT", path, body=body)
            self._loop.trace(f"followed after renewal {number} by {session}")
        self._cut([(pod, HOST), (HOST, pod)], 12.0)

    def _drain(self) -> None:
        shard = self._world.shards.get(self._pod().name)
        if shard is not None and shard.process.alive:
            shard.stopping.set()

    def _pause_shard(self) -> None:
        pod = self._pod()
        whole = self._chance.random() < 0.5
        frozen = pod.processes() if whole else pod.processes()[-1:]
        self._pause(frozen, 12.0)

    def _pause_at_commit(self) -> None:
        """Stops a shard right after its next fsync, before it can tell anyone."""
        shard = self._world.shards.get(self._pod().name)
        if shard is None or not shard.process.alive:
            return
        process = shard.process
        self._world.after_next_commit(process, lambda: self._pause([process], 14.0))

    def _pause(self, processes: list[Process], seconds_max: float) -> None:
        def begin() -> None:
            for process in processes:
                self._loop.trace(f"pause {process.name}")
                process.pause()

        def end() -> None:
            for process in processes:
                self._loop.trace(f"resume {process.name}")
                process.resume()

        self._for_a_while(begin, end, seconds_max)

    def _disk_full(self) -> None:
        full, host = self._world.disks.full, self._pod().name
        self._for_a_while(lambda: full.add(host), lambda: full.discard(host), 4.0)

    def _failed_commit(self) -> None:
        """The next commit of a pod says that it failed; whether it was done nobody knows."""
        self._world.disks.failing[self._pod().name] = self._chance.random() < 0.5

    def _stall(self) -> None:
        """Every step of one shard may be late by a moment."""
        shard = self._world.shards.get(self._pod().name)
        if shard is None:
            return
        process = shard.process

        def begin() -> None:
            process.stall_chance, process.stall_seconds_max = 0.02, 0.4

        def end() -> None:
            process.stall_chance = 0.0

        self._for_a_while(begin, end, 6.0)

    def _crash_operator(self) -> None:
        index = self._chance.randrange(len(self._world.operators))
        self._world.operators[index].crash()
        self._for_a_while(lambda: None, lambda: self._world.start_operator(index), OPERATOR_AWAY_SECONDS)

    def _pause_operator(self) -> None:
        self._pause([self._chance.choice(self._world.operators)], 12.0)

    # Network

    def _hosts(self) -> list[str]:
        return [pod.name for pod in self._world.pods]

    def _blocking(self, links: list[tuple[str, str]]) -> tuple[Fault, Fault]:
        """How these are cut, and joined again."""
        network = self._world.network
        self._loop.trace("cut " + " ".join("->".join(link) for link in links))

        def begin() -> None:
            for source, target in links:
                network.block(source, target)

        def end() -> None:
            self._loop.trace("join " + " ".join("->".join(link) for link in links))
            for source, target in links:
                network.unblock(source, target)

        return begin, end

    def _cut(self, links: list[tuple[str, str]], seconds_max: float) -> None:
        begin, end = self._blocking(links)
        self._for_a_while(begin, end, seconds_max)

    def _cut_one_way(self) -> None:
        source, target = self._chance.sample([*self._hosts(), HOST, "operator-0"], 2)
        self._cut([(source, target)], 10.0)

    def _cut_both(self) -> None:
        source, target = self._chance.sample(self._hosts(), 2)
        self._cut([(source, target), (target, source)], 10.0)

    def _blind_operators(self) -> None:
        """Each operator loses sight of another pod, so that they judge by different reports."""
        pods = self._chance.sample(self._hosts(), len(self._world.operators))
        for process, pod in zip(self._world.operators, pods, strict=True):
            self._cut([(pod, process.host), (process.host, pod)], 10.0)

    def _cut_from_api(self) -> None:
        pod = self._pod().name
        self._cut([(pod, HOST), (HOST, pod)], 12.0)

    def _isolate(self) -> None:
        """One pod, from everything but its clients, or from all."""
        pod = self._pod().name
        others = [host for host in [*self._hosts(), HOST, "operator-0", "operator-1"] if host != pod]
        if self._chance.random() < 0.5:
            others += [client.name for client in self._world.clients]
        self._cut([link for other in others for link in ((pod, other), (other, pod))], 12.0)

    def _bad_network(self) -> None:
        network = self._world.network

        def begin() -> None:
            network.faults = Faults(
                request_lost=0.05, reply_lost=0.1, break_chance=0.02, slow_chance=0.1, slow_max=0.5
            )

        def end() -> None:
            network.faults = Faults()

        self._for_a_while(begin, end, 5.0)

    # API server

    def _freeze_api(self) -> None:
        self._for_a_while(self._world.api.freeze, self._world.api.thaw, 10.0)

    def _bad_api(self) -> None:
        api = self._world.api

        def begin() -> None:
            api.faults = ApiFaults(request_lost=0.1, request_late=0.2, reply_lost=0.2)

        def end() -> None:
            api.faults = ApiFaults()

        self._for_a_while(begin, end, 8.0)

    def _delete_session_lease(self) -> None:
        self._delete_lease(leases.session_lease_name(self._pod().name))

    def _delete_partition_lease(self) -> None:
        self._delete_lease(leases.partition_lease_name(self._chance.choice(self._world.partitions)))

    def _delete_lease(self, name: str) -> None:
        with contextlib.suppress(KubeNotFound):
            self._world.api.ask("DELETE", LEASES.path(self._world.namespace, name))

    def _restore_api(self) -> None:
        """The API server's store is put back to a copy that was made a while ago; the next copy is made now."""
        if self._backup is not None:
            self._world.api.restore(self._backup)
            for pod in self._world.pods:
                self._loop.call_outside(self._chance.random(), pod.check_object)
        self._backup = self._world.api.copy()

    def _cut_watches(self) -> None:
        self._world.api.cut_watches()
        if self._chance.random() < 0.5:
            self._world.api.forget_events()
