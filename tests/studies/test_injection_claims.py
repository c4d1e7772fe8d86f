"""The injection study's claims just inside and just outside their thresholds, on records that differ hugely from seed
to seed and by the claimed amount within one.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl
import pytest

from neoteny.analysis.claims import evaluate
from neoteny.studies.injection import STUDY
from neoteny.studies.injection.gains import (
    GAMES_STRUCTURE,
    GROWTH_STRUCTURE,
    ILLUSTRATION_STRUCTURE,
    MDP_STRUCTURE,
    STRUCTURE,
    along,
    gain_at,
    game_gains,
    growth_areas,
    relabel_rows,
)
from neoteny.studies.injection.games import GamesConfig
from neoteny.studies.injection.growth import GrowthConfig
from neoteny.studies.injection.illustration import IllustrationConfig
from neoteny.studies.injection.mdp import MDP_ARMS, MDPConfig
from neoteny.studies.injection.relabel import ARMS, DEFAULT, TUNED, Config

SEEDS, TASKS, STEPS = 8, 3, 100
NEAR = 0.1
"""How far inside or outside a threshold; what differs between seeds but for the offset is a tenth of it."""


def offset(seed: int) -> float:
    """In points; in no order, so that pairs taken by place and not by seed do not cancel."""
    return float((5 * seed) % SEEDS * 3)


def jitter(seed: int) -> float:
    return NEAR / 10 * (-1) ** seed


def fields(config) -> dict:
    return {name: value for name, value in vars(config).items() if name != "seed"}


def row(experiment, config, seed, step, metric, value, *, task=0, branch="", place="", run="", event=1):
    made = {"run": run or f"{experiment}-{config}-{(3 * seed) % SEEDS}", "experiment": experiment, "event": event}
    told = {"seed": seed, "task": task, "step": step, "metric": metric, "value": float(value)}
    return {**made, **told, "branch": branch, "place": place, **fields(config)}


def shuffled(rows) -> pl.DataFrame:
    """A frame of these rows in no order."""
    return pl.DataFrame(rows, infer_schema_length=None).sample(fraction=1.0, shuffle=True, seed=3)


def copies(last=None, first=None, start=None, adam=DEFAULT, jump=0.0, **changes) -> list[dict]:
    """Records of `relabel`: points by which each arm lies above the control at the last fork and after task 1, and in
    the first steps on the task that goes on.
    """
    last, first, start = last or {}, first or {}, start or {}
    config = Config(tasks=TASKS, steps_per_task=STEPS, adam_b2=adam[0], adam_eps_root=adam[1], **changes)
    rows = []
    for seed in range(SEEDS):
        put = partial(row, "relabel", config, seed)
        for fork, gains in ((1, first), (config.tasks, last)):
            end = fork * config.steps_per_task
            for arm in ARMS:
                gain = gains.get(arm, 0.0) + (jitter(seed) if arm == "inject" else 0.0)
                # Early in the task every arm is where the others are not: only the last record counts.
                put_arm = partial(put, branch=arm, metric="train_accuracy")
                rows.append(put_arm(step=end + 50, value=0.9 - (40 + gain) / 100, task=fork))
                rows.append(put_arm(step=end + 100, value=(40 + offset(seed) + gain) / 100, task=fork))
                same = start.get(arm, 0.0) + (jitter(seed) if arm == "inject" else 0.0)
                rows.append(put_arm(step=end + 2, value=(50 + offset(seed) + same) / 100, task=fork - 1))
            rows.append(put(end, "output_jump", jump, task=fork - 1, branch="inject", place="online"))
            rows.append(put(end, "output_jump", 1.0, task=fork - 1, branch="reset", place="online"))
    return rows


def labels(gain, **changes) -> list[dict]:
    """Records of `mdp`: rewards of a hundred steps by which the injected copy lies above the control."""
    config = replace(MDPConfig(updates=2_000), **changes)
    rows = []
    for seed in range(SEEDS):
        for arm in MDP_ARMS:
            more = gain + jitter(seed) if arm == "inject" else 0.0
            for step, value in ((1_900, 90.0 - more), (2_000, 20 + offset(seed) + more)):
                rows.append(row("mdp", config, seed, step, "train_reward", value / 100, branch=arm))
    return rows


def grown(gain, **changes) -> list[dict]:
    """Records of `growth`: points by which the area of the growing network lies above that of the large one."""
    rows = []
    for arm in ("grow", "large", "small"):
        config = replace(GrowthConfig(tasks=3, arm=arm), **changes)
        # Arms take other numbers of updates for a task, in parts that are not alike.
        steps = {"grow": (7, 3), "large": (2, 3), "small": (5, 5)}[arm]
        for seed in range(SEEDS):
            step = 0
            for task in range(3):
                area = 40 + offset(seed) + ((gain + jitter(seed)) if arm == "grow" else 0.0)
                heights = area - 10 * steps[1] / sum(steps), area + 10 * steps[0] / sum(steps)
                for updates, height in zip(steps, heights, strict=True):
                    step += updates
                    rows.append(row("growth", config, seed, step, "train_accuracy", height / 100, task=task))
                rows.append(row("growth", config, seed, step, "accuracy", 0.5, task=task))
    return rows


def regressing(slope) -> list[dict]:
    """Records of `illustration`: the slope of log updates that a warm start has more than one begun anew."""
    rows, config = [], IllustrationConfig(policies=5)
    for seed in range(SEEDS):
        for task in range(1, 6):
            for arm, more in (("warm", slope + jitter(seed) / 100), ("reset", 0.0)):
                count = 50 * np.exp((more + 0.05) * task + offset(seed) / 10)
                place = f"{task}/{arm}/updates-0.5"
                rows.append(row("illustration", config, seed, 100, "regression", count, place=place))
    return rows


def verdict(claim, rows):
    (found,) = evaluate([each for each in STUDY.claims if each.id == claim], shuffled(rows))
    return found


JUST = [
    ("INJ-1", lambda near: copies(jump=1e-5 - near * 1e-6), 1e-5),
    ("INJ-3", lambda near: copies(last={"inject": near}), 0.0),
    ("INJ-4", lambda near: copies() + copies(last={"inject": 2 - near}, adam=TUNED), 2.0),
    ("INJ-4", lambda near: copies() + copies(last={"inject": near - 2}, adam=TUNED), -2.0),
    ("INJ-4", lambda near: copies(first={"inject": 2 - near}) + copies(adam=TUNED), 2.0),
    ("INJ-4", lambda near: copies(first={"inject": near - 2}) + copies(adam=TUNED), -2.0),
    ("INJ-5", lambda near: copies(start={"inject": near}), 0.0),
    ("INJ-6", lambda near: copies(last={"reset": 1 - near}), -1.0),
    ("INJ-6", lambda near: copies(last={"shrink_perturb": 1 - near}), -1.0),
    ("INJ-7", lambda near: copies(last={"inject": 5 + near, "reset_all": 5}), 0.0),
    ("INJ-8", lambda near: copies(last={"inject": 5, "train_all": 6 - near}), -1.0),
    ("INJ-9", lambda near: labels(near), 0.0),
    ("INJ-10", lambda near: grown(near), 0.0),
    ("INJ-13", lambda near: regressing(near / 100), 0.0),
]


@pytest.mark.parametrize(("claim", "make", "threshold"), JUST)
def test_claims_turn_at_their_thresholds(claim, make, threshold):
    inside, outside = verdict(claim, make(NEAR)), verdict(claim, make(-NEAR))
    assert (inside["verdict"], outside["verdict"]) == ("holds", "fails"), (threshold, inside, outside)
    for found in (inside, outside):
        assert found["n"] == SEEDS


def test_neither_side_of_a_threshold_is_inconclusive():
    for claim, make, _ in JUST[1:]:
        assert verdict(claim, make(0.0))["verdict"] == "inconclusive", claim


@pytest.mark.parametrize("claim", ["INJ-3", "INJ-5", "INJ-7", "INJ-9", "INJ-10"])
def test_pairs_are_made_by_seed(claim):
    """The records are in no order, and seeds differ by a hundred times what is claimed."""
    make = next(make for name, make, _ in JUST if name == claim)
    low, high = verdict(claim, make(NEAR))["interval"]
    assert 0 < high - low < NEAR


def test_the_largest_jump_of_any_network_at_any_fork_counts():
    def jumps(experiment, config, branch="inject"):
        put = partial(row, experiment, config, metric="output_jump", branch=branch, place="target", step=1_000)
        return [put(seed=3, value=2e-5), put(seed=4, value=0.0)]

    agent, game = MDPConfig(updates=2_000), GamesConfig()
    assert verdict("INJ-1", copies(jump=1e-7))["verdict"] == "holds"
    assert verdict("INJ-1", [*copies(jump=1e-7), *jumps("mdp", agent)])["verdict"] == "fails"
    assert verdict("INJ-1", [*copies(jump=1e-7), *jumps("mdp", agent, "reset")])["verdict"] == "holds"
    found = verdict("INJ-1", [*copies(jump=1e-7), *jumps("games", game)])
    assert {part["name"]: (part["verdict"], part["n"]) for part in found["parts"]} == {
        "largest jump in relabel": ("holds", SEEDS),
        "largest jump in games": ("fails", 2),
    }


def test_only_forks_decide_that_they_should():
    """INJ-3 is about the last fork, INJ-4 about the first under default Adam."""
    early = copies(first={"inject": -1.5}, last={"inject": 5.0}) + copies(adam=TUNED)
    assert verdict("INJ-3", early)["measured"] == pytest.approx(5.0, abs=0.02)
    assert verdict("INJ-4", early)["verdict"] == "holds"
    late = copies(last={"inject": 5.0}) + copies(first={"inject": 5.0}, adam=TUNED)
    assert verdict("INJ-4", late)["verdict"] == "holds"


def test_superiority_is_reported_and_does_not_decide():
    found = verdict("INJ-6", copies(last={"inject": 0.5, "reset": 1.0, "shrink_perturb": 1.0}))
    assert found["verdict"] == "holds"
    assert [part["verdict"] for part in found["parts"]] == ["holds", "holds", "fails", "fails"]


def test_a_dead_encoder_shows_beside_a_gain_that_is_not_there():
    found = verdict("INJ-3", copies(last={"inject": -1.0, "inject_whole": 30.0}))
    assert found["verdict"] == "fails"
    whole, twice = found["parts"]
    assert (whole["verdict"], whole["measured"]) == ("holds", pytest.approx(30.0))
    assert (twice["measured"], "again" in twice["name"]) == (0.0, True)


def test_the_gain_with_spectral_normalisation_is_reported_of_its_own_runs():
    changes = {"spectral": True, "arms": "pair"}
    normalised = [{**each, "experiment": "settings"} for each in copies(last={"inject": 4.0}, **changes)]
    wider = [{**each, "experiment": "settings"} for each in copies(last={"inject": 9.0}, width=1024, **changes)]
    tuned = [{**each, "experiment": "settings"} for each in copies(last={"inject": 9.0}, adam=TUNED, **changes)]
    found = verdict("INJ-3", copies(last={"inject": 1.0}) + normalised + wider + tuned)
    assert found["measured"] == pytest.approx(1.0)
    (part,) = (part for part in found["parts"] if "spectral" in part["name"])
    assert (part["measured"], part["n"]) == (pytest.approx(4.0), SEEDS)


OTHER = {
    "data": "digits", "labels": "true", "goal": "sparse", "epsilon": 0.2, "arms": "pair", "learning_rate": 2e-3,
    "adam_b2": 0.99, "adam_eps_root": 1e-4, "spectral": True, "game": "asterix",
}  # fmt: skip


def changed(config, name):
    """Another value of this field."""
    return OTHER[name] if name in OTHER else 2 * getattr(config, name)


@pytest.mark.parametrize("name", [*STRUCTURE, "arms"])
def test_runs_of_two_settings_decide_nothing(name):
    config = Config(tasks=TASKS, steps_per_task=STEPS)
    rows = copies(last={"inject": 5.0})
    others = [{**each, name: changed(config, name), "run": each["run"] + "x"} for each in rows]
    for claim in ("INJ-3", "INJ-5", "INJ-6", "INJ-7", "INJ-8", "INJ-11"):
        found = verdict(claim, rows + others)
        assert found["verdict"] == "not_run", claim
        assert name in found["reason"]


@pytest.mark.parametrize("name", MDP_STRUCTURE)
def test_agents_of_two_settings_decide_nothing(name):
    found = verdict("INJ-9", labels(3.0) + labels(3.0, **{name: changed(MDPConfig(updates=2_000), name)}))
    assert found["verdict"] == "not_run"
    assert name in found["reason"]


@pytest.mark.parametrize("name", GROWTH_STRUCTURE)
def test_growing_networks_of_two_settings_decide_nothing(name):
    found = verdict("INJ-10", grown(3.0) + grown(3.0, **{name: changed(GrowthConfig(tasks=3), name)}))
    assert found["verdict"] == "not_run"
    assert name in found["reason"]


@pytest.mark.parametrize("name", ILLUSTRATION_STRUCTURE)
def test_regressions_of_two_settings_decide_nothing(name):
    config = IllustrationConfig(policies=5)
    others = [{**each, name: changed(config, name), "run": each["run"] + "x"} for each in regressing(0.1)]
    found = verdict("INJ-13", regressing(0.1) + others)
    assert found["verdict"] == "not_run"
    assert name in found["reason"]


def ended(rows, metric, **where) -> list[dict]:
    """Without what these records' run measured from the first of them on, where it diverged."""
    mine = [each for each in rows if all(each[name] == value for name, value in where.items())]
    first = min(mine, key=lambda each: each["step"])
    kept = [each for each in rows if each["run"] != first["run"] or each["step"] < first["step"]]
    return [*kept, {**first, "metric": "diverged", "place": "", "value": 1.0}]


def test_a_run_that_diverged_before_a_fork_has_the_worst_copies_there():
    rows = copies(last={"inject": 5.0}, first={"inject": 5.0})
    run = next(each["run"] for each in rows if each["seed"] == 2)
    death = {**next(each for each in rows if each["run"] == run), "branch": "", "place": "", "metric": "diverged"}
    kept = [each for each in rows if each["run"] != run or each["step"] < 2 * STEPS + 50]
    frame = shuffled([*kept, {**death, "step": 2 * STEPS + 50, "task": 2}])
    gains = gain_at(relabel_rows(frame, DEFAULT), "inject", TASKS)
    assert len(gains) == SEEDS
    assert gains[2] == 0.0, "all copies alike"
    assert len(gain_at(relabel_rows(frame, DEFAULT), "inject", 1)) == SEEDS
    assert gain_at(relabel_rows(frame, DEFAULT), "inject", 1)[2] == pytest.approx(5.0, abs=0.02)
    agents = labels(3.0)
    lost = [each for each in agents if each["seed"] == 2]
    agents = [each for each in agents if each["seed"] != 2]
    agents.append({**lost[0], "branch": "", "metric": "diverged", "step": 500})
    found = verdict("INJ-9", agents)
    assert (found["n"], found["measured"]) == (SEEDS, pytest.approx(3.0 * (SEEDS - 1) / SEEDS, abs=0.02))


def test_a_network_that_diverged_while_it_grew_has_the_least_area_from_there_on():
    rows = grown(3.0)
    least = growth_areas(shuffled(rows)).group_by("task").agg(pl.col("value").min()).sort("task")["value"]
    cut = ended(rows, "train_accuracy", arm="grow", seed=4, task=2)
    areas = growth_areas(shuffled(cut)).filter((pl.col("arm") == "grow") & (pl.col("seed") == 4)).sort("task")
    assert areas["value"][2] == pytest.approx(least[2])
    assert areas["value"][1] == pytest.approx(43 + offset(4), abs=0.1)
    assert verdict("INJ-10", cut)["n"] == SEEDS


def test_growth_that_is_not_finished_decides_nothing():
    rows = [each for each in grown(3.0) if each["task"] < 2]
    assert verdict("INJ-10", rows)["verdict"] == "not_run"


def test_areas_weigh_every_update_alike():
    areas = growth_areas(shuffled(grown(3.0)))
    for arm, more in (("grow", 3.0), ("large", 0.0)):
        for seed in range(SEEDS):
            mine = areas.filter((pl.col("arm") == arm) & (pl.col("seed") == seed))["value"].to_numpy()
            expected = 40 + offset(seed) + (more + jitter(seed) if arm == "grow" else 0.0)
            np.testing.assert_allclose(mine, [expected] * 3)


# Axes and proxies -------------------------------------------------------------------------------------------------


def around(axis, values, slope) -> list[dict]:
    """Records of `settings` on both sides of `relabel`'s own: the gain changes by `slope` from each to the next."""
    rows = []
    for place, value in zip((-1, 1), values, strict=True):
        config = Config(tasks=TASKS, steps_per_task=STEPS, arms="pair")
        config = replace(config, **{axis: value})
        end = (TASKS + 1) * config.steps_per_task
        for seed in range(SEEDS):
            for arm in ("control", "inject"):
                gain = 20 + slope * place + jitter(seed) if arm == "inject" else 0.0
                value = (20 + offset(seed) + gain) / 100
                rows.append(row("settings", config, seed, end, "train_accuracy", value, task=TASKS, branch=arm))
    return rows


AXES = {"steps_per_task": (50, 200), "learning_rate": (2.5e-4, 4e-3), "width": (256, 1_024)}
SIGNS = {"steps_per_task": 1, "learning_rate": 1, "width": -1}


@pytest.mark.parametrize("wrong", [None, *AXES])
def test_the_gain_must_follow_every_axis_in_its_own_direction(wrong):
    rows = copies(last={"inject": 20.0})
    for axis, values in AXES.items():
        rows += around(axis, values, SIGNS[axis] * (-5 if axis == wrong else 5))
    found = verdict("INJ-12", rows)
    assert found["verdict"] == ("holds" if wrong is None else "fails")
    assert [part["verdict"] for part in found["parts"]] == ["fails" if axis == wrong else "holds" for axis in AXES]
    gains = along(shuffled(rows), "width")
    assert gains.group_by("setting").len()["len"].to_list() == [SEEDS] * 3


def proxied(follows) -> list[dict]:
    """Forks at which the gain is 0 and 20; one proxy follows it (1), goes against it (-1), or is the same (0)."""
    rows = copies(last={"inject": 20.0})
    config = Config(tasks=TASKS, steps_per_task=STEPS)
    for seed in range(SEEDS):
        for fork, size in ((1, 0.0), (TASKS, 1.0)):
            for name, place in (
                ("dead_units", "all"),
                ("dormant_units", "all"),
                ("feature_rank", ""),
                ("weight_norm", "all"),
            ):
                value = follows * size if name == "weight_norm" else (seed + (4 if size else 0)) % SEEDS
                rows.append(row("relabel", config, seed, fork * STEPS, name, value, task=fork - 1, place=place))
    return rows


@pytest.mark.parametrize("follows", [1, -1])
def test_a_proxy_that_tells_the_gain_in_either_direction_fails(follows):
    found = verdict("INJ-11", proxied(follows))
    assert found["verdict"] == "fails"
    assert found["parts"][-1]["verdict"] == "fails"
    assert found["parts"][-1]["measured"] > 0.5


def test_every_proxy_must_have_been_measured():
    found = verdict("INJ-11", [each for each in proxied(1) if each["metric"] != "feature_rank"])
    assert found["verdict"] == "not_run"
    assert "feature_rank" in found["reason"]


# Games ------------------------------------------------------------------------------------------------------------


def played(**changes) -> list[dict]:
    """A run of `games` and its injected copies, which lie 1, 2 and 3 above it after as many quarters."""
    config, rows = replace(GamesConfig(game="breakout", frames=400), **changes), []
    for seed in range(SEEDS):
        for step in (1, *range(10, 401, 10)):
            put = partial(row, "games", config, seed, step)
            rows += [put("train_episodes", 2.0), put("train_returns", 2 * (offset(seed) + step / 100))]
            quarter = (step - 1) // 100
            if quarter:
                value = offset(seed) + step / 100 + quarter
                rows += [
                    put("train_episodes", 3.0, branch="inject", event=10 * quarter),
                    put("train_returns", 3 * value, branch="inject", event=10 * quarter),
                ]
    return rows


def test_games_are_paired_with_their_own_run():
    gains = game_gains(shuffled(played()))
    for fork in (1, 2, 3):
        mine = gains.filter(pl.col("fork") == fork)["value"].to_numpy()
        np.testing.assert_allclose(mine, [fork] * SEEDS)


@pytest.mark.parametrize("name", GAMES_STRUCTURE)
def test_games_of_two_settings_are_not_reported(name):
    one = verdict("INJ-9", labels(3.0) + played())
    assert len(one["parts"]) == 3
    two = verdict("INJ-9", labels(3.0) + played() + played(**{name: changed(GamesConfig(), name)}))
    assert (two["verdict"], two["parts"]) == ("holds", [])
