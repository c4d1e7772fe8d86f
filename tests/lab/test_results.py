"""Reading results: records joined with configurations, of finished and unfinished runs, without JAX."""

import os
import subprocess
import sys

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import neoteny
from neoteny.lab import results
from neoteny.lab.plan import FORMAT
from neoteny.lab.records import SCHEMA, Record, Timing, to_table
from neoteny.lab.store import Manifest, Store, StoreError


def record(run, value, metric="accuracy"):
    return Record(run, "", 0, 1, 0, "test", 3, 20, 0, metric, "head", value, 1e9, 2.0, 3.0, 4.0)


RUNS = {
    "r1": {"experiment": "a", "config": {"rate": 0.1, "width": 8, "value": 5, "name": "x", "sizes": [1, 2]}},
    "r2": {"experiment": "a", "config": {"rate": 1.0, "width": 8, "value": 6, "name": "y", "sizes": [3]}},
    "r3": {"experiment": "b", "config": {"depth": 2, "width": "wide"}},
}


@pytest.fixture
def directory(tmp_path):
    """Pack p1 with two commits and a save, pack p2 with none."""
    store = Store(tmp_path)
    packs = [{"name": "p1", "runs": ["r1", "r2"]}, {"name": "p2", "runs": ["r3"]}]
    store.write_plan({"format": FORMAT, "packs": packs, "runs": RUNS})
    manifest = Manifest("p1", 0, "running", (0, 0))
    for value in (0.5, 0.75):
        manifest = store.pack("p1").commit(
            manifest,
            status="running",
            cursor=(1, 0),
            state={},
            records=[record("r2", value), record("r1", value / 2)],
            timings=[],
            saves={"end": {"w": np.array([[1.0], [2.0]])}} if value == 0.75 else {},
        )
    return tmp_path


class TestLoad:
    def test_configurations_are_columns(self, directory):
        frame = results.load(directory)
        assert frame.columns == [
            *Record._fields,
            "experiment",
            "rate",
            "width",
            "config_value",
            "name",
            "sizes",
            "depth",
        ]
        assert frame["run"].to_list() == ["r2", "r1", "r2", "r1"]
        assert frame["value"].to_list() == [0.5, 0.25, 0.75, 0.375]
        assert frame["rate"].to_list() == [1.0, 0.1, 1.0, 0.1]
        assert frame["config_value"].to_list() == [6, 5, 6, 5]
        assert frame["sizes"].to_list() == ["[3]", "[1,2]", "[3]", "[1,2]"]
        assert frame["depth"].to_list() == [None] * 4

    def test_no_commit_gives_no_rows_but_all_columns(self, tmp_path):
        Store(tmp_path).write_plan({"format": FORMAT, "packs": [{"name": "p2", "runs": ["r3"]}], "runs": RUNS})
        frame = results.load(tmp_path)
        assert frame.is_empty()
        assert {"value", "experiment", "width"} <= set(frame.columns)

    def test_is_public(self, directory):
        assert neoteny.load(directory).equals(results.load(str(directory)))

    def test_everything_else(self, directory):
        read = results.read(directory)
        assert read.manifests["p2"] is None
        assert read.manifests["p1"].commit == 2
        assert read.timings.columns[:2] == ["pack", "event"]

    def test_damage_is_named(self, directory):
        path = directory / "packs/p1/records/000001.parquet"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(StoreError, match=r"p1/records/000001\.parquet is damaged"):
            results.load(directory)

    def test_no_directory(self, tmp_path):
        with pytest.raises(StoreError, match=r"nothing/plan\.json is not there"):
            results.load(tmp_path / "nothing")


class TestJoin:
    @pytest.mark.parametrize("name", Record._fields)
    def test_no_field_hides_a_column_of_the_records(self, name):
        runs = {"r": {"experiment": "a", "config": {name: 7, "experiment": 8}}}
        frame = results.join_records(to_table([record("r", 0.5)], SCHEMA), runs)
        assert frame.select(Record._fields).row(0) == record("r", 0.5)
        assert frame[f"config_{name}"].to_list() == [7]
        assert frame["experiment"].to_list() == ["a"]
        assert frame["config_experiment"].to_list() == [8]

    def test_whole_and_other_numbers_share_a_column(self):
        runs = {n: {"experiment": "a", "config": {"rate": r}} for n, r in (("x", 1), ("y", 0.5), ("z", None))}
        assert results.config_frame(runs)["rate"].to_list() == [1.0, 0.5, None]

    def test_numbers_and_text_become_text(self):
        runs = {n: {"experiment": "a", "config": {"width": w}} for n, w in (("x", 8), ("y", "wide"))}
        assert results.config_frame(runs)["width"].to_list() == ["8", "wide"]


class TestArrays:
    def test_by_run(self, directory):
        found = neoteny.arrays(directory, "end")
        assert {run: kept["w"].tolist() for run, kept in found.items()} == {"r1": [1.0], "r2": [2.0]}
        assert results.arrays(directory, "other") == {}


def test_records_are_the_schema():
    table = to_table([record("r", 0.5)], SCHEMA)
    assert table.schema == SCHEMA
    assert pl.from_arrow(table).row(0) == record("r", 0.5)
    assert to_table([], SCHEMA).equals(SCHEMA.empty_table())
    with pytest.raises(pa.ArrowInvalid):
        to_table([record("r", "no number")], SCHEMA)


@pytest.mark.parametrize(
    "module",
    [
        "neoteny",
        "neoteny.analysis",
        "neoteny.cli",
        "neoteny.lab.configs",
        "neoteny.lab.plan",
        "neoteny.lab.progress",
        "neoteny.lab.results",
        "neoteny.lab.status",
        "neoteny.lab.store",
        "neoteny.lab.study",
        "neoteny.report",
        "neoteny.report.assemble",
    ],
)
def test_import_without_jax(module):
    # A module name that maps to None makes importing it an ImportError.
    code = f"import sys; sys.modules['jax'] = sys.modules['jaxlib'] = None; import {module}"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_timings_come_with_their_packs_configuration(tmp_path):
    store = Store(tmp_path)
    runs = {"r1": {"experiment": "speed", "config": {"length": 8, "updates": 3, "seed": 0}}}
    packs = [{"name": "p1", "runs": ["r1"], "experiment": "speed"}]
    store.write_plan({"format": FORMAT, "packs": packs, "runs": runs})
    manifest = Manifest("p1", 0, "running", (0, 0), machine={"platform": "cpu"})
    store.pack("p1").commit(
        manifest, status="running", cursor=(1, 0), state={}, records=[],
        timings=[Timing("p1", 1, "train", 7, 0.5, 0, 0.0)], saves={},
    )  # fmt: skip
    (row,) = results.timed_packs(results.read(tmp_path)).to_dicts()
    assert (row["seconds"], row["updates"], row["experiment"], row["length"]) == (0.5, 7, "speed", 8)
    assert (row["runs"], row["platform"], row["config_updates"]) == (1, "cpu", 3)
