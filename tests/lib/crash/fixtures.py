"""Fixtures of the crash suite: the shim, built once, and a folder in memory where there is one."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from crash import shim
from crash.explore import fast_folder


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shim."""
    if sys.platform != "linux":
        pytest.skip("recording needs Linux: it preloads a library and knows its system calls")
    if shim.compiler() is None:
        pytest.skip("recording needs a C compiler (cc, gcc or clang): there is none")
    return shim.build(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def scratch() -> Iterator[Path]:
    """An empty folder."""
    with tempfile.TemporaryDirectory(dir=fast_folder(), prefix="fencekv-crash-") as name:
        yield Path(name)
