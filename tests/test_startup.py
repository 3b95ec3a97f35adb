"""`import gossamer` stays light: what is heavy is imported where it is used."""

import subprocess
import sys

HEAVY = ("transformers", "datasets", "peft", "accelerate", "pandas", "scipy", "matplotlib", "rich")


def test_import_gossamer_imports_nothing_heavy():
    code = "import sys, torch; before = set(sys.modules); import gossamer; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    imported = {name.split(".")[0] for name in done.stdout.split()}
    assert "gossamer" in imported
    assert not imported & set(HEAVY)
