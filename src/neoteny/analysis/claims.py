"""Claims of papers as functions of the records, and claims.json."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoteny.analysis.verdicts import Verdict, not_run

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Claim:
    """Something a paper asserts, made executable.

    id: "UPL-1". statement: what is claimed, in one sentence. paper: the paper's own value or wording.
    measure: the frame of all records, with configuration fields as columns, to a verdict. A measure that
    finds no rows for what it needs returns `not_run`; one that raises is a bug and is let through. timed: the
    claim is about speed, and its measure takes the packs' timings as a second frame.
    """

    id: str
    statement: str
    paper: str
    measure: Callable[..., Verdict]
    timed: bool = False


def evaluate(claims: Iterable[Claim], frame: pl.DataFrame, timings: pl.DataFrame | None = None) -> list[dict[str, Any]]:
    """Every claim's result as the entries of claims.json, in order. Without `timings`, claims about speed are not run.

    Keys: id, statement, paper, measured, interval ([low, high] or None), n, verdict, reason, parts (a list of
    the same without id, statement and paper, but with name). Numbers that are not finite become None. A frame
    without rows makes every claim not run, without asking its measure. Raises ValueError if two claims share
    an id and TypeError if a measure returns anything but a `Verdict`.
    """
    claims = list(claims)
    ids = [claim.id for claim in claims]
    if repeated := sorted({name for name in ids if ids.count(name) > 1}):
        raise ValueError(f"claim ids must be unique; used more than once: {', '.join(repeated)}")
    results = []
    for claim in claims:
        found = _measured(claim, frame, timings)
        if not isinstance(found, Verdict):
            raise TypeError(
                f"the measure of claim {claim.id} must return a Verdict; it returned {type(found).__name__}"
            )
        results.append({"id": claim.id, "statement": claim.statement, "paper": claim.paper, **_entry(found)})
    return results


def _measured(claim: Claim, frame: pl.DataFrame, timings: pl.DataFrame | None) -> Verdict:
    if frame.is_empty():
        return not_run("no records")
    if not claim.timed:
        return claim.measure(frame)
    if timings is None or timings.is_empty():
        return not_run("needs the packs' timings")
    return claim.measure(frame, timings)


def write_claims(path: str | os.PathLike[str], results: list[dict[str, Any]]) -> None:
    """Write `results` to `path` as JSON, whole or not at all: a reader never sees half a file.

    Raises ValueError if a number is not finite, and leaves any older file as it was.
    """
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _entry(found: Verdict) -> dict[str, Any]:
    bounds = None if found.interval is None else [_number(bound) for bound in found.interval]
    return {
        "measured": _number(found.measured),
        "interval": None if bounds == [None, None] else bounds,
        "n": int(found.n),
        "verdict": found.outcome.value,
        "reason": found.reason,
        "parts": [{"name": part.name, **_entry(part)} for part in found.parts],
    }


def _number(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else float(number)
