"""A run that is told to end leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[1] / "lib" / "stoppable.py"
SECONDS_MAX = 10.0


class Run:
    """A process that runs `stoppable.py`, and its server."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0, start_new_session=True)
        assert self.process.stdout is not None
        self.told = self.process.stdout
        self.server = int(self.line().removeprefix("server "))
        self.descriptor = os.pidfd_open(self.server)

    def line(self) -> str:
        """The next line that it says; empty: it says nothing more."""
        line = b""
        while not line.endswith(b"\n"):
            assert select.select([self.told], [], [], SECONDS_MAX)[0], f"nothing said after {line!r}"
            byte = self.told.read(1)
            if not byte:
                break
            line += byte
        return line.decode().strip()

    def server_ended(self) -> bool:
        """Waits for the end of the server."""
        return bool(select.select([self.descriptor], [], [], SECONDS_MAX)[0])

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.server, signal.SIGKILL)
        self.process.wait()
        self.told.close()
        os.close(self.descriptor)


@pytest.fixture(name="fifo")
def make_fifo(tmp_path: Path) -> Path:
    path = tmp_path / "go"
    os.mkfifo(path)
    return path


def go(fifo: Path) -> None:
    """Lets it clear up."""
    fifo.write_bytes(b".")


@pytest.fixture(name="run")
def start(fifo: Path) -> Iterator[Run]:
    run = Run([sys.executable, str(PROGRAM), str(fifo)])
    yield run
    run.end()


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_what_was_started_also_if_they_come_while_it_is_ended(
    run: Run, fifo: Path, first: signal.Signals, second: signal.Signals
) -> None:
    run.process.send_signal(first)
    assert run.line() == "clearing"
    run.process.send_signal(second)
    go(fifo)
    assert run.process.wait(SECONDS_MAX) == 130
    assert run.server_ended()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere no kernel tells of a parent's end")
def test_the_end_of_the_shell_in_between_ends_it_too(fifo: Path) -> None:
    command = f'"{sys.executable}" "{PROGRAM}" "{fifo}" --with-parent; echo never'
    run = Run(["sh", "-c", command])
    try:
        run.process.kill()
        assert run.line() == "clearing"
        go(fifo)
        assert run.server_ended()
        assert run.line() == ""  # the program has ended as well: nobody holds its stdout
    finally:
        run.end()
