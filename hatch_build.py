"""Compiles the one C file when the wheel is built. Where there is no compiler the wheel is pure Python and falls back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC", "-Wno-psabi"]


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        room = Path(self.root) / "src" / "gossamer" / "tunable"
        source, library = room / "sampled.c", room / "_sampled.so"
        library.unlink(missing_ok=True)
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            self.app.display_warning(
                "no C compiler (cc): built without the compiled kernel, which makes training slower"
            )
            return
        made = subprocess.run([compiler, *FLAGS, "-o", library, source], capture_output=True, text=True)
        if made.returncode:
            self.app.display_warning(f"built without the compiled kernel, which makes training slower:\n{made.stderr}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append("src/gossamer/tunable/_sampled.so")
