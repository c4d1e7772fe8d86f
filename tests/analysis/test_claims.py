"""Claims over a frame of records, and the file they end in."""

import json
import math

import numpy as np
import polars as pl
import pytest

from neoteny.analysis import (
    Above,
    AllOf,
    Claim,
    Interval,
    Outcome,
    Verdict,
    evaluate,
    mean_estimate,
    not_run,
    paired_difference,
    verdict,
    write_claims,
)

FRAME = pl.DataFrame(
    {
        "seed": [0, 1, 2, 0, 1, 2],
        "b2": [0.999] * 3 + [0.9] * 3,
        "metric": ["accuracy"] * 6,
        "value": [0.2, 0.3, 0.25, 0.8, 0.85, 0.9],
    }
)


def gain(frame):
    rows = frame.filter(pl.col("metric") == "accuracy").sort("seed")
    tuned, default = (rows.filter(pl.col("b2") == b2)["value"].to_numpy() for b2 in (0.9, 0.999))
    return verdict(paired_difference(tuned, default), Above(0))


def missing(frame):
    rows = frame.filter(pl.col("metric") == "sharpness")
    return not_run("no sharpness was probed") if rows.is_empty() else verdict(mean_estimate(rows["value"]), Above(0))


CLAIM = Claim("UPL-2", "Tuned Adam keeps its accuracy", "stable", gain)


def test_evaluate_gives_the_entries_of_the_file():
    first, second = evaluate([CLAIM, Claim("UPL-5", "Sharper", "larger", missing)], FRAME)
    assert list(first) == [
        "id",
        "statement",
        "paper",
        "measured",
        "interval",
        "n",
        "verdict",
        "reason",
        "parts",
    ]
    assert first["id"] == "UPL-2"
    assert first["statement"] == "Tuned Adam keeps its accuracy"
    assert first["paper"] == "stable"
    assert first["measured"] == pytest.approx(0.6)
    assert first["interval"] == pytest.approx(
        [0.6 - 4.3027 * 0.05 / math.sqrt(3), 0.6 + 4.3027 * 0.05 / math.sqrt(3)], rel=1e-4
    )
    assert (first["n"], first["verdict"], first["parts"]) == (3, "holds", [])
    assert (second["verdict"], second["measured"], second["interval"], second["n"]) == (
        "not_run",
        None,
        None,
        0,
    )
    assert second["reason"] == "no sharpness was probed"


def test_a_frame_without_rows_runs_no_measure():
    def measure(frame):
        raise AssertionError("must not be asked")

    assert evaluate([Claim("X-1", "s", "p", measure)], pl.DataFrame())[0]["verdict"] == "not_run"
    assert evaluate([Claim("X-1", "s", "p", measure)], FRAME.clear())[0]["verdict"] == "not_run"


def test_a_measure_that_raises_is_let_through():
    with pytest.raises(pl.exceptions.ColumnNotFoundError):
        evaluate([Claim("X-1", "s", "p", lambda frame: frame["nothing"])], FRAME)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="UPL-2"):
        evaluate([CLAIM, CLAIM], FRAME)
    with pytest.raises(TypeError, match="X-1 must return a Verdict; it returned float"):
        evaluate([Claim("X-1", "s", "p", lambda frame: 0.5)], FRAME)  # type: ignore


def test_parts_and_numbers_that_are_not_finite():
    expectation = AllOf((Above(0), Above(0), Above(0)), names=("a", "b", "c"))
    estimates = [
        Interval(np.float64(1.0), np.float64(0.5), math.inf, 4),
        Interval(math.nan, math.nan, math.nan, 3),
        Interval(2.0, math.nan, math.nan, 1),
    ]
    (entry,) = evaluate([Claim("X-1", "s", "p", lambda frame: verdict(estimates, expectation))], FRAME)
    assert (entry["verdict"], entry["measured"], entry["interval"], entry["n"]) == (
        "inconclusive",
        None,
        None,
        1,
    )
    assert [part["name"] for part in entry["parts"]] == ["a", "b", "c"]
    assert [part["measured"] for part in entry["parts"]] == [1.0, None, 2.0]
    assert [part["interval"] for part in entry["parts"]] == [[0.5, None], None, None]
    assert [part["verdict"] for part in entry["parts"]] == ["holds", "inconclusive", "inconclusive"]
    assert list(entry["parts"][0]) == ["name", "measured", "interval", "n", "verdict", "reason", "parts"]
    json.dumps(entry, allow_nan=False)


def test_numbers_of_numpy_become_json():
    odd = Verdict(Outcome.FAILS, np.float32(0.5), (np.float64(0.25), np.int64(1)), np.int64(3), "because")  # type: ignore
    (entry,) = evaluate([Claim("X-1", "s", "p", lambda frame: odd)], FRAME)
    assert json.loads(json.dumps(entry))["interval"] == [0.25, 1.0]
    assert type(entry["n"]) is int


def test_write_claims_writes_valid_json(tmp_path):
    results = evaluate([Claim("UPL-2", "Größer ≥ 0", "±", gain)], FRAME)
    path = tmp_path / "claims.json"
    write_claims(path, results)
    assert json.loads(path.read_text(encoding="utf-8")) == results
    write_claims(str(path), [])
    assert json.loads(path.read_text()) == []
    assert [each.name for each in tmp_path.iterdir()] == ["claims.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "claims.json"
    write_claims(path, [{"id": "old"}])
    with pytest.raises(ValueError, match="JSON"):
        write_claims(path, [{"measured": math.nan}])

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_claims(path, [{"id": "new"}])
    assert json.loads(path.read_text()) == [{"id": "old"}]
    assert [each.name for each in tmp_path.iterdir()] == ["claims.json"]


def test_a_claim_about_speed_gets_the_timings_and_is_not_run_without():
    def faster(frame, timings):
        assert len(frame) == len(FRAME)
        return verdict(mean_estimate(timings["seconds"]), Above(1.0))

    claim = Claim("T-1", "Slow", "slow", faster, timed=True)
    timings = pl.DataFrame({"seconds": [2.0, 2.1, 1.9]})
    assert evaluate([claim], FRAME, timings)[0]["verdict"] == "holds"
    for missing_ in (None, timings.clear()):
        assert evaluate([claim], FRAME, missing_)[0]["verdict"] == "not_run"
