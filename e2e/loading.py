"""The load in the client's pod, driven from here.

It is a process of its own in that pod: it goes on, and loses no record, while the API server that `kubectl exec`
goes through is away.

Invariants:
  * What is judged is the file of the whole run, read when the load has ended; following it is only for waiting.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time  # noqa: TID251 - how long a cluster takes
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from history import Records
from kubectl import Cluster, Failed, Lines, TooLate

EXECS_MAX: Final = 5
PROGRAM: Final = (Path(__file__).parent / "load.py").read_text(encoding="utf-8")
PUTS_PER_SECOND: Final = 200
# Stubborn writers of each shard; one beside very many partitions: three add half as many puts to the steady ones.
STUBBORN_EACH: Final = 3
STUBBORN_EACH_OF_VERY_MANY: Final = 1
STEADY_PUTS: Final = 300
STEADY_SECONDS_MAX: Final = 60.0
END_SECONDS_MAX: Final = 120.0
# Starts a program beside itself and gives its process number: the process outlives this exec.
START: Final = """
import subprocess, sys
program, order, records = sys.argv[1:]
with open(records, "wb") as out, open(records + ".err", "wb") as errors:
    child = subprocess.Popen([sys.executable, "-c", program, order], stdin=subprocess.DEVNULL, stdout=out,
                             stderr=errors, start_new_session=True)
print(child.pid)
"""
SIGNAL: Final = "import os, sys; os.kill(int(sys.argv[1]), int(sys.argv[2]))"
# Writes {"now": …} of the pod's clock and then the lines that come to a file, until its last line is there, or
# nothing was for two minutes; "all": those that are there already as well. Many lines at once: each write travels
# alone.
FOLLOW: Final = """
import os, sys, time
path, which = sys.argv[1:]
print('{"now": %r}' % time.monotonic(), flush=True)
with open(path) as lines:
    if which != "all":
        # From the beginning of a line: the one before may be half written.
        lines.seek(max(0, os.path.getsize(path) - 4096))
        rest = lines.read().rpartition("\\n")[2] if os.path.getsize(path) else ""
    else:
        rest = ""
    idle = 0
    while idle < 2400:
        rest += lines.read()
        whole, newline, rest = rest.rpartition("\\n")
        if newline:
            sys.stdout.write(whole + newline)
            sys.stdout.flush()
            if whole.rpartition("\\n")[2].startswith('{"end"'):
                break
        idle = 0 if newline else idle + 1
        time.sleep(0.05)
"""


class Load:
    """A load that runs. Made by `loading`."""

    def __init__(self, cluster: Cluster, *, records: str, process: str) -> None:
        self._cluster, self._records, self._process = cluster, records, process
        self._ended = False
        self._partitions: set[str] = set()

    @contextlib.contextmanager
    def following(self, which: str = "new") -> Iterator[Lines]:
        """Its records as they come, after a line with its clock's time; `which` "all": from the beginning."""
        words = ("exec", "-i", "fencekv-client", "--", "python", "-c", FOLLOW, self._records, which)
        with self._cluster.watching(*words) as lines:
            yield lines

    def begin(self) -> None:
        """Waits until the load has found its table."""
        with self.following("all") as lines:
            while "begin" not in (line := json.loads(lines.next(seconds=STEADY_SECONDS_MAX))):
                pass
        self._partitions = set(line["partitions"])

    def now(self) -> float:
        """The time of the clock that the records have."""
        for _ in range(EXECS_MAX):
            # kubectl can lose what a command printed that ended at once.
            if told := self._cluster.run("python", "-c", "import time; print(time.monotonic())").strip():
                return float(told)
        raise AssertionError(f"the client's pod did not tell its clock in {EXECS_MAX} attempts")

    def acknowledges(
        self,
        *,
        above: Mapping[str, int] | None = None,
        more: int = STEADY_PUTS,
        seconds: float = STEADY_SECONDS_MAX,
    ) -> None:
        """Waits until every partition has acknowledged a put that was sent from now on, and so many were in all.

        `above`: under a higher epoch than these.

        Raises:
            TooLate: they did not in time.
        """
        deadline, missing, seen, count = time.monotonic() + seconds, set(self._partitions), Records(), 0
        with self.following() as lines:
            now = json.loads(lines.next(seconds=seconds))["now"]
            while missing or count < more:
                seen.add(json.loads(lines.next(seconds=seconds)))
                if seen.puts and (put := seen.puts.pop()).sent > now and not put.shard:
                    count += 1
                    if put.epoch > (above or {}).get(put.partition, 0):
                        missing.discard(put.partition)
                if time.monotonic() > deadline:
                    raise TooLate(f"{count} puts acknowledged, none by {missing}; failed: {seen.failures[-3:]}")

    def end(self) -> Records:
        """Ends the writing, and has everything read back."""
        self._signal(15)
        records = Records()
        with self.following("all") as lines:
            lines.next(seconds=END_SECONDS_MAX)  # the time
            while records.stopped is None:
                records.add(json.loads(lines.next(seconds=END_SECONDS_MAX)))
        self._ended = True
        return records

    def abort(self) -> None:
        """Ends the process, if it still runs."""
        if not self._ended:
            with contextlib.suppress(Failed):
                self._signal(9)

    def forget(self) -> None:
        """Removes the records."""
        with contextlib.suppress(Failed):
            self._cluster.run("rm", "-f", self._records, f"{self._records}.err")

    def errors(self) -> str:
        """What the program wrote to its standard error."""
        return self._cluster.run("cat", f"{self._records}.err")

    def _signal(self, number: int) -> None:
        self._cluster.run("python", "-c", SIGNAL, self._process, str(number))


@contextlib.contextmanager
def loading(
    cluster: Cluster,
    *,
    per_second: float = PUTS_PER_SECOND,
    table: str = "orders",
    stubborn_each: int = STUBBORN_EACH,
) -> Iterator[Load]:
    """A steady load on a table of the sample, and stubborn writers at each shard."""
    pods = cluster.get("pods", "-l", "fencekv.io/kind=shard")["items"]
    run = secrets.token_hex(4)
    order = {
        "namespace": "sample",
        "table": table,
        "prefix": f"load-{run}-",
        "per_second": per_second,
        "stubborn_each": stubborn_each,
        "shards": [f"{pod['status']['podIP']}:7070" for pod in pods],
    }
    records = f"/records/{run}"
    process = cluster.run("python", "-c", START, PROGRAM, json.dumps(order), records).strip()
    load = Load(cluster, records=records, process=process)
    try:
        load.begin()
        load.acknowledges()
        yield load
    except BaseException:
        with contextlib.suppress(Failed):
            print(load.errors())
        raise
    finally:
        load.abort()
        load.forget()
