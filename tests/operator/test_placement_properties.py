"""What holds of every placement, whatever the rules, the pods and the order of events."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from fencekv_operator.placement import Ground, Load, Placed, adjust, goal
from fencekv_operator.rules import Place, Rules, Spread, Wish

PODS = [f"p-{number}" for number in range(7)]
ZONES = ["z-0", "z-1", "z-2"]
STEPS_MAX = 40

pods = st.frozensets(st.sampled_from(PODS), max_size=4)
zones = st.frozensets(st.sampled_from(ZONES), max_size=2)
wishes = st.builds(Wish, owner=st.sampled_from(["", *PODS]), pods=pods, zones=zones)
rules = st.builds(
    Rules,
    zones=st.sampled_from(Spread),
    nodes=st.sampled_from(Spread),
    node_labels=st.sampled_from([{}, {}, {"disk": "fast"}]),
    excluded_pods=st.frozensets(st.sampled_from(PODS), max_size=2),
    excluded_zones=st.frozensets(st.sampled_from(ZONES), max_size=1),
    required=wishes,
    preferred=wishes,
)


@st.composite
def grounds(draw: st.DrawFn) -> Ground:
    """Some of the pods, in zones and on nodes, some of which are not known, and a few pods away."""
    count = draw(st.integers(1, len(PODS)))
    places = []
    for pod in PODS[:count]:
        known = draw(st.integers(0, 5)) > 0
        node = draw(st.integers(0, 5))
        labels = {"disk": draw(st.sampled_from(["fast", "fast", "slow"]))}
        places.append(
            Place(
                pod=pod,
                node=f"n-{node}" if known else "",
                zone=ZONES[node % 3] if known else "",
                labels=labels if known else None,
                away=draw(st.integers(0, 7)) == 0,
            )
        )
    return Ground.of(places, draw(rules))


placements = st.lists(st.sampled_from(PODS), min_size=1, max_size=5, unique=True).map(tuple)


@dataclass
class Story:
    """One partition, as operator and shards treat it: replicas join, the owner moves to the first pod."""

    ground: Ground
    size: int
    least: int
    replicas: tuple[str, ...]
    owner: str
    in_sync: set[str]
    added: set[str] = field(default_factory=set)

    @property
    def placed(self) -> Placed:
        return Placed(replicas=self.replicas, owner=self.owner, in_sync=frozenset(self.in_sync))

    def step(self) -> None:
        """The operator looks once."""
        before, here = self.replicas, self.placed
        load = Load.of([before])
        after = adjust(here, size=self.size, min_in_sync=self.least, ground=self.ground, load=load)
        self.check(here, after)
        self.replicas = after
        self.added |= set(after) - set(before)
        self.in_sync &= set(after) | {self.owner}

    def check(self, here: Placed, after: tuple[str, ...]) -> None:
        fresh, lost = set(after) - set(here.replicas), set(here.replicas) - set(after)
        assert len(set(after)) == len(after)
        assert not (fresh and lost), "it adds before it removes"
        assert here.owner not in lost, "the owner is never dropped"
        assert not lost or here.owner, "nothing is dropped while nobody owns it"
        wanted = min(self.size, len(self.ground.places))
        kept = here.in_sync & set(after)
        if lost & here.in_sync:
            assert len(kept) >= wanted, "never below the wanted number of in-sync copies"
        if lost:
            assert len(kept) >= 1 + min(self.least, wanted - 1)
            assert len(after) >= wanted
        for pod in fresh:
            assert self.ground.rules.placeable(self.ground.by_pod[pod]), "no new replica against the rules"

    def settle(self) -> None:
        """Everybody who can joins, and the owner moves, until nothing changes any more."""
        for _ in range(STEPS_MAX):
            before = (self.replicas, self.owner, frozenset(self.in_sync))
            self.step()
            self.in_sync |= {pod for pod in self.replicas if self.alive(pod)}
            if self.replicas[0] in self.in_sync and self.alive(self.replicas[0]):
                self.owner = self.replicas[0]
            if (self.replicas, self.owner, frozenset(self.in_sync)) == before:
                return
        raise AssertionError(f"no rest: {self}")

    def alive(self, pod: str) -> bool:
        place = self.ground.by_pod.get(pod)
        return place is None or not place.away


@st.composite
def stories(draw: st.DrawFn) -> Story:
    replicas = draw(placements)
    size = draw(st.integers(1, 4))
    return Story(
        ground=draw(grounds()),
        size=size,
        least=draw(st.integers(0, size - 1)),
        replicas=replicas,
        owner=draw(st.sampled_from(replicas)),
        in_sync=set(draw(st.lists(st.sampled_from(replicas), unique=True))) | {replicas[0]},
    )


@given(stories())
@settings(max_examples=3000, deadline=None)
def test_steps_are_safe_and_come_to_rest_where_the_rules_want_it(story: Story) -> None:
    story.in_sync.add(story.owner)
    story.settle()
    ground = story.ground
    target = goal(story.placed, size=story.size, ground=ground, load=Load())
    assert set(target) <= set(story.replicas)
    if len(target) == min(story.size, len(ground.places)):  # the rules can be kept: nothing else is left
        assert set(story.replicas) == set(target) or not story.alive(story.owner)
        places = [ground.by_pod[pod] for pod in target]
        assert all(ground.may_stay(pod) for pod in target)
        assert all(ground.rules.apart(each, places[:number]) for number, each in enumerate(places))
    wanted = ground.rules.required.owner
    if wanted in ground.by_pod and ground.rules.placeable(ground.by_pod[wanted]):
        assert story.replicas[0] == wanted


@given(stories())
@settings(max_examples=300, deadline=None)
def test_what_may_stay_is_not_moved(story: Story) -> None:
    """Without a preference and a required spread, only what must not stay is replaced."""
    rules = story.ground.rules
    plain = Rules(
        node_labels=rules.node_labels, excluded_pods=rules.excluded_pods, excluded_zones=rules.excluded_zones
    )
    story.ground = Ground.of(story.ground.places, plain)
    story.in_sync.add(story.owner)
    staying = [pod for pod in story.replicas if story.ground.may_stay(pod)]
    story.settle()
    assert len(story.added) <= max(0, story.size - len(staying))
    if len(staying) <= story.size:
        assert set(staying) <= set(story.replicas)


@given(stories(), st.data())
@settings(max_examples=300, deadline=None)
def test_who_was_away_for_a_moment_moves_nothing(story: Story, data: st.DataObject) -> None:
    """A shard that fails and comes back, in sync or not, leaves a settled placement as it was."""
    story.in_sync.add(story.owner)
    story.settle()
    before = story.replicas
    failed = data.draw(st.sampled_from(before))
    story.in_sync.discard(failed)
    alive = [pod for pod in before if pod in story.in_sync]
    story.owner = alive[0] if alive else ""
    story.step()
    if len(before) == story.size:
        assert story.replicas == before
