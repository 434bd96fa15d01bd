"""Writes manifests/install.yaml: what `kubectl apply -k manifests/` installs, as one file.

    python docs/generate_install.py            write it
    python docs/generate_install.py --check    status 1 if it is not what the kustomization says

Invariants:
  * The file depends on the kustomizations and the files that they name alone: the same files give the same bytes.
  * A kustomization that does more than list resources is refused, because nothing here would do that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml
from generated import ROOT, main

FOLDER: Final = ROOT / "manifests"
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


if __name__ == "__main__":
    raise SystemExit(main(INSTALL, install_text(), source="manifests/ and crds/", how="make install-yaml"))
