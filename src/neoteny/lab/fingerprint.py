"""What the bits of a run depend on besides its configuration: the sources that compute, and the machine."""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from neoteny.errors import UsageError
from neoteny.lab.study import Experiment

_ROOMS = ("networks", "tasks", "learners", "agents", "regularizers", "interventions", "probes", "training")

_PACKAGE = Path(__file__).resolve().parent.parent


def own_files(experiment: Experiment) -> dict[str, Path]:
    """Name -> path of the files an experiment is in: all those of its study's folder, and what studies share; empty
    for one typed at a prompt.
    """
    files: dict[str, Path] = {}
    parts = (experiment.config, experiment.stream, experiment.learner, experiment.script, experiment.source)
    for path in {_source_file(part) for part in parts if part is not None} - {None}:
        assert path is not None
        inside = path.is_relative_to(_PACKAGE)
        # a study that is a folder is all its files
        studies = _PACKAGE / "studies"
        folder = inside and path.parent.parent == studies
        shared = [file for file in sorted(studies.glob("*.py")) if file.name != "__init__.py"]
        for file in [*sorted(path.parent.glob("*.py")), *shared] if folder else (path,):
            files[str(file.relative_to(_PACKAGE)) if inside else file.name] = file
    return files


def code_fingerprint(experiment: Experiment) -> dict[str, str]:
    """File -> hash of its source: the library's computing rooms, and the files the experiment is in."""
    files = {
        str(path.relative_to(_PACKAGE)): path for room in _ROOMS for path in sorted((_PACKAGE / room).rglob("*.py"))
    }
    files["lab/configs.py"] = _PACKAGE / "lab" / "configs.py"
    files |= own_files(experiment)
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in sorted(files.items())}


def _source_file(part: object) -> Path | None:
    """The file of a function or class; None for one typed at a prompt or made by `functools.partial`."""
    try:
        source = inspect.getsourcefile(part)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return None
    path = None if source is None else Path(source).resolve()
    return path if path is not None and path.is_file() else None


def changed_files(stored: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Files whose sources differ, appeared or went."""
    return sorted(name for name in {*stored, *now} if stored.get(name) != now.get(name))


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def available_cores() -> list[int]:
    """The cores this process may use; empty where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []


def devices() -> list[Any]:
    """JAX's devices; UsageError if the platform that was asked for cannot be used."""
    import jax

    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        # JAX_PLATFORMS=cuda without a CUDA plugin ends in a bare assertion inside JAX.
        first = str(error).partition("\n")[0] or f"none for {os.environ.get('JAX_PLATFORMS')}"
        raise UsageError(
            f"JAX finds no device: {first}; check JAX_PLATFORMS, and the driver and jaxlib of it"
        ) from error


def machine(cores: int = 0) -> dict[str, object]:
    """What bitwise repetition depends on: versions, platform, processor type and thread count.

    cores: threads of the processes that will compute, if not those of this one (0).
    """
    import jax

    device = devices()[0]
    return {
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "optax": metadata.version("optax"),
        "equinox": metadata.version("equinox"),
        "numpy": metadata.version("numpy"),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "platform": device.platform,
        "device": device.device_kind if device.platform != "cpu" else _processor(),
        "machine": platform.machine(),
        "threads": cores or len(available_cores()) or os.cpu_count(),
    }
