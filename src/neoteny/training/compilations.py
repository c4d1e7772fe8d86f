"""Counts the programs jax compiles, and the seconds that takes. A program found in the persistent cache counts too."""

from __future__ import annotations

import jax.monitoring

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_TRACE_EVENTS = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")
_totals = {"count": 0, "seconds": 0.0}


def _listen(event: str, duration: float, **_: object) -> None:
    if event == _COMPILE_EVENT:
        _totals["count"] += 1
        _totals["seconds"] += duration
    elif event in _TRACE_EVENTS:
        _totals["seconds"] += duration


jax.monitoring.register_event_duration_secs_listener(_listen)


class CompilationCounter:
    """Reads the process's totals; compare two readings."""

    def read(self) -> tuple[int, float]:
        """(programs compiled, seconds spent tracing and compiling) since the process began."""
        return _totals["count"], _totals["seconds"]
