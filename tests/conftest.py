"""Compiled programs are kept between test runs; what is learnt about this machine's speed is not."""

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

STOPPED_AT = 20
"""Stretches of work after which the run of `stopped` gets its signal: in the second pack's first task."""


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    os.environ["NEOTENY_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def _register_tiny(patch):
    import tiny
    from neoteny import studies

    patch.setitem(studies.STUDIES, "tiny", "a question")
    patch.setitem(sys.modules, "neoteny.studies.tiny", tiny)
    return tiny


def _interrupt(patch, ticks, signum=signal.SIGINT):
    from neoteny.lab.execute import StopFlag

    left, ask = [ticks], StopFlag.raise_if_set

    def raise_if_set(flag):
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signum)
        else:
            ask(flag)

    patch.setattr(StopFlag, "raise_if_set", raise_if_set)


@pytest.fixture
def tiny(monkeypatch):
    """The study `tiny`, found by the command line as if it were one of the library's."""
    return _register_tiny(monkeypatch)


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(ticks, signum) makes a signal arrive once so many stretches of work are done."""
    return lambda ticks, signum=signal.SIGINT: _interrupt(monkeypatch, ticks, signum)


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
        _interrupt(patch, STOPPED_AT)
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
