"""Undoes a fault: when told to, when its time is over, or when whoever did it is gone.

    python guardian.py '{"name": …, "seconds": …, "tries_seconds": …, "undo": [[word, …], …], "check": [word, …],
                         "log": PATH}'

Started before the harm is done, in a session of its own, with its standard input on a pipe. It writes `ready`, and
waits for a line (told), the end of its input (gone: who dies closes its pipes) or the seconds (expired). Then it
undoes, and writes how that went as one line of JSON: {"name", "reason", "undone", "problems"}; to the log as well,
unless it was told and succeeded: nobody may be left to read the pipe.

Invariants:
  * There is one way in which a fault is undone, and this is it: what every test exercises is what works when a
    test dies.
  * `undone` is said only after `check`, which looks at the world and not at what undoing returned, has succeeded.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time  # noqa: TID251 - a program of its own: this is its composition root
from pathlib import Path
from typing import Any, Final

COMMAND_SECONDS_MAX: Final = 30.0
PAUSE_SECONDS: Final = 0.5
PROBLEMS_MAX: Final = 20
# What a terminal or a runner sends to everything at once must not stop what cleans up behind it.
DEAF_TO: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


def wait(seconds: float) -> str:
    """Why it is time to undo."""
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    if not readable:
        return "expired"
    return "told" if os.read(sys.stdin.fileno(), 1) else "gone"


def run(words: list[str]) -> str:
    """Runs a command; gives what went wrong, empty if nothing."""
    try:
        done = subprocess.run(  # noqa: S603 - commands of the suite's own
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{' '.join(words)}: {error}"
    return "" if done.returncode == 0 else f"{' '.join(words)}: status {done.returncode}: {done.stderr.strip()}"


def undo(commands: list[list[str]], check: list[str], *, seconds: float) -> tuple[bool, list[str]]:
    """Undoes until the check succeeds or the time is over; gives whether it did, and what went wrong."""
    problems: list[str] = []
    deadline = time.monotonic() + seconds
    while True:
        tried = [problem for words in commands if (problem := run(words))]
        left = run(check)
        if not left:
            return True, problems
        problems = [*problems, *tried, left][-PROBLEMS_MAX:]
        if time.monotonic() > deadline:
            return False, problems
        time.sleep(PAUSE_SECONDS)


def main(order: dict[str, Any]) -> int:
    """Waits, undoes, says so; gives the exit status."""
    for number in DEAF_TO:
        signal.signal(number, signal.SIG_IGN)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    reason = wait(order["seconds"])
    undone, problems = undo(order["undo"], order["check"], seconds=order["tries_seconds"])
    line = json.dumps({"name": order["name"], "reason": reason, "undone": undone, "problems": problems})
    if reason != "told" or not undone:
        with Path(order["log"]).open("a", encoding="utf-8") as log:
            log.write(line + "\n")
    with contextlib.suppress(OSError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return 0 if undone else 1


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
