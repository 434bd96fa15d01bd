"""The recorded process: seeded lives of an owner and of a standby, told mark by mark while they are lived.

Run with the shim preloaded: it takes jobs from its standard input, a JSON document a line, lives each in a forked
child (the replica is opened after the fork), and answers each with the child's exit status.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Final

from crash import planted
from crash.owner_lives import full_disk_life, full_map_life, owner_life, threads_life, trimming_life
from crash.standby_lives import recovery, seeded_life, standby_life
from crash.told import shim
from fencekv_shard import limits
from fencekv_shard.__main__ import _commit_failed
from fencekv_shard.store import CommitFailed

STATUS_FAILED: Final = 3  # the life ended by an error that is no failed commit
SECONDS_MAX: Final = 15  # of a life; one that hangs is ended

LIVES: Final = {
    "owner": owner_life,
    "threads": threads_life,
    "trimming": trimming_life,
    "standby": standby_life,
    "seeded": seeded_life,
    "full disk": full_disk_life,
    "full map": full_map_life,
    "recovery": recovery,
}


# -- jobs ---------------------------------------------------------------------------------------------------------


def live(job: dict[str, Any]) -> int:
    """One life, in this process; gives the exit status."""
    signal.alarm(SECONDS_MAX)
    vars(limits)["ENDS_INLINE_MAX"] = 1  # few epochs are lived through: `meta.ends` is to be written all the same
    folder = Path(job["folder"])
    shim.begin(folder, Path(job["log"]))
    if job["planted"]:
        {**planted.PLANTED, **planted.PLANTED_ON_FAILURES}[job["planted"]]()

    def started() -> None:
        shim.mark("started")
        if job["fail"]:
            shim.fail(**job["fail"])

    life = LIVES[job["life"]]
    try:
        asyncio.run(life(random.Random(job["seed"]), folder, started, job["terms"]))
    except CommitFailed as error:
        _commit_failed(error)
    except Exception:
        traceback.print_exc()
        return STATUS_FAILED
    return 0


def main() -> None:
    """Jobs in, statuses out."""
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            with open(job["log"] + ".err", "w") as said:
                os.dup2(said.fileno(), 2)
            status = STATUS_FAILED
            try:
                status = live(job)
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, waited = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(waited)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
