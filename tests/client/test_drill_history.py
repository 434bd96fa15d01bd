"""The history of a drill: what is written is read again, and every planted lie is found, offline."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from fencekv import drill_history
from fencekv.cli.main import main
from fencekv.codec import encode
from fencekv.drill_history import PROBE, DrillHistory, from_bytes, judge, to_bytes
from fencekv.errors import Invalid
from fencekv.linearizable import Kind, Operation, Outcome


def asked(drill: DrillHistory, outcome: Outcome, **fields: object) -> Operation:
    """One operation, begun and answered at once."""
    time = 0.01 * len(drill.history.operations)
    operation = Operation(**{"client": "writer-0", "kind": Kind.PUT, "key": "a", "time": time, **fields})  # type: ignore[arg-type]
    drill.history.call(operation)
    drill.history.answer(operation, outcome)
    return operation


def good() -> DrillHistory:
    """Writes under epochs 1 and 2, one of unknown outcome, and one that the deposed owner refused."""
    drill = DrillHistory(head={"operation": "d-1", "epochBefore": 1})
    asked(drill, Outcome.OK, value=b"1", version=(1, 1))
    asked(drill, Outcome.OK, value=b"2", version=(1, 2))
    asked(drill, Outcome.OK, kind=Kind.GET, value=b"2", version=(1, 2))
    asked(drill, Outcome.UNKNOWN, value=b"3")
    asked(drill, Outcome.OK, value=b"4", version=(2, 5))
    asked(drill, Outcome.REFUSED, client=PROBE, key="p", value=b"5")
    drill.left = {"a": [((2, 5), b"4"), ((1, 2), b"2"), ((1, 1), b"1")], "p": []}
    return drill


def test_a_good_history_is_good_and_counts_the_load_alone() -> None:
    verdict = judge(good())
    assert verdict.good, verdict
    assert (verdict.acknowledged, verdict.unknown, verdict.refused) == (3, 1, 0)


def test_what_is_written_is_read_again() -> None:
    drill = good()
    read = from_bytes(to_bytes(drill))
    assert read.head == drill.head
    assert read.left == drill.left
    assert read.history.operations == drill.history.operations
    assert to_bytes(read) == to_bytes(drill)


def lose_a_write(drill: DrillHistory) -> None:
    drill.left["a"].remove(((1, 2), b"2"))


def exchange_a_value(drill: DrillHistory) -> None:
    drill.left["a"][1] = ((1, 2), b"other")


def acknowledge_by_the_deposed_owner(drill: DrillHistory) -> None:
    asked(drill, Outcome.OK, client=PROBE, key="p", value=b"6", version=(1, 3))
    drill.left["p"] = [((1, 3), b"6")]


def read_what_was_taken_back(drill: DrillHistory) -> None:
    asked(drill, Outcome.OK, kind=Kind.GET, key="b", value=b"7", version=(1, 4))


def read_an_old_value(drill: DrillHistory) -> None:
    asked(drill, Outcome.OK, kind=Kind.GET, value=b"1", version=(1, 1))


def carry_out_what_was_refused(drill: DrillHistory) -> None:
    asked(drill, Outcome.REFUSED, key="r", value=b"8")
    asked(drill, Outcome.OK, kind=Kind.GET, key="r", value=b"8", version=(2, 6))
    drill.left["r"] = [((2, 6), b"8")]


def lose_a_token(drill: DrillHistory) -> None:
    drill.history.oddities.append("a token was lost under replicated")


LIES: dict[Callable[[DrillHistory], None], tuple[int, int, str]] = {
    lose_a_write: (1, 0, "acknowledged write lost"),
    exchange_a_value: (1, 0, "acknowledged write lost"),
    acknowledge_by_the_deposed_owner: (0, 1, "had been succeeded"),
    read_what_was_taken_back: (0, 0, "a read showed what was taken back"),
    read_an_old_value: (0, 0, "version fell"),
    carry_out_what_was_refused: (0, 0, "not linearizable"),
    lose_a_token: (0, 0, "no client should be told"),
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_planted_lie_is_found_in_the_file(lie: Callable[[DrillHistory], None], tmp_path: Path) -> None:
    drill = good()
    lie(drill)
    file = tmp_path / "history.cbor.gz"
    file.write_bytes(to_bytes(drill))

    done = CliRunner().invoke(main, ["check-history", str(file), "-o", "json"])

    lost, stale, words = LIES[lie]
    found = json.loads(done.stdout)
    assert (done.exit_code, found["verdict"], found["lost"], found["staleAcknowledged"]) == (1, "bad", lost, stale)
    assert any(words in problem for problem in found["problems"]), found


def test_a_good_file_ends_with_status_0_and_a_table_for_people(tmp_path: Path) -> None:
    file = tmp_path / "history.cbor.gz"
    file.write_bytes(to_bytes(good()))
    done = CliRunner().invoke(main, ["check-history", str(file)])
    assert (done.exit_code, done.stderr) == (0, "")
    assert "good" in done.stdout


ROW = [0, 0, 0, b"1", None, 1, [1, 1], 1, 1, 0, 0]


def file_of(row: list[object], form: str = drill_history.FORMAT) -> bytes:
    return gzip.compress(encode([form, {}, ["a"], ["c"], [row], [], []]), mtime=0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"not gzip", "not gzip"),
        (to_bytes(good())[:-4], "cut short"),
        (to_bytes(good()) + b"x", "followed by something"),
        (gzip.compress(b"\xff", mtime=0), "malformed CBOR"),
        (file_of(ROW, "another form"), "form"),
        (file_of([*ROW[:8], None, 0, 0]), "no answer"),
        (file_of([9, *ROW[1:]]), "out of range"),
        (file_of([*ROW[:7], -1, 1, 0, 0]), "from 0"),
    ],
)
def test_what_is_no_history_is_refused_with_status_2(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=words):
        from_bytes(data)
    file = tmp_path / "history"
    file.write_bytes(data)
    assert CliRunner().invoke(main, ["check-history", str(file)]).exit_code == 2


def test_a_file_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill_history, "DECODED_BYTES_MAX", 50)
    with pytest.raises(Invalid, match="50 bytes"):
        from_bytes(to_bytes(good()))
