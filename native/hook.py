"""Compiles the modules on the way of a write into the wheel, where that is asked for.

A build hook of hatchling, off unless HATCH_BUILD_HOOK_ENABLE_CUSTOM is true: docs/decisions/0007-compiled.md. The
sources stay in the wheel, and are what runs from an editable install.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = ("client", "shard")  # folders that hold packages
GROUP = "fencekv_native"  # the library that the compiled modules share


class Compiled(BuildHookInterface[Any]):
    """`modules` in the hook's table names the modules' files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles, and adds what came of it to the wheel."""
        if version == "editable":
            return
        out = Path(self.root) / "build" / "native"
        libraries = compiled(Path(self.root), self.config["modules"], out)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"].update({str(path): str(path.relative_to(out / "lib")) for path in libraries})


def compiled(root: Path, modules: list[str], out: Path) -> list[Path]:
    """The shared objects of `modules`, below out/lib as they lie in a wheel. Raises CalledProcessError."""
    shutil.rmtree(out / "lib", ignore_errors=True)  # what an earlier list named would hide its source, and break
    out.mkdir(parents=True, exist_ok=True)
    setup = out / "setup.py"
    setup.write_text(
        "from mypyc.build import mypycify\n"
        "from setuptools import setup\n"
        f"modules = mypycify({modules!r}, opt_level='2', debug_level='0', multi_file=True, group_name={GROUP!r})\n"
        f"setup(name={GROUP!r}, packages=[], ext_modules=modules)\n"
    )
    environment = {**os.environ, "MYPYPATH": os.pathsep.join((*SOURCES, "operator", "e2e"))}
    command = [sys.executable, str(setup), "-q", "build_ext", f"-j{os.cpu_count() or 1}"]
    folders = ["--build-lib", str(out / "lib"), "--build-temp", str(out / "temp")]
    subprocess.run([*command, *folders], cwd=root, env=environment, check=True)
    return sorted((out / "lib").rglob("*.so"))
