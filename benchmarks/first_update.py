"""Time to the first update, in processes of their own: `measure` starts them, and this file is what they run.

python benchmarks/first_update.py neoteny|torch|torch-compiled CASE LANES
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cases import CASES


def _once(contestant: str, case: str, lanes: int, environment: dict[str, str]) -> float:
    """Seconds from starting Python to the end of the first update."""
    command = [sys.executable, str(Path(__file__).resolve()), contestant, case, str(lanes)]
    start = time.perf_counter()
    with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        taken = time.perf_counter() - start
    if line != "updated\n" or child.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode} and said {line!r}")
    return taken


def measure(contestant: str, case: str, lanes: int, *, warm_repeats: int = 3) -> dict[str, float]:
    """Seconds cold (empty compilation caches) and warm (the least of several further starts)."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            "JAX_COMPILATION_CACHE_DIR": f"{cache}/jax",
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/torch",
        }
        cold = _once(contestant, case, lanes, environment)
        return {
            "cold": cold,
            "warm": min(_once(contestant, case, lanes, environment) for _ in range(warm_repeats)),
        }


def _neoteny(case, lanes: int) -> None:
    from neoteny.training.compilations import use_compilation_cache
    from neoteny_side import make_runner

    use_compilation_cache()
    for tick in make_runner(case, lanes).ticks():
        if tick.updates:
            return


def _torch(case, lanes: int, compiled: bool) -> None:
    from torch_side import Variant, loop

    del lanes  # one after another: the first update is one network's
    next(loop(case, Variant("fused", 1, compiled=compiled), stretch=1))


def main() -> None:
    """The first update of the contestant named on the command line, then one line on stdout."""
    contestant, name, lanes = sys.argv[1], sys.argv[2], int(sys.argv[3])
    case = next(case for case in CASES if case.name == name)
    if contestant == "neoteny":
        _neoteny(case, lanes)
    else:
        _torch(case, lanes, compiled=contestant == "torch-compiled")
    print("updated", flush=True)


if __name__ == "__main__":
    main()
