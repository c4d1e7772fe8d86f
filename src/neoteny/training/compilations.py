"""Compiled programs: where they are kept between runs, how many there are, and the seconds they take.

A program found in the persistent cache counts as compiled too.
"""

from __future__ import annotations

import os

import jax
import jax.monitoring

from neoteny.lab.throughput import cache_directory

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_TRACE_EVENTS = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")
_totals = {"count": 0, "seconds": 0.0}


def _listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == _COMPILE_EVENT:
        _totals["count"] += 1
        _totals["seconds"] += duration_secs
    elif event in _TRACE_EVENTS:
        _totals["seconds"] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_listen)


class CompilationCounter:
    """Reads the process's totals; compare two readings."""

    def read(self) -> tuple[int, float]:
        """(programs compiled, seconds spent tracing and compiling) since the process began."""
        return _totals["count"], _totals["seconds"]


def use_compilation_cache() -> None:
    """Keep compiled programs on disk between runs, unless JAX_COMPILATION_CACHE_DIR or jax's own setting says where."""
    chosen = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and chosen is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
