"""Compiled programs are kept between test runs; what is learnt about this machine's speed is not."""

import functools
import gc
import os
import shutil
import signal
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


@pytest.fixture(scope="module", autouse=True)
def _programs_let_go():
    """Every compiled program takes four memory maps, and a process that has as many as Linux allows crashes: after a
    module that leaves it half full, all programs are let go.
    """
    yield
    maps, limit = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
    if maps.exists() and limit.exists() and maps.read_bytes().count(b"\n") > int(limit.read_text()) // 2:
        import jax

        jax.clear_caches()
        gc.collect()


def _register_tiny(patch):
    import tiny
    from neoteny import studies
    from neoteny.lab import execute

    # No commit but the last one and those asked for: how many there are must not depend on this machine's speed.
    patch.setattr(execute, "COMMIT_SHARE", -1.0)
    patch.setitem(studies.STUDIES, "tiny", "a question")
    patch.setitem(sys.modules, "neoteny.studies.tiny", tiny)
    return tiny


def _interrupt(patch, pack, kind, number=1, signum=signal.SIGINT):
    from neoteny.lab.execute import _Journal

    take, begun, seen = _Journal.take, [], []

    def take_and_interrupt(journal, tick):
        take(journal, tick)
        if journal not in begun:
            begun.append(journal)
        if len(begun) == pack and tick.kind == kind:
            seen.append(tick)
            if len(seen) == number:
                signal.raise_signal(signum)

    patch.setattr(_Journal, "take", take_and_interrupt)


@pytest.fixture
def tiny(monkeypatch):
    """The study `tiny`, found by the command line as if it were one of the library's."""
    return _register_tiny(monkeypatch)


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(pack, kind, number, signum): a signal arrives in the pack that is begun as the `pack`-th (from 1), when
    the `number`-th stretch of this kind of work is done there.
    """
    return functools.partial(_interrupt, monkeypatch)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory):
    """A finished run of the whole study `tiny`; not to be changed."""
    from neoteny.cli import main

    directory = tmp_path_factory.mktemp("tiny") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        _register_tiny(patch)
        assert main(["run", "tiny", "--preset", "smoke", "--out", str(directory)]) == 0
    return directory


@pytest.fixture(scope="session")
def stopped_once(tmp_path_factory):
    """The same run, interrupted in the second of its three packs while that trains; not to be changed."""
    from neoteny.cli import main

    directory = tmp_path_factory.mktemp("tiny") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        _register_tiny(patch)
        _interrupt(patch, 2, "train", 2)
        assert main(["run", "tiny", "--preset", "smoke", "--out", str(directory)]) == 130
    return directory


@pytest.fixture
def finished(finished_once, tmp_path, tiny):
    """A copy of a finished run of the study `tiny`."""
    return Path(shutil.copytree(finished_once, tmp_path / "finished"))


@pytest.fixture
def stopped(stopped_once, tmp_path, tiny):
    """A copy of a run of `tiny` of whose packs one is finished, one begun and one not."""
    return Path(shutil.copytree(stopped_once, tmp_path / "stopped"))
