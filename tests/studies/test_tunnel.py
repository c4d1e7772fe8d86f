"""The tunnel study's claims on records made up so that the right verdict is known, and what its presets ask for."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import polars as pl
import pytest

from neoteny.analysis.claims import evaluate
from neoteny.errors import UsageError
from neoteny.lab.plan import Request, make_plan
from neoteny.studies.tunnel import STUDY, summary
from neoteny.studies.tunnel.claims import CLAIMS
from neoteny.studies.tunnel.figures import FIGURES
from neoteny.studies.tunnel.scripts import depth_script
from neoteny.studies.tunnel.settings import DYNAMICS, OOD_CLASSES, Config, class_order, main_data, stream
from neoteny.tasks import load, places
from neoteny.tasks.subsets import class_numbers
from neoteny.training import Fork

SEEDS, CUT, DEPTHS = 5, 3, (6, 8, 10, 12)


class Records:
    """Rows of one run, an event at a time."""

    def __init__(self, experiment: str, seed: int, **fields):
        config = {"data": "cifar10", **fields, "seed": seed}
        name = f"{experiment}-{sorted(config.items())}"
        self._common = {"run": name, "experiment": experiment, **asdict(Config(**config))}
        self._event = 0
        self.rows: list[dict] = []

    def event(self) -> None:
        self._event += 1

    def add(self, metric: str, values, *, task=0, branch="", split="test", step=0) -> None:
        """values: one number, or one for each place."""
        places = values if isinstance(values, dict) else {"": values}
        self.rows += [
            {
                **self._common, "metric": metric, "place": place, "value": float(value), "task": task,
                "branch": branch, "split": split, "event": self._event, "step": step,
            }
            for place, value in places.items()
        ]  # fmt: skip


def by_layer(values) -> dict[str, float]:
    return {f"hidden{layer}": value for layer, value in enumerate(values, 1)}


def jitter(seed: int, size: float) -> float:
    return size * np.random.default_rng(seed).standard_normal()


def curves(layers: int, cut: int) -> dict[str, np.ndarray]:
    """What the paper says, with the tunnel from layer cut + 1."""
    layer = np.arange(1, layers + 1)
    inside = np.maximum(layer - cut, 0) / max(layers - cut, 1)
    return {
        "probe": 0.5 * (0.7 + 0.3 * np.minimum(layer / cut, 1)),
        "rank": 90 - 75 * inside,
        "ood": 0.25 + 0.05 * np.minimum(layer / cut, 1) - 0.1 * inside,
        "within": 2 - inside,
        "between": 1 + inside,
        "change": np.where(layer <= cut, 1.0, 0.3),
    }


def depth_run(depth=12, seed=0, cut=CUT, train=0.99, experiment="depth", **changed) -> list[dict]:
    fields = {name: changed.pop(name) for name in ("data", "samples", "network") if name in changed}
    layers, run = depth - 1, Records(experiment, seed, depth=depth, controls=True, **fields)
    made = {**curves(layers, cut), **changed}
    noisy = {name: by_layer(values + jitter(seed, 1e-3)) for name, values in made.items() if np.ndim(values)}
    run.add("linear_probe", by_layer(np.full(layers, 0.2)), branch="untrained")
    run.add("numerical_rank", by_layer(np.full(layers, 100.0)), branch="untrained")
    run.event()
    run.add("accuracy", train, split="train")
    run.event()
    run.add("accuracy", 0.5)
    run.event()
    run.add("linear_probe", noisy["probe"])
    for name in ("numerical_rank", "numerical_rank_0.01", "numerical_rank_0.0001"):
        run.add(name, noisy["rank"])
    run.add("class_within", noisy["within"])
    run.add("class_between", noisy["between"])
    run.add("class_ratio", by_layer(made["within"] / made["between"]))
    pairs = {f"hidden{i}:hidden{j}": 0.5 for j in range(2, layers + 1) for i in range(1, j)}
    run.add("linear_cka", pairs)
    run.event()
    run.add("linear_probe", noisy["ood"], task=1)
    run.event()
    for which in ("last", "first"):
        lost = {f"{which}:{m}": 0.5 - (made.get("reset", 0.3) if m else 0.0) for m in range(layers + 1)}
        run.add("reset_accuracy", lost)
    for metric in ("weight_change", "weight_change_relative"):
        run.add(metric, {**noisy["change"], "head": 9.0, "all": 9.0})
    return run.rows


def light_run(experiment: str, seed: int, cut: int, depth=10, **fields) -> list[dict]:
    run = Records(experiment, seed, depth=depth, **fields)
    run.add("accuracy", 0.99, split="train")
    run.add("accuracy", 0.5)
    run.event()
    run.add("linear_probe", by_layer(curves(depth - 1, cut)["probe"]))
    return run.rows


def classes_run(seed: int, cut: int, count: int, samples=1_800) -> list[dict]:
    return light_run("classes", seed, cut, data="cifar100", ood="none", classes=count, samples=samples)


def dynamics_run(seed: int, after_75: float) -> list[dict]:
    run = Records("dynamics", seed, depth=4, ood="none")
    for step in DYNAMICS:
        level = 100.0 if step < 75 else after_75
        run.add("numerical_rank", by_layer([100.0, 100.0, level + jitter(seed, 1)]), step=step)
        run.event()
    return run.rows


def swap_run(
    seed: int,
    depth: int,
    *,
    cut=CUT,
    swapped=0.78,
    alone=0.75,
    joined=0.70,
    forgot=0.3,
    train=0.99,
    first=0.8,
    second=0.99,
) -> list[dict]:
    layers, run = depth - 1, Records("swap", seed, depth=depth, ood="none")
    noise = jitter(seed, 2e-3)
    run.add("accuracy", train, split="train")
    run.add("accuracy", first)
    run.event()
    run.add("linear_probe", by_layer(curves(layers, cut)["probe"] * 2 * first))
    run.event()
    run.add("accuracy", second, split="train", task=1)
    run.add("accuracy", 0.8, task=1)
    run.event()
    run.add("accuracy", first - forgot + noise)
    for task in (0, 1):
        places = {f"{pair}:{cut}": swapped + noise if cut == CUT else 0.1 for pair in ("E1T2", "E2T1") for cut in
                  range(1, layers + 1)}  # fmt: skip
        run.add(
            "swap_accuracy", {"E1T1": 0.8 if task == 0 else 0.2, "E2T2": 0.5 if task == 0 else 0.8, **places}, task=task
        )
    for task in (0, 1):
        run.event()
        run.add("linear_probe", by_layer(np.where(np.arange(1, layers + 1) == CUT, alone + noise, 0.1)), task=task)
    for cut in range(1, layers + 1):
        for task in (0, 1):
            run.event()
            last = {f"hidden{layers}": joined if cut == CUT else 0.9}
            run.add("linear_probe", last, task=task, branch=f"E2T1 {cut}")
    return run.rows


def world(**changed) -> pl.DataFrame:
    """Everything as the paper says, but for what is changed: experiment -> rows of a seed."""
    makers = {
        "depth": lambda seed: [row for depth in DEPTHS for row in depth_run(depth, seed)],
        "classes": lambda seed: [
            row for count, cut in ((10, 2), (25, 3), (50, 4), (100, 5)) for row in classes_run(seed, cut, count)
        ],
        "samples": lambda seed: light_run("samples", seed, CUT, samples=2_500),
        "width": lambda seed: light_run("width", seed, 2, depth=12, width=128),
        "dynamics": lambda seed: dynamics_run(seed, 30.0),
        "swap": lambda seed: swap_run(seed, 10) + swap_run(seed, 6, forgot=0.2) + swap_run(seed, 3, forgot=0.9),
        **changed,
    }
    rows = [row for make in makers.values() for seed in range(SEEDS) for row in make(seed)]
    return pl.DataFrame(rows, infer_schema_length=None)


def verdicts(frame: pl.DataFrame) -> dict[str, dict]:
    return {claim["id"]: claim for claim in evaluate(CLAIMS, frame)}


def test_what_the_paper_says_holds_where_it_is_so():
    found = verdicts(world())
    assert {name: claim["verdict"] for name, claim in found.items()} == {f"TUN-{n}": "holds" for n in range(1, 13)}
    assert found["TUN-1"]["parts"][0]["measured"] == pytest.approx(100 * (11 - CUT) / 11)
    assert found["TUN-2"]["measured"] == pytest.approx(0, abs=1e-9)
    assert found["TUN-6"]["measured"] < 0
    assert found["TUN-9"]["measured"] == pytest.approx(2.0, abs=0.5)
    assert found["TUN-11"]["parts"][0]["measured"] == pytest.approx(-10, abs=1), "the shortest has 5 layers, not 2"


@pytest.mark.parametrize(
    ("changed", "fails"),
    [
        ({"depth": lambda seed: [r for d in DEPTHS for r in depth_run(d, seed, cut=d - 2)]}, {"TUN-1", "TUN-2"}),
        ({"depth": lambda seed: depth_run(12, seed, rank=np.full(11, 50.0))}, {"TUN-3"}),
        ({"depth": lambda seed: depth_run(12, seed, ood=np.linspace(0.2, 0.4, 11))}, {"TUN-5"}),
        ({"depth": lambda seed: depth_run(12, seed, reset=0.02)}, {"TUN-8"}),
        ({"depth": lambda seed: depth_run(12, seed, change=np.linspace(0.3, 1, 11))}, {"TUN-8"}),
        ({"depth": lambda seed: depth_run(12, seed, within=np.linspace(1, 2, 11))}, {"TUN-12"}),
        ({"dynamics": lambda seed: dynamics_run(seed, 80.0)}, {"TUN-4"}),
        ({"samples": lambda seed: light_run("samples", seed, 7, samples=2_500)}, {"TUN-7"}),
        (
            {
                "classes": lambda seed: [
                    row
                    for count, cut in ((10, 5), (100, 2))
                    for row in light_run(
                        "classes", seed, cut, data="cifar100", ood="none", classes=count, samples=1_800
                    )
                ]
            },
            {"TUN-6"},
        ),
        ({"swap": lambda seed: swap_run(seed, 10, swapped=0.55) + swap_run(seed, 6)}, {"TUN-9", "TUN-11"}),
        ({"swap": lambda seed: swap_run(seed, 10, joined=0.8) + swap_run(seed, 6, forgot=0.2)}, {"TUN-10"}),
    ],
)
def test_the_reverse_fails(changed, fails):
    found = verdicts(world(**changed))
    wrong = {name for name, claim in found.items() if claim["verdict"] == "fails"}
    assert wrong >= fails - {"TUN-11"}
    assert all(found[name]["verdict"] != "holds" for name in fails)


def test_runs_that_were_not_fitted_are_left_out_and_said():
    rows = [row for seed in range(SEEDS) for row in depth_run(12, seed, train=0.99 if seed else 0.9)]
    found = verdicts(pl.DataFrame(rows, infer_schema_length=None))["TUN-1"]
    assert found["n"] == SEEDS - 1
    assert "1 runs are left out" in found["reason"]
    rows = [row for seed in range(SEEDS) for row in depth_run(12, seed, train=0.9)]
    found = verdicts(pl.DataFrame(rows, infer_schema_length=None))["TUN-1"]
    assert found["verdict"] == "inconclusive"
    assert "setting" in found["reason"]


def test_data_that_cannot_test_the_question_give_no_verdict():
    rows = [row for seed in range(SEEDS) for row in depth_run(12, seed, data="fashion_mnist")]
    found = verdicts(pl.DataFrame(rows, infer_schema_length=None))
    assert found["TUN-3"]["verdict"] == "inconclusive"
    assert found["TUN-3"]["reason"].startswith("setting: fashion_mnist")


def trivial_world(**changed) -> pl.DataFrame:
    """As `world`, but the first layer of every network already separates the classes."""
    flat = {
        "depth": lambda seed: [r for d in DEPTHS for r in depth_run(d, seed, cut=1, probe=np.full(d - 1, 0.5))],
        "classes": lambda seed: [row for count in (10, 100) for row in classes_run(seed, 1, count)],
        "samples": lambda seed: light_run("samples", seed, 1, samples=2_500),
        "swap": lambda seed: swap_run(seed, 10, cut=1) + swap_run(seed, 6, cut=1, forgot=0.2),
    }
    return world(**{**flat, **changed})


def test_networks_whose_first_layer_separates_the_classes_decide_nothing():
    found = verdicts(trivial_world())
    decided = {name for name, claim in found.items() if claim["verdict"] != "inconclusive"}
    assert decided == {"TUN-4"}, "only the rank while training begins does not rest on K"
    for name in set(found) - decided:
        assert "the first layer already separates the classes" in found[name]["reason"], name
    assert found["TUN-2"]["measured"] == pytest.approx(0), "what was measured is shown all the same"


def test_one_run_whose_first_layer_separates_the_classes_is_enough_to_withhold():
    rows = lambda seed: depth_run(12, seed, cut=CUT if seed else 1)  # noqa: E731
    assert verdicts(world(depth=rows))["TUN-3"]["verdict"] == "inconclusive"


def vgg_run(seed: int, **changed) -> list[dict]:
    return depth_run(11, seed, experiment="families", network="vgg11", **changed)


PER_NETWORK = ("TUN-3", "TUN-5", "TUN-8", "TUN-12")


def test_claims_about_classifiers_are_asked_of_every_network_that_can_test_them():
    both = verdicts(world(families=vgg_run))
    other = verdicts(trivial_world(families=vgg_run))
    against = verdicts(
        world(
            families=lambda seed: vgg_run(
                seed,
                rank=np.full(10, 50.0),
                ood=np.linspace(0.2, 0.4, 10),
                reset=0.02,
                within=np.linspace(1, 2, 10),
            )
        )
    )
    for name in PER_NETWORK:
        assert [part["name"] for part in both[name]["parts"]] == ["MLP-12, width 512", "vgg11, cifar10"]
        assert both[name]["verdict"] == "holds", name
        assert other[name]["verdict"] == "holds", name
        assert [part["verdict"] for part in other[name]["parts"]] == ["inconclusive", "holds"], name
        assert "not judged by MLP-12" in other[name]["reason"]
        assert against[name]["verdict"] == "fails", name
        assert [part["verdict"] for part in against[name]["parts"]] == ["holds", "fails"], name
    assert other["TUN-1"]["verdict"] == "inconclusive", "TUN-1 is about MLPs"
    beside = {part["name"]: part["verdict"] for part in both["TUN-1"]["parts"]}
    assert beside["tunnel length of vgg11, cifar10 (reported, not claimed)"] == "holds"


def test_more_samples_may_be_asked_of_a_convolutional_network():
    four = lambda seed: vgg_run(seed, samples=10_000)  # noqa: E731
    few = lambda seed: light_run("samples", seed, 7, depth=11, network="vgg11", ood="none", samples=2_500)  # noqa: E731
    found = verdicts(world(families=four, samples=few))["TUN-7"]
    assert found["measured"] == pytest.approx(30), "K is 6 and 3 of 10"
    assert found["verdict"] == "fails"


def test_networks_without_a_tunnel_cannot_be_swapped():
    rows = [row for seed in range(SEEDS) for row in swap_run(seed, CUT + 1)]
    found = verdicts(pl.DataFrame(rows, infer_schema_length=None))["TUN-9"]
    assert found["verdict"] == "inconclusive"
    assert f"{SEEDS} of {SEEDS} runs have no tunnel" in found["reason"]
    rows = [row for seed in range(SEEDS) for row in swap_run(seed, 10, cut=CUT if seed > 1 else 40)]
    found = verdicts(pl.DataFrame(rows, infer_schema_length=None))["TUN-9"]
    assert (found["verdict"], found["n"]) == ("holds", SEEDS - 2)
    assert f"2 of {SEEDS} runs have no tunnel" in found["reason"]


def test_a_shortened_network_is_never_judged_for_the_whole_one():
    rows = [row for seed in range(SEEDS) for row in swap_run(seed, 10, train=0.9) + swap_run(seed, 6)]
    found = verdicts(pl.DataFrame(rows, infer_schema_length=None))
    for name in ("TUN-9", "TUN-10", "TUN-11"):
        assert found[name]["verdict"] == "inconclusive", name
        assert "reached training accuracy" in found[name]["reason"], name
    rows = [row for seed in range(SEEDS) for row in swap_run(seed, 10, second=0.9)]
    assert verdicts(pl.DataFrame(rows, infer_schema_length=None))["TUN-9"]["verdict"] == "inconclusive", (
        "task 2 unfitted"
    )


def test_shortened_networks_have_the_first_layers_of_the_whole_one():
    rows = [row for seed in range(SEEDS) for row in swap_run(seed, 10) + swap_run(seed, 6, forgot=0.2)]
    frame = pl.DataFrame(rows, infer_schema_length=None)
    assert verdicts(frame)["TUN-11"]["verdict"] == "holds"
    other = pl.col("place").str.replace("hidden3", "dense1")
    frame = frame.with_columns(pl.when(pl.col("depth") == 6).then(other).otherwise(pl.col("place")).alias("place"))
    assert verdicts(frame)["TUN-11"]["verdict"] == "not_run", "K = 3, and only two layers are the same"


INSIDE = ("TUN-3", "TUN-5", "TUN-8", "TUN-12")


def test_without_a_start_nothing_is_said_about_the_inside_of_a_tunnel():
    low = np.full(11, 0.2)
    rows = [row for seed in range(SEEDS) for row in depth_run(12, seed, **({} if seed else {"probe": low}))]
    found = verdicts(pl.DataFrame(rows, infer_schema_length=None))
    for name in INSIDE:
        assert found[name]["verdict"] == "inconclusive", name
        assert f"in 1 of {SEEDS} runs no layer reaches" in found[name]["reason"], name
    assert found["TUN-1"]["verdict"] != "holds", "that is what TUN-1 is about"


def test_numbers_that_are_not_finite_are_left_out_and_said():
    broken = np.full(11, np.nan)
    rows = [row for seed in range(SEEDS) for row in depth_run(12, seed, **({} if seed else {"probe": broken}))]
    frame = pl.DataFrame(rows, infer_schema_length=None)
    found = verdicts(frame)["TUN-3"]
    assert (found["verdict"], found["n"]) == ("holds", SEEDS - 1)
    assert "1 runs are left out" in found["reason"]
    assert summary(frame)
    zero = world(dynamics=lambda seed: dynamics_run(seed, 30.0))
    before = (pl.col("experiment") == "dynamics") & (pl.col("step") == 0)
    zero = zero.with_columns(pl.when(before).then(0.0).otherwise(pl.col("value")).alias("value"))
    assert verdicts(zero)["TUN-4"]["verdict"] == "not_run", "no ratio to a rank of 0"


def inside(end: float, start: float = 90.0) -> np.ndarray:
    """(11,) `start` to layer K, then straight to `end` at the last."""
    return start + (end - start) * np.maximum(np.arange(1, 12) - CUT, 0) / (11 - CUT)


@pytest.mark.parametrize(
    ("name", "just_inside", "just_outside"),
    [
        ("TUN-1", {"depth": lambda s: depth_run(12, s, cut=9)}, {"depth": lambda s: depth_run(12, s, cut=10)}),
        (
            "TUN-3",
            {"depth": lambda s: depth_run(12, s, rank=inside(29))},
            {"depth": lambda s: depth_run(12, s, rank=inside(31))},
        ),
        ("TUN-4", {"dynamics": lambda s: dynamics_run(s, 47.0)}, {"dynamics": lambda s: dynamics_run(s, 53.0)}),
        (
            "TUN-8",
            {"depth": lambda s: depth_run(12, s, reset=0.11)},
            {"depth": lambda s: depth_run(12, s, reset=0.09)},
        ),
        (
            "TUN-9",
            {"swap": lambda s: swap_run(s, 10, swapped=0.755)},
            {"swap": lambda s: swap_run(s, 10, swapped=0.745)},
        ),
        (
            "TUN-11",
            {"swap": lambda s: swap_run(s, 10) + swap_run(s, 6, forgot=0.2, first=0.785)},
            {"swap": lambda s: swap_run(s, 10) + swap_run(s, 6, forgot=0.2, first=0.775)},
        ),
        (
            "TUN-12",
            {"depth": lambda s: depth_run(12, s)},
            {"depth": lambda s: depth_run(12, s, between=np.linspace(2, 1, 11))},
        ),
    ],
)
def test_thresholds_stand_where_the_page_says(name, just_inside, just_outside):
    assert verdicts(world(**just_inside))[name]["verdict"] == "holds"
    assert verdicts(world(**just_outside))[name]["verdict"] == "fails"


def test_ranks_below_the_number_of_classes_are_no_evidence_against_the_collapse():
    rows = [row for seed in range(SEEDS) for row in depth_run(12, seed, rank=inside(22.0 if seed == 4 else 1.0))]
    assert verdicts(pl.DataFrame(rows, infer_schema_length=None))["TUN-3"]["verdict"] == "holds", "at most 3 times"


def test_the_tunnel_begins_after_layer_k():
    odd = {name: curves(11, CUT)[name].copy() for name in ("within", "between", "ood", "change")}
    odd["within"][CUT - 1], odd["between"][CUT - 1], odd["ood"][:CUT] = 0.1, 9.0, (0.5, 0.1, 0.31)
    rows = [row for seed in range(SEEDS) for row in depth_run(12, seed, **odd)]
    found = verdicts(pl.DataFrame(rows, infer_schema_length=None))
    measured = {name: {part["name"]: part["measured"] for part in found[name]["parts"]} for name in INSIDE}
    assert measured["TUN-12"]["Spearman of depth and variance within classes, in the tunnel"] == pytest.approx(-1)
    assert measured["TUN-12"]["Spearman of depth and variance between classes"] == pytest.approx(1)
    assert measured["TUN-5"]["Spearman of rank and accuracy out of distribution in the tunnel"] == pytest.approx(1)
    assert measured["TUN-8"]["relative weight change, tunnel / extractor"] == pytest.approx(0.3, abs=0.01)


def test_more_classes_at_equal_samples_of_each_are_reported_beside_equal_samples():
    both = lambda seed: [  # noqa: E731
        row
        for count, cut in ((10, 2), (25, 3), (50, 4))
        for samples in (1_800, 180 * count)
        for row in (
            classes_run(seed, cut, count, samples) if (samples, count) != (1_800, 10) or samples == 1_800 else []
        )
    ]
    found = verdicts(world(classes=both))["TUN-6"]
    beside = {part["name"]: part["verdict"] for part in found["parts"]}
    assert beside["slope at equal samples of each class (reported, not claimed)"] == "holds"


def test_claims_of_experiments_that_were_not_run_say_so():
    rows = [row for seed in range(SEEDS) for row in dynamics_run(seed, 30.0)]
    found = verdicts(pl.DataFrame(rows, infer_schema_length=None))
    assert {name for name, claim in found.items() if claim["verdict"] != "not_run"} == {"TUN-4"}


def test_claims_are_about_one_setting():
    rows = [r for s in range(SEEDS) for width in (1, 2) for r in depth_run(12, s)]
    frame = pl.DataFrame(rows, infer_schema_length=None)
    half = pl.Series(np.arange(len(frame)) < len(frame) // 2)
    frame = frame.with_columns(
        pl.when(half).then(0.1).otherwise(0.05).alias("learning_rate"),
        (pl.col("run") + half.cast(pl.String)).alias("run"),
    )
    assert "learning_rate" in verdicts(frame)["TUN-1"]["reason"]


def test_every_figure_is_drawn_and_the_summary_says_where_the_tunnel_starts():
    frame = world()
    for figure in FIGURES:
        assert figure.draw(frame) is not None, figure.name
        assert figure.draw(frame.filter(pl.col("metric") == "nothing")) is None, figure.name
    assert "MLP-12, width 512: 50 % test accuracy; the tunnel starts after layer 3 of 11" in summary(frame)[0]


def test_a_run_with_and_one_without_controls_are_one():
    frame = world()
    light = frame.filter((pl.col("experiment") == "depth") & (pl.col("branch") == "")).with_columns(
        run=pl.col("run") + " without", controls=pl.lit(False)
    )
    for both in (pl.concat([frame, light]), pl.concat([light, frame])):
        assert verdicts(both) == verdicts(frame)
        assert all(figure.draw(both) is not None for figure in FIGURES)


def test_presets_ask_for_what_their_page_says():
    plan = make_plan(STUDY, Request("tunnel", "quick"))
    runs = [run.config for run in plan.runs.values()]
    mlps = [config for config in runs if config.network == "mlp"]
    assert {config.depth for config in mlps if config.samples == 5_000 and config.width == 512} == set(DEPTHS)
    convolutional = [config for config in runs if config.network == "vgg11" and config.data == "cifar10"]
    assert {config.samples for config in convolutional} == {1_250, 5_000, 10_000}, "10,000 in the two tasks of swap"
    assert {config.network for config in runs} == {"mlp", "vgg7", "vgg11"}
    assert all(config.momentum == 0.9 for config in runs)
    paper = [run.config for run in make_plan(STUDY, Request("tunnel", "paper")).runs.values()]
    assert {config.network for config in paper} == {"mlp", "vgg9", "vgg11", "vgg16", "vgg19", "resnet34"}


def test_a_configuration_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="depth must be at least 2"):
        Config(depth=1)
    with pytest.raises(UsageError, match="digits has 10 classes, not 11"):
        main_data("digits", 11, 100)


def test_the_order_of_classes_and_the_classes_out_of_distribution_are_fixed():
    assert class_order(100)[:5] == class_order(100)[:5]
    assert sorted(class_order(100)) == list(range(100))
    assert class_order(100) != tuple(range(100))
    if places.locate(places.CIFAR100) is None:
        pytest.skip("needs NEOTENY_DATA with cifar100.npz")
    assert len(class_numbers(load("cifar100"), tuple(OOD_CLASSES.split(",")))) == 10


def test_block_and_convolution_of_every_measurement_point_are_recorded():
    config = Config(data="digits", ood="none", network="vgg7", controls=True, samples=100)
    [data] = stream(config)
    probes = [probe for event in depth_script(config, (data,)) for probe in getattr(event, "probes", ())]
    found = {probe.name: probe.function(None) for probe in probes if probe.name in ("block", "convolution")}
    assert found["block"] == {"conv1": 1, "conv2": 2, "conv3": 3, "conv4": 3}
    assert found["convolution"] == {"conv1": 1, "conv2": 2, "conv3": 3, "conv4": 4}
    dense = depth_script(replace(config, network="mlp"), (data,))
    assert not {p.name for e in dense for p in getattr(e, "probes", ())} & {"block", "convolution"}


def test_controls_on_fewer_images_measure_the_whole_test_split():
    config = Config(data="digits", ood="none", samples=1_200, controls=True)
    [controls] = [event for event in depth_script(config, tuple(stream(config)))[-1:] if isinstance(event, Fork)]
    [event] = controls.branches["n 1000"]
    assert event.samples is None
    assert [probe.fit_samples for probe in event.probes] == [1_000]
