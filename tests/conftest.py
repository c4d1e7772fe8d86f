"""Compiled programs are kept between test runs; what is learnt about this machine's speed is not."""

import os
import sys
from pathlib import Path

import pytest

# Read by JAX when it is imported, so set here and not in a fixture.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    os.environ["NEOTENY_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tiny(monkeypatch):
    """The study `tiny`, found by the command line as if it were one of the library's."""
    import tiny as module
    from neoteny import studies

    monkeypatch.setitem(studies.STUDIES, "tiny", "a question")
    monkeypatch.setitem(sys.modules, "neoteny.studies.tiny", module)
    return module
