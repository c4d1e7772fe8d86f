"""Every threshold of the lru study's claims from both sides, what is paired, and what cannot be decided.

The records are made up from the differences that the claims are about. Seeds differ by far more than these differences
do, so that only pairs of one seed tell them; rows come in any order; intervals are tight.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import polars as pl
import pytest

from neoteny.analysis.claims import evaluate
from neoteny.studies.lru.claims import CLAIMS, SHARED
from neoteny.studies.lru.toys import RATES, RINGS, forward_gain

SEEDS, TASKS, LENGTHS = 6, ("digits", "listops"), (128, 512)
NOISE = 1e-3 * np.array([1, -1, 1, -1, 1, -1])
"""What is left of a pair beside the difference; its mean is 0."""
OFFSET = np.array([2.0, -3.0, 0.5, 3.0, -1.5, -1.0])
"""What seeds differ by, the same in all models."""
PHASES = (math.pi / 10, 2 * math.pi)
OTHERS = (("lru", PHASES[1]), ("ring", PHASES[1]), ("ring", PHASES[0]))

HOLDING: dict[str, float] = {
    **{f"gain on {ring}": 1.0 for ring in RINGS},
    "distance of dense": 0.03,
    "distance of disk": 0.03,
    **{f"filter at {rate}": -0.5 for rate in RATES},
    "phase": -2.0,
    **{f"{data}: rnn_linear less rnn_tanh": 5.0 for data in TASKS},
    **{f"{data}: complex less rnn_linear": 5.0 for data in TASKS},
    **{f"{data}: lru less {other}": 0.5 for data in TASKS for other in ("s4d", "s5")},
    **{f"{data}: {variant} less s4d": -0.3 for data in TASKS for variant in ("s4d_delta_b", "s4d_untied")},
    "ring less exponential": 5.0,
    "lru less ring": 5.0,
    "first loss": -0.5,
    **{f"both less {other}": 10.0 for other in OTHERS},
    **{f"speed at {length}": 4.0 for length in LENGTHS},
}
"""Differences and ratios with which every claim holds."""

EDGES: list[tuple[str, str, float, float]] = [
    # claim, quantity, just inside, just outside
    *(("LRU-2", f"distance of {kind}", 0.0495, 0.0505) for kind in ("dense", "disk")),
    *(("LRU-3", f"filter at {rate}", -0.01, 0.01) for rate in RATES),
    *(("LRU-3", f"{data}: rnn_linear less rnn_tanh", 0.05, -0.05) for data in TASKS),
    *(("LRU-4", f"{data}: complex less rnn_linear", -0.95, -1.05) for data in TASKS),
    ("LRU-5", "phase", -1.01, -0.99),
    ("LRU-6", "ring less exponential", 0.05, -0.05),
    ("LRU-7", "lru less ring", 0.05, -0.05),
    ("LRU-7", "first loss", -0.01, 0.01),
    *(("LRU-8", f"both less {other}", 0.05, -0.05) for other in OTHERS),
    *(
        ("LRU-9", f"{data}: lru less {other}", sign * 1.95, sign * 2.05)
        for data in TASKS
        for other in ("s4d", "s5")
        for sign in (1, -1)
    ),
    *(("LRU-10", f"speed at {length}", 1.02, 0.98) for length in LENGTHS),
    *(
        ("LRU-11", f"{data}: {variant} less s4d", sign * 0.95, sign * 1.05)
        for data in TASKS
        for variant in ("s4d_delta_b", "s4d_untied")
        for sign in (1, -1)
    ),
]

# Records ----------------------------------------------------------------------------------------------------------


def row(experiment, seed, metric, value, *, step=100, **fields):
    shared = {
        "data": "digits", "size": 16, "examples": 0, "tested": 100, "depth": 2, "width": 8, "state": 8, "batch": 4,
        "steps": 100, "dropout": 0.0, "half_glu": False, "bidirectional": False, "learning_rate": 1e-3, "factor": 0.25,
        "weight_decay": 0.05, "length": 100, "r_min": 0.0, "r_max": 1.0, "max_phase": PHASES[1],
    }  # fmt: skip
    run = "-".join(map(str, (experiment, seed, *fields.values())))
    split = "test" if metric == "accuracy" else ""
    return {
        "run": run, "experiment": experiment, "metric": metric, "place": "", "split": split, "value": float(value),
        "step": step, "seed": seed, **shared, **fields,
    }  # fmt: skip


def theory(level):
    for seed in range(SEEDS):
        for low, high in RINGS:
            value = forward_gain(low, high) * level[f"gain on {low, high}"] * (1 + NOISE[seed])
            yield row("theory", seed, "forward_gain", value, kind="ring", r_min=low, r_max=high)
        for kind in ("dense", "disk"):
            yield row("theory", seed, "disk_distance", level[f"distance of {kind}"] + NOISE[seed] / 20, kind=kind)


def filters(level):
    for seed in range(SEEDS):
        for rate in RATES:
            for model, log in (("tanh", 0.0), ("linear", level[f"filter at {rate}"] + NOISE[seed])):
                fields = {"model": model, "learning_rate": rate}
                yield row("filter", seed, "train_loss", 10 ** (log + OFFSET[seed]), **fields)
                yield row("filter", seed, "train_loss", 10.0**-log, step=50, **fields)


def phase(level):
    """At its best rate, 1e-3 for one and 1e-2 for the other, and at the largest phase alone."""
    for seed in range(SEEDS):
        for rate in (1e-4, 1e-3, 1e-2):
            cartesian = -3.0 if rate == 1e-2 else 0.0
            exponential = -3.0 + level["phase"] + NOISE[seed] if rate == 1e-3 else 0.0
            for name, log in (("cartesian", cartesian), ("exponential", exponential)):
                fields = {"parametrisation": name, "learning_rate": rate}
                yield row("phase", seed, "train_loss", 10 ** (log + OFFSET[seed] / 10), theta=1.5, **fields)
                yield row("phase", seed, "train_loss", 10.0 ** -(log + 6), theta=0.1, **fields)


def accuracies(experiment, seed, points, **fields):
    yield row(experiment, seed, "accuracy", (points + OFFSET[seed]) / 100, **fields)
    # another split, to be left out
    yield {**row(experiment, seed, "accuracy", 0.5, **fields), "split": "train"}


def of_s4d(level, data):
    return 80 - level[f"{data}: lru less s4d"]


def ladder(level):
    for seed in range(SEEDS):
        for data in TASKS:
            linear = 50 + level[f"{data}: rnn_linear less rnn_tanh"]
            points = {
                "rnn_tanh": 50.0,
                "rnn_linear": linear + NOISE[seed],
                "complex": linear + level[f"{data}: complex less rnn_linear"] + 2 * NOISE[seed],
                "lru": 80.0,
                "s4d": of_s4d(level, data) - NOISE[seed],
                "s5": 80 - level[f"{data}: lru less s5"] + NOISE[seed],
            }
            for model, each in points.items():
                yield from accuracies("ladder", seed, each, model=model, data=data)


def discretisation(level):
    for seed in range(SEEDS):
        for data in TASKS:
            for model in ("s4d_delta_b", "s4d_untied"):
                points = of_s4d(level, data) + level[f"{data}: {model} less s4d"]
                yield from accuracies("discretisation", seed, points, model=model, data=data)


def stability(level):
    """The difference is that of the means over the inner radii, at the larger of the outer ones."""
    ring = 60 + level["ring less exponential"]
    points = {"exponential": 60.0, "ring": ring, "lru": ring + level["lru less ring"]}
    for seed in range(SEEDS):
        for index, (model, each) in enumerate(points.items()):
            noise = index * NOISE[seed]
            for low, apart in ((0.0, 4.0), (0.9, -4.0)):
                fields = {"model": model, "r_min": low}
                shown = each + noise + (apart if model == "ring" else 0)
                yield from accuracies("stability", seed, shown, r_max=0.999, **fields)
                yield from accuracies("stability", seed, 60 - 10 * index, r_max=0.9, **fields)
                log = level["first loss"] + noise + apart if model == "lru" else 0.0
                for step, size, high in ((1, log, 0.999), (1, -log, 0.9), (100, -log, 0.999)):
                    value = 10 ** (size + OFFSET[seed])
                    yield row("stability", seed, "train_loss", value, step=step, r_max=high, **fields)


def recall(level):
    for seed in range(SEEDS):
        shared = {"data": "recall", "r_min": 0.999, "r_max": 0.9999}
        yield from accuracies("recall", seed, 85 + NOISE[seed], model="lru", max_phase=PHASES[0], **shared)
        for model, widest in OTHERS:
            points = 85 - level[f"both less {model, widest}"]
            yield from accuracies("recall", seed, points, model=model, max_phase=widest, **shared)


def timings(level):
    rows = []
    for length in LENGTHS:
        for model, rate in (("tanh", 1.0), ("lru", level[f"speed at {length}"])):
            for index in range(12):
                compiled = index < 6
                seconds = 1 / rate * (1 + NOISE[index % SEEDS]) if not compiled else 100 * rate
                shared = {"experiment": "speed", "width": 8, "state": 8, "batch": 2, "platform": "gpu"}
                fields = {**shared, "model": model, "length": length, "kind": "train", "compilations": int(compiled)}
                rows.append({**fields, "runs": 2, "updates": 20, "seconds": 10 * seconds})
                rows.append({**fields, "kind": "evaluate", "runs": 2, "updates": 0, "seconds": rate})
    return pl.DataFrame(rows)


SOURCES = {
    "LRU-1": (theory,),
    "LRU-2": (theory,),
    "LRU-3": (filters, ladder),
    "LRU-4": (ladder,),
    "LRU-5": (phase,),
    "LRU-6": (stability,),
    "LRU-7": (stability,),
    "LRU-8": (recall,),
    "LRU-9": (ladder,),
    "LRU-10": (theory,),
    "LRU-11": (ladder, discretisation),
}
"""What makes the records that each claim reads."""
TRAINED = ("LRU-3", "LRU-4", "LRU-6", "LRU-7", "LRU-8", "LRU-9", "LRU-11")


@functools.cache
def built(source, changed: tuple[tuple[str, float], ...]) -> pl.DataFrame:
    return pl.DataFrame(list(source({**HOLDING, **dict(changed)})), infer_schema_length=None)


def records(claim: str, **changed: float) -> pl.DataFrame:
    frames = [built(source, tuple(changed.items())) for source in SOURCES[claim]]
    return pl.concat(frames, how="diagonal").sample(fraction=1.0, shuffle=True, seed=3)


def judged(claim: str, frame: pl.DataFrame, timed: pl.DataFrame | None = None) -> dict:
    (found,) = evaluate([each for each in CLAIMS if each.id == claim], frame, timed)
    return found


def leaves(found: dict) -> list[dict]:
    """The parts that have none themselves."""
    return [leaf for part in found["parts"] for leaf in leaves(part)] or [found]


# Thresholds -------------------------------------------------------------------------------------------------------


def test_every_claim_holds_and_every_claim_has_an_edge():
    for claim in SOURCES:
        assert judged(claim, records(claim), timings(HOLDING))["verdict"] == "holds", claim
    assert {claim for claim, *_ in EDGES} | {"LRU-1"} == set(SOURCES) == {claim.id for claim in CLAIMS}
    assert {key for _, key, *_ in EDGES} == {key for key in HOLDING if not key.startswith("gain")}


@pytest.mark.parametrize(("claim", "quantity", "inside", "outside"), EDGES)
def test_a_claim_holds_just_inside_its_threshold_and_fails_just_outside(claim, quantity, inside, outside):
    for value, expected in ((inside, "holds"), (outside, "fails")):
        found = judged(claim, records(claim, **{quantity: value}), timings({**HOLDING, quantity: value}))
        assert found["verdict"] == expected
        tolerance = 0.005 if claim == "LRU-10" else 1e-6
        assert any(abs(leaf["measured"] - value) < tolerance for leaf in leaves(found))
        assert [leaf["verdict"] for leaf in leaves(found)].count("fails") == (expected == "fails")


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize(("ratio", "verdict"), [(0.952, "holds"), (0.948, "fails"), (1.048, "holds"), (1.052, "fails")])
def test_the_gain_is_within_five_per_cent_and_its_interval_covers_one(ring, ratio, verdict):
    found = judged("LRU-1", records("LRU-1", **{f"gain on {ring}": ratio}))
    parts = {part["name"]: part for part in found["parts"]}
    assert len(parts) == 8
    near = parts.pop(f"measured over formula on [{ring[0]:g}, {ring[1]:g}]")
    covers = parts.pop(f"its interval covers 1 on [{ring[0]:g}, {ring[1]:g}]")
    assert (near["verdict"], covers["verdict"]) == (verdict, "fails")
    assert near["measured"] == pytest.approx(ratio, abs=1e-6)
    assert {part["verdict"] for part in parts.values()} == {"holds"}
    assert found["verdict"] == "fails"


@pytest.mark.parametrize(("half", "verdict"), [(0.048, "holds"), (0.052, "inconclusive")])
def test_a_gain_that_is_not_known_to_five_per_cent_is_not_decided(half, verdict):
    frame, (low, high) = records("LRU-1"), RINGS[-1]
    # two values apart by as much around the mean: half an interval is 2.571 times the standard error
    apart = half / 2.5706 * math.sqrt(SEEDS - 1)
    there = (pl.col("r_min") == low) & (pl.col("r_max") == high)
    spread = forward_gain(low, high) * (1 + apart * (1 - 2 * (pl.col("seed") % 2)))
    found = judged("LRU-1", frame.with_columns(pl.when(there).then(spread).otherwise(pl.col("value")).alias("value")))
    assert found["verdict"] == verdict


def test_pairs_are_of_one_seed():
    """Without it the differences between seeds, thousands of times the noise, would widen every interval."""
    for claim in (*TRAINED, "LRU-5"):
        found = judged(claim, records(claim))
        for leaf in leaves(found):
            low, high = leaf["interval"]
            assert high - low < 0.02, (claim, leaf)
            assert leaf["n"] == SEEDS


def test_seeds_that_one_of_two_models_lacks_are_left_out():
    frame = records("LRU-4").filter(~((pl.col("model") == "complex") & (pl.col("seed") == 2)))
    found = judged("LRU-4", frame)
    assert (found["verdict"], found["n"]) == ("holds", SEEDS - 1)
    none = frame.filter((pl.col("model") == "complex") == (pl.col("seed") < 3))
    assert "no seed in common" in judged("LRU-4", none)["reason"]
    one_ring = (pl.col("model") == "lru") & (pl.col("r_min") == 0.9) & (pl.col("seed") == 2)
    found = judged("LRU-7", records("LRU-7").filter(~one_ring))
    assert (found["verdict"], found["n"]) == ("holds", SEEDS - 1)


# What cannot be decided -------------------------------------------------------------------------------------------

MIXED = [
    *((claim, "ladder", field) for claim in ("LRU-3", "LRU-4", "LRU-9") for field in SHARED),
    *(("LRU-11", "discretisation", field) for field in SHARED),
    *((claim, "stability", field) for claim in ("LRU-6", "LRU-7") for field in (*SHARED, "data")),
    *(("LRU-8", "recall", field) for field in (*SHARED, "r_min", "r_max")),
    ("LRU-1", "theory", "state"),
    ("LRU-1", "theory", "length"),
    ("LRU-2", "theory", "state"),
    *(("LRU-3", "filter", field) for field in ("state", "length", "examples", "steps")),
    ("LRU-5", "phase", "steps"),
]


def other_value(frame: pl.DataFrame, field: str, where: pl.Expr) -> pl.DataFrame:
    """`frame` with another value of `field` in the rows of `where`."""
    kind = frame.schema[field]
    if kind == pl.Boolean:
        other = ~pl.col(field)
    elif kind == pl.String:
        other = pl.lit("permuted_digits")
    else:
        # steps: fewer, since a run is finished at its last step
        other = (
            pl.col(field) - 0.01 if kind == pl.Float64 else pl.col(field) - 1 if field == "steps" else pl.col(field) + 1
        )
    return frame.with_columns(pl.when(where).then(other).otherwise(pl.col(field)).alias(field))


@pytest.mark.parametrize(("claim", "experiment", "field"), MIXED)
def test_runs_of_several_settings_are_not_compared(claim, experiment, field):
    frame = records(claim)
    if field == "steps" and experiment in ("ladder", "discretisation", "stability", "recall"):
        frame = frame.with_columns(pl.col("steps") * 10)
        frame = frame.with_columns((pl.col("step") * 10).alias("step")) if experiment == "ladder" else frame
    here = pl.col("experiment") == experiment
    mixed = other_value(frame, field, here & (pl.col("seed") == 0))
    found = judged(claim, mixed)
    assert (found["verdict"], f"differ in {field};" in found["reason"]) == ("not_run", True)


@pytest.mark.parametrize("field", ["width", "state", "batch", "platform"])
def test_timings_of_several_settings_are_not_compared(field):
    timed = other_value(timings(HOLDING), field, pl.col("model") == "lru")
    found = judged("LRU-10", records("LRU-10"), timed)
    assert (found["verdict"], f"differ in {field};" in found["reason"]) == ("not_run", True)


def test_first_losses_of_several_settings_are_not_compared():
    loss = (pl.col("metric") == "train_loss") & (pl.col("seed") == 0)
    found = judged("LRU-7", other_value(records("LRU-7"), "width", loss))
    assert (found["verdict"], "differ in width;" in found["reason"]) == ("not_run", True)


@pytest.mark.parametrize("claim", TRAINED)
def test_two_runs_of_one_seed_are_not_compared(claim):
    frame = records(claim)
    again = frame.filter((pl.col("metric") == "accuracy") & (pl.col("seed") == 1)).with_columns(
        pl.col("run") + "-again"
    )
    found = judged(claim, pl.concat([frame, again]))
    assert (found["verdict"], "several runs have one seed" in found["reason"]) == ("not_run", True)


@pytest.mark.parametrize("claim", TRAINED)
def test_after_fewer_than_a_hundred_updates_nothing_is_compared(claim):
    frame = records(claim)
    assert frame["steps"].unique().to_list() == [100]
    trained = pl.col("metric") == "accuracy"
    short = frame.with_columns(pl.when(trained).then(99).otherwise(pl.col("steps")).alias("steps"))
    found = judged(claim, short)
    assert (found["verdict"], found["reason"]) == ("not_run", "needs at least 100 updates")


@pytest.mark.parametrize("ring", RINGS)
def test_a_ring_that_was_not_run_is_said(ring):
    frame = records("LRU-1").filter(~((pl.col("r_min") == ring[0]) & (pl.col("r_max") == ring[1])))
    found = judged("LRU-1", frame)
    assert (found["verdict"], found["reason"]) == ("not_run", f"needs all 4 rings; missing: {ring}")


@pytest.mark.parametrize("model", ["linear", "tanh"])
@pytest.mark.parametrize("rate", RATES)
def test_a_learning_rate_that_was_not_run_is_said(model, rate):
    frame = records("LRU-3").filter(
        ~((pl.col("experiment") == "filter") & (pl.col("model") == model) & (pl.col("learning_rate") == rate))
    )
    found = judged("LRU-3", frame)
    assert (found["verdict"], found["reason"]) == (
        "not_run",
        f"needs all 5 learning rates of {model}; missing: {rate}",
    )


@pytest.mark.parametrize(
    ("claim", "model"),
    [
        ("LRU-3", "rnn_linear"),
        ("LRU-3", "rnn_tanh"),
        ("LRU-4", "complex"),
        ("LRU-4", "rnn_linear"),
        ("LRU-9", "lru"),
        ("LRU-9", "s5"),
        ("LRU-11", "s4d"),
        ("LRU-11", "s4d_untied"),
    ],
)
def test_a_task_without_one_of_the_models_is_said(claim, model):
    frame = records(claim).filter(~((pl.col("model") == model) & (pl.col("data") == "listops")))
    found = judged(claim, frame)
    assert found["verdict"] == "not_run"
    assert f"needs runs of {model} on listops" in {leaf["reason"] for leaf in leaves(found)}
    # a task that has neither of two models is not about them
    lost = {"LRU-4": ("complex", "rnn_linear")}.get(claim)
    if lost:
        neither = records(claim).filter(~(pl.col("model").is_in(lost) & (pl.col("data") == "listops")))
        assert judged(claim, neither)["verdict"] == "holds"


def test_models_on_different_rings_are_not_compared():
    frame = records("LRU-7")
    for model, claim in (("lru", "LRU-7"), ("ring", "LRU-6"), ("exponential", "LRU-6")):
        found = judged(claim, frame.filter(~((pl.col("model") == model) & (pl.col("r_min") == 0.0))))
        assert found["verdict"] == "not_run"
        assert "the same inner radii" in found["reason"]
        assert f"{model} [0.9]" in found["reason"]
    one = frame.filter(pl.col("r_min") == 0.9)
    assert judged("LRU-6", one)["measured"] == pytest.approx(HOLDING["ring less exponential"] - 4, abs=1e-6)
