"""`python -m crash --states N`: all the crash states, in two processes; prints what was tried as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Final

from crash import shim
from crash.explore import Tally, run_share

WORKERS: Final = 2


def main() -> None:
    """Exit status 0: no state lies; 1: one does, and is printed."""
    parser = argparse.ArgumentParser(prog="python -m crash", description=__doc__)
    parser.add_argument("--states", type=int, default=100_000, help="distinct states to open, at least")
    states = parser.parse_args().states
    if sys.platform != "linux" or shim.compiler() is None:
        sys.exit("recording needs Linux and a C compiler (cc, gcc or clang)")
    began = time.monotonic()
    total = Tally()
    with tempfile.TemporaryDirectory(prefix="fencekv-shim-") as name:
        share = partial(run_share, shim.build(Path(name)), states, WORKERS)
        with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
            for tally in pool.imap_unordered(share, range(WORKERS)):
                total += tally
    document = {**dataclasses.asdict(total), "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps(document, indent=2))
    sys.exit(1 if total.findings else 0)


if __name__ == "__main__":
    main()
