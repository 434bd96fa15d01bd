"""Having lives recorded: a process with the shim preloaded that forks a child for each."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from crash.shim import Event, Op, preloaded, read_log

LIVES: Final = ("owner", "threads", "trimming", "standby", "seeded")
TERMS: Final = 3

_LIB: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A life that was lived. `said`: what it wrote to its standard error."""

    folder: Path
    status: int
    events: tuple[Event, ...]
    said: str

    def marks(self, name: str) -> list[int]:
        """The places of the marks of that name."""
        return [at for at, event in enumerate(self.events) if event.op is Op.MARK and event.mark()[0] == name]


class Recorder:
    """The process; use it as a context.

    Args:
        library: the shim.
        folder: where lives are lived, and their logs lie; on a real disk or in memory, which changes nothing.
    """

    def __init__(self, library: Path, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        environment = preloaded(library)
        environment["PYTHONPATH"] = f"{_LIB}:{environment.get('PYTHONPATH', '')}".rstrip(":")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "crash.workload"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def new_folder(self) -> Path:
        """An empty folder for a life."""
        self._count += 1
        folder = self._folder / f"life-{self._count}"
        folder.mkdir(parents=True)
        return folder

    def record(
        self,
        life: str,
        seed: int,
        *,
        terms: int = TERMS,
        planted: str | None = None,
        fail: dict[str, Any] | None = None,
        folder: Path | None = None,
    ) -> Recording:
        """Lives a life. `planted`: with a bug; `fail`: with calls that fail, as `Shim.fail` takes them.

        `folder`: where, and what a crash left lies there; None: in a new one.
        """
        folder = folder or self.new_folder()
        log = folder.with_suffix(".log")
        names = {"life": life, "seed": seed, "terms": terms, "planted": planted, "fail": fail}
        job = {**names, "folder": str(folder), "log": str(log)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        said = Path(f"{log}.err").read_text()
        return Recording(folder=folder, status=status, events=tuple(read_log(log.read_bytes())), said=said)
