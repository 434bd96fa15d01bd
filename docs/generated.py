"""What the generators of this folder share: a file is written, or only compared with what it should be."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]


def main(path: Path, wanted: str, *, source: str, how: str) -> int:
    """Writes or checks a file; gives the exit status.

    `source`: what the file is made from; `how`: what writes it anew. Both for people.
    """
    name = path.relative_to(ROOT)
    parser = argparse.ArgumentParser(description=f"Writes {name} from {source}.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    if not parser.parse_args().check:
        path.write_text(wanted, encoding="utf-8")
        return 0
    if path.exists() and path.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{name} is not what it would be made from {source}: run `{how}`")
    return 1
