"""The persistent compilation cache is on by default, and stays where a person put it."""

from __future__ import annotations

import os
import subprocess
import sys


def where(tmp_path, **chosen: str) -> str:
    code = (
        "import jax; from neoteny.training.compilations import use_compilation_cache; use_compilation_cache();"
        "jax.jit(lambda x: x + 1)(1.0); print(jax.config.jax_compilation_cache_dir)"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = {**kept, "NEOTENY_CACHE": str(tmp_path / "cache"), **chosen}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return found.stdout.strip()


def test_it_is_in_neotenys_own_cache_unless_jax_was_told_otherwise(tmp_path):
    assert where(tmp_path) == str(tmp_path / "cache" / "jax")
    elsewhere = str(tmp_path / "elsewhere")
    assert where(tmp_path, JAX_COMPILATION_CACHE_DIR=elsewhere) == elsewhere
