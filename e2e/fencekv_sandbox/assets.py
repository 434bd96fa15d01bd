"""Where the CRDs and the samples are: in the repository, or in the installed package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]


def crds() -> list[Object]:
    """The project's CustomResourceDefinitions."""
    return [obj for obj in load(_folder("crds", "_crds")) if obj.get("kind") == "CustomResourceDefinition"]


def samples() -> list[Object]:
    """The sample namespace and table."""
    return load(_folder("manifests/samples", "_samples"))


def load(path: Path) -> list[Object]:
    """The objects of a file, or of all YAML files of a folder; kustomizations themselves are no objects."""
    files: Sequence[Path] = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    return [obj for file in files for obj in parse(file.read_text())]


def parse(text: str) -> list[Object]:
    """The objects of a YAML text."""
    return [obj for obj in yaml.safe_load_all(text) if obj and obj.get("kind") != "Kustomization"]


def _folder(in_repository: str, installed: str) -> Path:
    here = Path(__file__).resolve().parent
    for folder in (here / installed, here.parents[1] / in_repository):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"neither {installed} in the package nor {in_repository} in the repository")
