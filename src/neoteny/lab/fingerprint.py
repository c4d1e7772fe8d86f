"""What the bits of a run depend on besides its configuration: the sources that compute, and the machine."""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from neoteny.lab.study import Experiment

_ROOMS = ("networks", "tasks", "learners", "regularizers", "interventions", "probes", "training")


def code_fingerprint(experiment: Experiment) -> dict[str, str]:
    """File -> hash of its source, for the library's computing rooms and the file the experiment is written
    in.
    """
    package = Path(__file__).resolve().parent.parent
    files = {
        str(p.relative_to(package)): p for room in _ROOMS for p in sorted((package / room).rglob("*.py"))
    }
    for function in (experiment.config, experiment.stream, experiment.learner, experiment.script):
        source = inspect.getsourcefile(function)
        if source is not None:
            path = Path(source).resolve()
            inside = path.is_relative_to(package)
            files[str(path.relative_to(package)) if inside else path.name] = path
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in sorted(files.items())}


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


def machine() -> dict[str, object]:
    """What bitwise repetition depends on: versions, platform, processor type and thread count."""
    import jax
    import jaxlib

    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "platform": device.platform,
        "device": device.device_kind if device.platform != "cpu" else _processor(),
        "machine": platform.machine(),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
