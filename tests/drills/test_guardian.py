"""A fault is undone whatever becomes of the process that did it, and says so when it could not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import guarding
from guarding import Fault, NotUndone, done

# Does the fault of its arguments, says so, and waits for what never comes.
DOER = """
import sys, guarding
name, mark, told = sys.argv[1:]
undo = f"rm -f {mark}; echo undone >{told}"
check = ("test", "!", "-e", mark)
with guarding.done(guarding.Fault(name=name, harm=[("touch", mark)], undo=[("sh", "-c", undo)], check=check)):
    print("done", flush=True)
    sys.stdin.read()
"""


def fault_of(mark: Path, *, undo: tuple[str, ...] = (), seconds: float = 60.0) -> Fault:
    return Fault(
        name="a mark",
        harm=[("touch", str(mark))],
        undo=[undo or ("rm", "-f", str(mark))],
        check=("test", "!", "-e", str(mark)),
        expires_seconds=seconds,
        tries_seconds=0.1,
    )


def test_it_is_there_within_and_gone_afterwards(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with done(fault_of(mark)):
        assert mark.exists()
    assert not mark.exists()


def test_it_can_be_undone_early_and_once_is_enough(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with done(fault_of(mark)) as fault:
        fault.undo()
        assert not mark.exists()
        fault.undo()


def test_an_error_within_undoes_it_and_is_not_hidden(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(ZeroDivisionError), done(fault_of(mark)):
        raise ZeroDivisionError
    assert not mark.exists()


def test_harm_that_fails_half_way_is_undone_too(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    fault = Fault(
        name="two steps",
        harm=[("touch", str(mark)), ("false",)],
        undo=[("rm", "-f", str(mark))],
        check=("test", "!", "-e", str(mark)),
    )
    with pytest.raises(AssertionError, match="false: status 1"), done(fault):
        pytest.fail("it was not done")
    assert not mark.exists()


@pytest.mark.parametrize("kill", [os.kill, os.killpg], ids=["the process", "its whole group"])
def test_it_is_undone_when_its_doer_is_killed(
    kill: Callable[[int, int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, told = tmp_path / "mark", tmp_path / "told"
    os.mkfifo(told)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", DOER, "a mark", str(mark), str(told)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as doer:
        assert doer.stdout is not None
        assert [doer.stdout.readline() for _ in range(2)] == ["-- fault: a mark\n", "done\n"]
        assert mark.exists()
        kill(doer.pid, signal.SIGKILL)
        assert told.read_text() == "undone\n"  # waits until somebody has undone it
    assert not mark.exists()


def test_what_could_not_be_undone_is_an_error_and_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarding, "LOG", tmp_path / "log")
    with pytest.raises(NotUndone, match="could not be undone"), done(fault_of(tmp_path / "mark", undo=("false",))):
        pass
    assert json.loads((tmp_path / "log").read_text())["undone"] is False


def test_a_fault_whose_time_is_over_is_undone_and_no_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, told = tmp_path / "mark", tmp_path / "told"
    os.mkfifo(told)
    monkeypatch.setattr(guarding, "LOG", tmp_path / "log")
    undo = ("sh", "-c", f"rm -f {mark}; echo undone >{told}")
    with pytest.raises(NotUndone, match="too early"), done(fault_of(mark, undo=undo, seconds=1.0)):
        assert told.read_text() == "undone\n"
    assert json.loads((tmp_path / "log").read_text())["reason"] == "expired"
