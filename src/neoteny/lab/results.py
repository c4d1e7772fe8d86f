"""Reading a result directory: all records in one frame, with configuration columns. Needs no JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from neoteny.lab.configs import canonical
from neoteny.lab.records import SCHEMA, TIMING_SCHEMA, Record
from neoteny.lab.store import Manifest, Store


@dataclass(frozen=True)
class Results:
    """What a result directory holds.

    plan: content of plan.json. manifests: pack -> its last commit, None if it has none. records: all records
    joined with configuration columns. timings: wall-clock by pack and event.
    """

    plan: Mapping[str, Any]
    manifests: Mapping[str, Manifest | None]
    records: pl.DataFrame
    timings: pl.DataFrame


def _scalar(value: Any) -> Any:
    """A value fit for a column: numbers, text and truth values as they are, the rest as canonical JSON."""
    return value if value is None or isinstance(value, bool | int | float | str) else canonical(value)


def config_frame(runs: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """One row a run: `run`, `experiment`, and every field; `config_NAME` where NAME is a record's column."""
    rows = []
    for name, run in runs.items():
        values = {
            (f"config_{field}" if field in (*Record._fields, "experiment") else field): _scalar(value)
            for field, value in run["config"].items()
        }
        rows.append({"run": name, "experiment": run["experiment"], **values})
    return pl.DataFrame(rows, infer_schema_length=None)


def join_records(table: pa.Table, runs: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """Records with their runs' configuration as columns, in a fixed order."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame.join(config_frame(runs), on="run", how="left", maintain_order="left")


def read(directory: Path | str) -> Results:
    """Everything in a result directory; StoreError names a file that is missing or damaged."""
    store = Store(Path(directory))
    plan = store.plan()
    manifests, records, timings = {}, [SCHEMA.empty_table()], [TIMING_SCHEMA.empty_table()]
    for pack in plan["packs"]:
        pack_store = store.pack(pack["name"])
        manifest = manifests[pack["name"]] = pack_store.manifest()
        if manifest is not None:
            records.append(pack_store.records(manifest))
            timings.append(pack_store.timings(manifest))
    timing_frame = pl.from_arrow(pa.concat_tables(timings))
    assert isinstance(timing_frame, pl.DataFrame)
    return Results(plan, manifests, join_records(pa.concat_tables(records), plan["runs"]), timing_frame)


def timed_packs(results: Results) -> pl.DataFrame:
    """The timings with the columns experiment, runs and platform of their pack, and its configuration.

    `updates` counts those of all `runs` together. Lane fields have the values of the pack's first run; the others are
    those of all. A field with a timing's own name is called `config_NAME`.
    """
    rows, runs = [], {}
    for pack in results.plan["packs"]:
        manifest = results.manifests[pack["name"]]
        if manifest is not None:
            runs[pack["name"]] = results.plan["runs"][pack["runs"][0]]
            platform = str(manifest.machine.get("platform", ""))
            rows.append({"pack": pack["name"], "runs": len(pack["runs"]), "platform": platform})
    if not rows:
        return results.timings
    configured = config_frame(runs).rename({"run": "pack"})
    clashing = {name: f"config_{name}" for name in configured.columns if name in results.timings.columns[1:]}
    configured = configured.rename(clashing)
    packs = pl.DataFrame(rows).join(configured, on="pack", how="left", maintain_order="left")
    return results.timings.join(packs, on="pack", how="left", maintain_order="left")


def load(directory: Path | str) -> pl.DataFrame:
    """All records of a result directory with configuration fields as columns.

    directory: what `neoteny run --out` wrote to. StoreError (a UsageError) names a missing or damaged file.
    """
    return read(directory).records


def arrays(directory: Path | str, metric: str) -> dict[str, dict[str, np.ndarray]]:
    """Arrays kept under the name `metric` (a `Save`, a spectrum, a matrix): run -> path -> array."""
    store = Store(Path(directory))
    found: dict[str, dict[str, np.ndarray]] = {}
    for pack in store.plan()["packs"]:
        pack_store = store.pack(pack["name"])
        manifest = pack_store.manifest()
        if manifest is not None and metric in pack_store.saves(manifest):
            kept = pack_store.arrays(manifest, metric)
            for lane, run in enumerate(pack["runs"]):
                found[run] = {path: array[lane] for path, array in kept.items()}
    return found
