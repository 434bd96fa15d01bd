"""Writes manifests/install.yaml: what `kubectl apply -k manifests/` installs, as one file.

    python manifests/generate_install.py            write it
    python manifests/generate_install.py --check    status 1 if it is not what the kustomization says

Invariants:
  * The file depends on the kustomizations and the files that they name alone: the same files give the same bytes.
  * A kustomization that does more than list resources is refused, because nothing here would do that.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml

FOLDER: Final = Path(__file__).resolve().parent
INSTALL: Final = FOLDER / "install.yaml"
KEYS: Final = {"apiVersion", "kind", "resources"}
HEAD: Final = """# Everything that FenceKV needs in a cluster.
# Made from manifests/ and crds/ by `make install-yaml`; do not edit.
#
#   kubectl apply -f install.yaml
"""


class NotPlain(ValueError):
    """A kustomization asks for more than its resources; the message names the file and the keys."""


def install_text() -> str:
    """The whole file."""
    return "---\n".join([HEAD, *(file.read_text(encoding="utf-8") for file in files(FOLDER))])


def files(folder: Path) -> Iterator[Path]:
    """The files of a folder's kustomization in its order. Raises NotPlain."""
    path = folder / "kustomization.yaml"
    kustomization = yaml.safe_load(path.read_text(encoding="utf-8"))
    if more := kustomization.keys() - KEYS:
        raise NotPlain(f"{path}: install.yaml cannot follow {', '.join(sorted(more))}; put it into an overlay")
    for name in kustomization["resources"]:
        named = (folder / name).resolve()
        if named.is_dir():
            yield from files(named)
        else:
            yield named


def main() -> int:
    """Writes or checks the file."""
    parser = argparse.ArgumentParser(description="Writes manifests/install.yaml.")
    parser.add_argument("--check", action="store_true", help="only say whether the file is up to date")
    wanted = install_text()
    if parser.parse_args().check:
        if INSTALL.exists() and INSTALL.read_text(encoding="utf-8") == wanted:
            return 0
        print("manifests/install.yaml is not what manifests/ and crds/ say: run `make install-yaml`")
        return 1
    INSTALL.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
