"""The runner's folders.

    <data>/volumes/<namespace>/<claim>/          a volume; outlives pods and the runner
    <data>/logs/<namespace>/<pod>/<n>.log        output of the n-th container ever started under that pod's name
    <data>/run/<namespace>/<pod>/                termination messages, service account, record of the container

Invariants:
  * A file that another process reads is replaced by a rename, never seen half written.
  * A container's number is never used twice under one pod's name while its files exist.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

LOGS_KEPT_MAX: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is kept of a container, for the runner after this one."""

    uid: str  # of the pod
    container: str
    number: int
    restarts: int
    started_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFolders:
    """The folders of a pod's name."""

    data: Path
    namespace: str
    pod: str

    @property
    def run(self) -> Path:
        """Where the container works."""
        return self.data / "run" / self.namespace / self.pod

    @property
    def logs(self) -> Path:
        """Where its logs are."""
        return self.data / "logs" / self.namespace / self.pod

    @property
    def service_account(self) -> Path:
        """Where its credentials are."""
        return self.run / "serviceaccount"

    def volume(self, claim: str) -> Path:
        """Where a claim's files are."""
        return self.data / "volumes" / self.namespace / claim

    def log(self, number: int) -> Path:
        """The log of the container of this number."""
        return self.logs / f"{number}.log"

    def termination(self, number: int) -> Path:
        """The termination message file of the container of this number."""
        return self.run / f"termination-{number}"

    def next_number(self) -> int:
        """A number for a new container; old files are cleared away."""
        self.logs.mkdir(parents=True, exist_ok=True)
        numbers = sorted(int(file.stem) for file in self.logs.glob("*.log") if file.stem.isdigit())
        for number in numbers[:-LOGS_KEPT_MAX]:
            self.log(number).unlink(missing_ok=True)
            self.termination(number).unlink(missing_ok=True)
        return numbers[-1] + 1 if numbers else 0

    def write_account(self, *, token: str, authority: str) -> None:
        """Writes the service account's folder; an empty `authority`: the server speaks plain HTTP."""
        self.service_account.mkdir(parents=True, exist_ok=True)
        write_whole(self.service_account / "token", token)
        write_whole(self.service_account / "namespace", self.namespace)
        if authority:
            write_whole(self.service_account / "ca.crt", authority)
        else:
            (self.service_account / "ca.crt").unlink(missing_ok=True)

    def has_account(self) -> bool:
        """Whether credentials were written before."""
        return (self.service_account / "token").exists()

    def keep(self, record: Record) -> None:
        """Keeps the record of the current container."""
        write_whole(self.run / "container.json", json.dumps(asdict(record)))

    def kept(self) -> Record | None:
        """The record of the last container; None: there was none."""
        try:
            return Record(**json.loads((self.run / "container.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def clear(self) -> None:
        """Removes what belongs to one incarnation of the pod; volumes and logs stay."""
        shutil.rmtree(self.run, ignore_errors=True)


class FolderInUse(Exception):
    """Another process works in the data folder."""


@contextlib.contextmanager
def locked(file: Path, *, what: str) -> Iterator[None]:
    """Holds a lock on the file for as long as this process works in its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FolderInUse(f"{file.parent}: another {what} works here") from error
        yield


def write_whole(file: Path, text: str) -> None:
    """Replaces a file in one step; only its owner may read it."""
    beside = file.with_name(file.name + ".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(text)
    beside.replace(file)
