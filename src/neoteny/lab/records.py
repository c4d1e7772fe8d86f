"""Records: one long-format row a measurement. All that is shown is computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_type_hints

import pyarrow as pa


class Record(NamedTuple):
    """One measurement.

    run: the run's name. branch, trial: empty and 0 outside forks and searches; within a branch all that is cumulative
    goes on from the fork. task, visit: position in the stream and which visit of that task it is. split: empty for
    training metrics. event: position in the script, a fork's branches counted one after another. step: the pack's
    updates since the run began. env_steps: environment steps. place: stage or other place measured, empty for the
    whole. flops_*: the lane's cumulative floating-point operations by account at that moment.
    """

    run: str
    branch: str
    trial: int
    task: int
    visit: int
    split: str
    event: int
    step: int
    env_steps: int
    metric: str
    place: str
    value: float
    flops_train: float
    flops_forward: float
    flops_probe: float
    flops_search: float


_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64()}
SCHEMA = pa.schema([(name, _ARROW[kind]) for name, kind in get_type_hints(Record).items()])
"""Arrow schema of a record file."""

TIMING_SCHEMA = pa.schema(
    [
        ("pack", pa.string()),
        ("event", pa.int64()),
        ("kind", pa.string()),
        ("updates", pa.int64()),
        ("seconds", pa.float64()),
        ("compilations", pa.int64()),
        ("compile_seconds", pa.float64()),
    ]
)
"""Arrow schema of a timings file: wall-clock lives here and never in the records."""


class Timing(NamedTuple):
    """One stretch of work: `updates` lane-updates of an event and its seconds, compilation included."""

    pack: str
    event: int
    kind: str
    updates: int
    seconds: float
    compilations: int
    compile_seconds: float


def to_table(rows: Sequence[tuple], schema: pa.Schema) -> pa.Table:
    """Rows as an Arrow table of this schema."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )
