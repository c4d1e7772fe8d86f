"""What is here and what is missing: devices, packages, extras, data sets, and how to get the rest."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib import metadata

from neoteny.errors import UsageError

EXTRAS = {
    "vision": ("mlxtend", "sklearn", "PIL", "datasets"),
    "docs": ("mkdocs",),
    "bench": ("torch",),
}
"""Extra -> the modules it brings."""

_CORE = ("jax", "jaxlib", "equinox", "optax", "numpy", "polars", "pyarrow", "matplotlib")


def describe() -> str:
    """Everything found, as text."""
    from neoteny import __version__
    from neoteny.lab.fingerprint import available_cores
    from neoteny.lab.throughput import cache_directory

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _CORE)
    threads = len(available_cores()) or os.cpu_count()
    lines = [
        f"neoteny {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"packages: {versions}",
        f"devices: {_devices()}; {threads} CPU threads",
        f"cache: {cache_directory()}",
        "",
        "extras",
    ]
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        state = "installed" if not missing else f"missing {', '.join(missing)}: pip install 'neoteny[{extra}]'"
        lines.append(f"  {extra:<8} {state}")
    return "\n".join([*lines, "", "data sets", *_data_sets()])


def _devices() -> str:
    from neoteny.lab.fingerprint import devices

    try:
        return ", ".join(f"{device.device_kind} ({device.platform})" for device in devices())
    except UsageError as error:
        return f"none ({error})"


def _data_sets() -> list[str]:
    from neoteny.tasks.catalogue import KNOWN, find

    folder = os.environ.get("NEOTENY_DATA")
    lines = [f"  NEOTENY_DATA is {folder if folder else 'not set; point it at a folder of data sets of your own'}"]
    for name in KNOWN:
        finding = find(name)
        state = f"found: {finding.where}" if finding.found else f"missing: {finding.get}"
        lines.append(f"  {name:<14} {finding.title}\n  {'':<14} {state}")
    return lines
