"""What README.md says of a drill in kind, command by command as it stands there."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

import faults
import kind
from kubectl import say

MARK = "<!-- these commands are a test -->"
README = (kind.ROOT / "README.md").read_text(encoding="utf-8")
MINUTES_MAX = 5


def commands() -> list[str]:
    """The commands of the block behind the mark, without what is said of them."""
    block = README.partition(MARK)[2].partition("```\n")[2].partition("```")[0]
    return [line.partition(" #")[0].strip() for line in block.splitlines() if line.strip()]


@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(faults.available()), reason=faults.available() or "needs docker")
@pytest.mark.skipif(MARK not in README, reason=f"README.md has no block marked {MARK}")
def test_a_drill_in_five_minutes(tmp_path: Path) -> None:
    if kind.exists(kind.NAME):
        pytest.skip(f"the kind cluster {kind.NAME} is somebody's: the last command would delete it")
    said = commands()
    assert said[0] == "make image", said
    assert said[-1] == "make kind-stop", said
    # A person's own kubeconfig is in the home folder: another one.
    environment = {**os.environ, "HOME": str(tmp_path)}
    spent = 0.0
    try:
        for line in said:
            began = time.monotonic()
            say(f"$ {line}")
            subprocess.run(["sh", "-ec", line], cwd=kind.ROOT, env=environment, check=True, timeout=300)
            spent += time.monotonic() - began
    finally:
        if kind.exists(kind.NAME):
            kind.delete(kind.NAME, "--kubeconfig", str(tmp_path / "kubeconfig"))
    assert spent <= MINUTES_MAX * 60
