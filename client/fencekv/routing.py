"""What a client knows of a namespace: who owns what, how far it has seen each partition, whom to avoid. Pure.

A doubt is about one partition: requests to the others go on while it is cleared up.

Invariants:
  * The token and the epoch kept for a partition never fall, but for a token that the shards declared lost.
  * A hint of an older epoch than the one already seen is not followed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from fencekv import messages as m
from fencekv.errors import Unavailable
from fencekv.partitioning import Partitioning, parse_partitioning
from fencekv.token import Token

AVOIDED_SECONDS: Final = 2.0  # an address that could not be reached is not the first choice
DOUBTS_ONE_BY_ONE_MAX: Final = 8  # of more, the routes of the whole table cost less than each by itself


@dataclass(frozen=True, slots=True)
class Owner:
    """A partition and its owner's address; empty: unknown."""

    partition: str
    epoch: int
    http: str


@dataclass(slots=True)
class TableRoutes:
    """The partitions of a table, by index. `doubted`: to be asked for anew before the next use, by number."""

    partitioning: Partitioning
    owners: dict[int, Owner]
    doubted: dict[int, int] = field(default_factory=dict)

    @property
    def one_by_one(self) -> bool:
        """Whether those in doubt are few enough to be asked for each by itself."""
        return len(self.doubted) <= DOUBTS_ONE_BY_ONE_MAX


@dataclass(slots=True)
class Seen:
    """The furthest that this client has seen of a partition."""

    token: Token | None = None
    epoch: int = 0


@dataclass(slots=True)
class Routes:
    """Everything that a client remembers of its tables."""

    tables: dict[str, TableRoutes] = field(default_factory=dict)
    seen: dict[tuple[str, int], Seen] = field(default_factory=dict)
    avoided: dict[str, float] = field(default_factory=dict)  # address: until when
    doubts: int = 0  # so far: an answer settles those that were there when it was asked for

    def load(self, table: str, answer: m.Routes, *, doubts: int) -> list[int]:
        """Takes in a shard's answer about all partitions of a table; gives those that have a newer owner.

        `doubts`: as they were when it was asked for.

        Raises:
            Unavailable: it cannot be read.
        """
        partitioning, routes = _partitioning(table, answer), self.tables.get(table)
        if routes is None or routes.partitioning != partitioning:
            routes = self.tables[table] = TableRoutes(partitioning, {})
        return self._take(table, routes, answer, doubts)

    def load_some(self, table: str, answer: m.Routes, *, doubts: int) -> list[int]:
        """Takes in a shard's answer about some partitions of a table; gives those that have a newer owner.

        `doubts`: as they were when it was asked for.

        Raises:
            Unavailable: it cannot be read.
        """
        routes = self.tables.get(table)
        if routes is None:
            return []
        if _partitioning(table, answer) != routes.partitioning:
            del self.tables[table]  # it is another table of this name
            return []
        return self._take(table, routes, answer, doubts)

    def _take(self, table: str, routes: TableRoutes, answer: m.Routes, doubts: int) -> list[int]:
        risen: list[int] = []
        for at in answer.partitions:
            index, known = at.place, routes.owners.get(at.place)
            was_doubted = index in routes.doubted
            if routes.doubted.get(index, doubts) <= doubts:
                routes.doubted.pop(index, None)
            if known is not None and at.epoch > known.epoch:
                risen.append(index)
                # It owns something since it was avoided: it lives.
                self.avoided.pop(at.http, None)
            if known is not None and at.epoch < known.epoch:
                # A shard that is behind, or an answer that another one overtook.
                if was_doubted:
                    routes.owners[index] = replace(known, http="")
                continue
            # Nor must it take us back to an owner that we saw deposed.
            http = at.http if at.epoch >= self.of(table, index).epoch else ""
            routes.owners[index] = Owner(at.partition, at.epoch, http)
        return risen

    def of(self, table: str, index: int) -> Seen:
        """What was seen of a partition."""
        seen = self.seen.get((table, index))
        if seen is None:
            seen = self.seen[table, index] = Seen()
        return seen

    def epoch_of(self, table: str, index: int) -> int:
        """The highest epoch known of a partition, from answers or from routes."""
        owner = self._owner(table, index)
        return max(self.of(table, index).epoch, owner.epoch if owner else 0)

    def saw(self, table: str, index: int, *, token: Token | None, epoch: int | None) -> None:
        """Takes in an answer's token and epoch."""
        seen = self.of(table, index)
        if token is not None and (seen.token is None or token > seen.token):
            seen.token = token
        seen.epoch = max(seen.epoch, epoch or 0)
        routes = self.tables.get(table)
        if routes and index in routes.owners and routes.owners[index].epoch < seen.epoch:
            self.doubt(table, index)

    def addresses(self) -> set[str]:
        """The addresses of all owners that are known."""
        return {owner.http for routes in self.tables.values() for owner in routes.owners.values() if owner.http}

    def owner_http(self, table: str, index: int) -> str:
        """The owner's address as far as it is known; empty: it is not."""
        owner = self._owner(table, index)
        return owner.http if owner else ""

    def _owner(self, table: str, index: int) -> Owner | None:
        routes = self.tables.get(table)
        return routes.owners.get(index) if routes else None

    def lost(self, table: str, index: int) -> None:
        """Forgets a token that was declared lost."""
        self.of(table, index).token = None

    def follow(self, table: str, index: int, *, http: str, epoch: int) -> bool:
        """Takes in whom a shard named as owner; False: it is behind what was seen."""
        if epoch < self.of(table, index).epoch:
            return False
        routes = self.tables.get(table)
        if routes and index in routes.owners:
            routes.owners[index] = replace(routes.owners[index], http=http, epoch=epoch)
            # Whoever we would ask for all routes may not know yet what we were just told.
            routes.doubted.pop(index, None)
        return True

    def doubt(self, table: str, index: int) -> None:
        """Has a partition's owner asked for anew."""
        if table in self.tables:
            self.doubts += 1
            self.tables[table].doubted[index] = self.doubts

    def avoid(self, address: str, *, now: float) -> None:
        """Notes that an address could not be reached."""
        self.avoided = {other: until for other, until in self.avoided.items() if until > now}
        self.avoided[address] = now + AVOIDED_SECONDS

    def usable(self, address: str, *, now: float) -> bool:
        """Whether an address is a first choice."""
        return bool(address) and self.avoided.get(address, now) <= now


def _partitioning(table: str, answer: m.Routes) -> Partitioning:
    try:
        return parse_partitioning(answer.partitioning)
    except (TypeError, ValueError) as error:
        raise Unavailable(f"{table}: an answer without routes") from error
