"""Heard silence: what counts, what does not, and how long must be heard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencekv_operator.silence import Heard, Reading, fell_together


def heard(*steps: tuple[float, float, object], valid_seconds: float | None = 4) -> Heard:
    """Reads at (sent, answered) and what each showed."""
    (sent, answered, shown), *rest = steps
    state = Heard.first(shown, Reading(sent=sent, answered=answered), valid_seconds=valid_seconds)
    for sent, answered, shown in rest:
        state = state.fed(shown, Reading(sent=sent, answered=answered), valid_seconds=valid_seconds)
    return state


def test_steady_reads_of_the_same_observation_add_up() -> None:
    assert heard(*((t, t, "a") for t in range(7))).seconds == 6


def test_a_slice_runs_from_the_answer_of_one_read_to_the_departure_of_the_next() -> None:
    # Between the pictures lay at least 1.0 - 0.4 s; the rest was spent on the way.
    assert heard((0, 0.4, "a"), (1, 1.4, "a")).seconds == pytest.approx(0.6)


def test_a_renewal_starts_the_count_again() -> None:
    state = heard((0, 0, "a"), (1, 1, "a"), (2, 2, "a"), (3, 3, "b"))
    assert (state.seconds, state.since) == (0, 3)


def test_an_observation_that_comes_back_is_a_change_all_the_same() -> None:
    assert heard((0, 0, "a"), (1, 1, "b"), (2, 2, "a"), (3, 3, "a")).seconds == 1


@pytest.mark.parametrize("gap", [1.5, 10, 3600])
def test_time_without_an_answer_counts_one_slice_however_long_it_was(gap: float) -> None:
    """A frozen API server, or an operator that was stopped: nobody could have heard a renewal."""
    assert heard((0, 0, "a"), (gap, gap, "a")).seconds == 1


def test_a_read_that_overlaps_the_one_before_counts_nothing() -> None:
    assert heard((0, 2, "a"), (2, 2.5, "a"), (2.5, 2.5, "a")).seconds == 0


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 3), st.booleans()), min_size=1, max_size=40))
def test_never_more_is_heard_than_went_by_and_never_more_than_a_second_a_read(
    steps: list[tuple[float, float, bool]],
) -> None:
    now, state, since, reads = 0.0, Heard.first(0, Reading(sent=0, answered=0)), 0.0, 0
    shown = 0
    for pause, taken, is_changed in steps:
        sent = now + pause
        now = sent + taken
        if is_changed:
            shown, since, reads = shown + 1, now, 0
        else:
            reads += 1
        state = state.fed(shown, Reading(sent=sent, answered=now))
        assert 0 <= state.seconds <= min(now - since + 1e-9, reads)


class TestHowLong:
    def test_d_is_waited(self) -> None:
        assert heard((0, 0, "a")).wait_seconds(6) == 6

    def test_a_larger_v_in_the_lease_lengthens_the_wait(self) -> None:
        assert heard((0, 0, "a"), valid_seconds=10).wait_seconds(6) == 15

    def test_d_lowered_counts_at_once_where_v_allows_it(self) -> None:
        assert heard((0, 0, "a"), valid_seconds=2).wait_seconds(3) == 3

    def test_v_lowered_the_renewal_before_it_may_still_be_trusted(self) -> None:
        """The reply of the renewal with the smaller V may have been lost: the session then trusts the larger."""
        state = heard((0, 0, "a"), valid_seconds=10)
        state = state.fed("b", Reading(sent=1, answered=1), valid_seconds=2)
        assert state.wait_seconds(3) == 15

    def test_an_old_v_is_forgotten_once_it_has_run_out(self) -> None:
        state = heard((0, 0, "a"), valid_seconds=10)
        state = state.fed("b", Reading(sent=1, answered=1), valid_seconds=2)
        for t in range(2, 20):
            state = state.fed(str(t), Reading(sent=t, answered=t), valid_seconds=2)
        assert state.wait_seconds(3) == 3

    def test_v_may_have_been_stored_until_the_change_was_seen(self) -> None:
        """Nothing was read for long: the session renewed with its V all the while, then it was taken over."""
        state = heard((0, 0, "held"), valid_seconds=4)
        state = state.fed("gone", Reading(sent=100, answered=100))
        assert state.wait_seconds(3) == 6
        for t in (101, 102, 103):
            state = state.fed("gone", Reading(sent=t, answered=t))
        assert state.seconds < state.wait_seconds(3)


@pytest.mark.parametrize(
    ("silent", "sessions", "together"),
    [(0, 3, False), (1, 1, False), (1, 3, False), (2, 3, True), (2, 4, False), (3, 4, True), (3, 3, True)],
)
def test_more_than_half_together(silent: int, sessions: int, together: bool) -> None:
    assert fell_together(silent=silent, sessions=sessions) is together
