"""A cluster as the e2e suite sees it: through `kubectl`, as its users do.

Invariants:
  * Waiting is done by watching, never by looking again and again.
  * Every command has a deadline; one that fails raises with what it wrote.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Object = dict[str, Any]

COMMAND_SECONDS = 60.0
LOGS = ("--tail=200", "--prefix")  # of each container, in a report


class Failed(AssertionError):
    """A command ended with a status other than 0, or did not end in time."""


class TooLate(AssertionError):
    """What was waited for did not come."""


def say(text: str) -> None:
    """Shows a line of progress."""
    sys.stdout.write(f"-- {text}\n")
    sys.stdout.flush()


def command(
    *words: str,
    stdin: str | None = None,
    seconds: float = COMMAND_SECONDS,
    environment: dict[str, str] | None = None,
) -> str:
    """Runs a command; gives its output.

    Raises:
        Failed: it did not succeed.
    """
    try:
        done = subprocess.run(  # noqa: S603 - commands of the suite's own
            words,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=os.environ | (environment or {}),
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{' '.join(words)}: no end after {seconds:g} s") from error
    if done.returncode != 0:
        raise Failed(f"{' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class Lines:
    """The output of a running command, line by line as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._queue: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def next(self, *, seconds: float) -> str:
        """The next line.

        Raises:
            TooLate: none came in time.
            Failed: the command has ended.
        """
        try:
            line = self._queue.get(timeout=seconds)
        except queue.Empty:
            raise TooLate(f"no further output within {seconds:g} s") from None
        if line is None:
            self._queue.put(None)
            raise Failed(f"{self._process.args!r} has ended")
        return line

    def end(self, *, seconds: float) -> list[str]:
        """Closes the command's input; gives the lines that it still writes until it ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        rest: list[str] = []
        with contextlib.suppress(Failed):
            while True:
                rest.append(self.next(seconds=seconds))
        if self._process.wait(timeout=seconds) != 0:
            raise Failed(f"{self._process.args!r}: status {self._process.returncode}")
        return rest

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed while reading: nobody waits any more
            for line in self._process.stdout:
                self._queue.put(line.rstrip("\n"))
        self._queue.put(None)


@contextlib.contextmanager
def running(*words: str, environment: dict[str, str] | None = None) -> Iterator[Lines]:
    """Runs a command beside us, and ends it."""
    with subprocess.Popen(  # noqa: S603 - commands of the suite's own
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | (environment or {})
    ) as process:
        try:
            yield Lines(process)
        finally:
            process.kill()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """A container that did not go on running."""

    namespace: str
    pod: str
    container: str
    count: int
    last_state: Object  # how it ended before: status, reason, message, times


def restarted(pods: Iterable[Object]) -> list[Restarted]:
    """The containers of these pods that were restarted."""
    return [
        Restarted(
            namespace=pod["metadata"]["namespace"],
            pod=pod["metadata"]["name"],
            container=each["name"],
            count=each["restartCount"],
            last_state=each["lastState"],
        )
        for pod in pods
        for each in pod["status"].get("containerStatuses", ())
        if each["restartCount"]
    ]


class Cluster:
    """A cluster by its kubeconfig; everything in the namespace `default` unless said otherwise."""

    def __init__(self, kubeconfig: Path) -> None:
        self.environment = {"KUBECONFIG": str(kubeconfig)}
        self.installed_seconds: float | None = None  # what the first installation took. None: it was none of ours.

    def kubectl(self, *words: str, stdin: str | None = None, seconds: float = COMMAND_SECONDS) -> str:
        """Runs kubectl; gives its output."""
        return command("kubectl", *words, stdin=stdin, seconds=seconds, environment=self.environment)

    def tool(self, *words: str) -> str:
        """Runs another program that finds the cluster by its kubeconfig; gives its output."""
        return command(*words, environment=self.environment)

    def watching(self, *words: str) -> contextlib.AbstractContextManager[Lines]:
        """Runs kubectl beside us."""
        return running("kubectl", *words, environment=self.environment)

    def get(self, *words: str) -> Object:
        """An object, or a list of them."""
        found: Object = json.loads(self.kubectl("get", *words, "-o", "json"))
        return found

    def names(self, *words: str) -> list[str]:
        """Names of the objects that are found."""
        return [item["metadata"]["name"] for item in self.get(*words)["items"]]

    def wait(self, *words: str, seconds: float = COMMAND_SECONDS) -> None:
        """`kubectl wait`."""
        self.kubectl("wait", f"--timeout={seconds:g}s", *words, seconds=seconds + 10)

    def until(self, *words: str, path: str, holds: Callable[[str], bool], seconds: float = COMMAND_SECONDS) -> str:
        """Watches an object until the value at `path` satisfies; gives that value."""
        shown = f'jsonpath={{{path}}}{{"\\n"}}'
        with self.watching("get", *words, "--watch", "-o", shown) as lines:
            while True:
                value = lines.next(seconds=seconds)
                if holds(value):
                    return value

    def run(self, *words: str, stdin: str | None = None, seconds: float = COMMAND_SECONDS) -> str:
        """Runs a command in the client's pod."""
        return self.kubectl("exec", "-i", "fencekv-client", "--", *words, stdin=stdin, seconds=seconds)

    def report(self) -> None:
        """Shows what a person would look at when something went wrong."""
        for words in (
            ["get", "pods,kvns,kvt,kvp", "-A", "-o", "wide"],
            ["get", "leases", "-n", "default"],
            ["get", "events", "-A", "--sort-by=.lastTimestamp"],
            ["logs", "-n", "fencekv-system", "deployment/fencekv-operator", "--all-pods", *LOGS],
            ["logs", "-l", "fencekv.io/kind=shard", *LOGS],
        ):
            self._show(*words)
        with contextlib.suppress(Failed):
            for each in restarted(
                self.get("pods", "-A", "--field-selector=metadata.namespace!=kube-system")["items"]
            ):
                ended = json.dumps(each.last_state, indent=2)
                say(f"{each.namespace}/{each.pod}: {each.container} restarted {each.count} times, before: {ended}")
                self._show("logs", "-n", each.namespace, each.pod, "-c", each.container, "--previous", *LOGS)

    def _show(self, *words: str) -> None:
        with contextlib.suppress(Failed):
            say(f"kubectl {' '.join(words)}\n{self.kubectl(*words)}")
