"""The claims of the injection study on made-up records, and its scripts and presets."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl
import pytest

from device_loop import Corridor
from neoteny.agents import MinAtarDQN
from neoteny.analysis.claims import evaluate
from neoteny.errors import UsageError
from neoteny.interventions import Inject
from neoteny.lab import configs
from neoteny.lab.plan import Request, make_plan
from neoteny.studies.games import minatar_source, minatar_stream
from neoteny.studies.injection import STUDY, summary
from neoteny.studies.injection.atari import AtariConfig, told_of_atari
from neoteny.studies.injection.atari import script as atari_script
from neoteny.studies.injection.gains import game_gains, game_returns, performance_of, relabel_rows
from neoteny.studies.injection.games import GAME_HEAD, GamesConfig, games_script
from neoteny.studies.injection.growth import GrowthConfig, growing, growth_script, growth_stream, update_flops
from neoteny.studies.injection.illustration import IllustrationConfig, monte_carlo, smoothed, updates_to
from neoteny.studies.injection.learning import (
    PUBLISHED,
    beside_the_published,
    learned,
    learning_learner,
    learning_script,
)
from neoteny.studies.injection.mdp import MDP_ARMS, MDPConfig, mdp_script
from neoteny.studies.injection.relabel import ARMS, CORE, DEFAULT, TUNED, Config, forks, script, stream
from neoteny.tasks import environments
from neoteny.training.events import Fork, Intervene, Probe, Save, Switch, Train

SEEDS, TASKS, STEPS = 10, 12, 100
FORKS = (1, 2, 4, 8, 12)
GAINS = {"inject": 20.0, "placebo": 0.0, "reset": 18.0, "shrink_perturb": 12.0, "fresh": 25.0}
LAST = {
    "inherit": 19.0,
    "reset_all": 10.0,
    "train_all": 19.5,
    "stop_z": 5.0,
    "frozen_encoder": 5.0,
    "inject_whole": 22.0,
    "widen": 15.0,
    "inject_twice": 21.0,
}


def row(run, seed, config, task, step, metric, value, branch="", place="", experiment="relabel"):
    return {
        "run": run, "experiment": experiment, "event": 0, "seed": seed, "task": task, "step": step, "metric": metric,
        "value": float(value), "branch": branch, "place": place, **config,
    }  # fmt: skip


def config_of(b2, root, **changes):
    config = Config(width=128, batch=128, tasks=TASKS, steps_per_task=STEPS, adam_b2=b2, adam_eps_root=root)
    return {name: value for name, value in vars(replace(config, **changes)).items() if name != "seed"}


def relabel(tuned_gain=0.0, gains=None, start=10.0, jump=0.0, dead=0.02, **changes):
    """Records of both Adams; under the default one the gain of every arm grows from 0 at task 1 to its last value."""
    rng = np.random.default_rng(0)
    given = {**GAINS, **LAST, **(gains or {})}
    rows = []
    for b2, root in (DEFAULT, TUNED):
        config, default = config_of(b2, root, **changes), b2 == DEFAULT[0]
        steps = config["steps_per_task"]
        for seed in range(SEEDS):
            run = f"{b2}-{seed}-{changes}"
            noise = lambda: rng.normal(0, 0.3)  # noqa: E731
            for task in range(TASKS):
                end = (task + 1) * steps
                rows.append(row(run, seed, config, task, end, "accuracy", 0.5))
                for place in ("hidden1", "hidden2", "all"):
                    rows.append(row(run, seed, config, task, end, "dead_units", rng.uniform(0, dead), place=place))
            for fork in FORKS:
                end, scale = fork * steps, (FORKS.index(fork) / (len(FORKS) - 1) if default else 0.0)
                # Every value once at every fork, so that none can follow the gain, which grows from fork to fork.
                for step, (name, place) in enumerate(
                    (("dormant_units", "all"), ("feature_rank", "hidden2"), ("weight_norm", "all")), 1
                ):
                    proxy = (step * seed + FORKS.index(fork) * (SEEDS // 2)) % SEEDS
                    rows.append(row(run, seed, config, fork - 1, end, name, proxy, place=place))
                for arm in ("control", "inject", "placebo", "reset"):
                    value = 90 - (start if arm == "reset" else 0) + noise()
                    rows.append(
                        row(
                            run,
                            seed,
                            config,
                            fork - 1,
                            end,
                            "output_jump",
                            jump if arm == "inject" else 0,
                            arm,
                            "online",
                        )
                    )
                    rows.append(row(run, seed, config, fork - 1, end, "parameters", 1000, arm, "trained"))
                    rows.append(row(run, seed, config, fork - 1, end + 2, "train_accuracy", value / 100, arm))
                for arm in ARMS if fork == TASKS else CORE:
                    gain = 0.0 if arm == "control" else given[arm] * scale + (0 if default else tuned_gain)
                    for part in (0.5, 1.0):
                        value = part * (50 + gain + noise())
                        step = end + int(part * steps)
                        rows.append(row(run, seed, config, fork, step, "train_accuracy", value / 100, arm))
    return pl.DataFrame(rows)


def grown(gain=5.0, whole=3.0):
    rng = np.random.default_rng(1)
    rows = []
    for arm, value in {"grow": gain, "grow_whole": whole, "large": 0.0, "small": -5.0}.items():
        config = {k: v for k, v in vars(GrowthConfig(tasks=6, arm=arm)).items() if k != "seed"}
        for seed in range(6):
            for task in range(6):
                accuracy = (50 + value + rng.normal(0, 0.5)) / 100
                put = partial(row, f"{arm}-{seed}", seed, config, task, experiment="growth")
                rows.append(put(10 * task + 10, "accuracy", 0.5))
                # Six of a task's ten updates at one height and four at another: the area is what was put in.
                rows.append(put(10 * task + 6, "train_accuracy", accuracy - 0.2))
                rows.append(put(10 * task + 10, "train_accuracy", accuracy + 0.3))
    return pl.DataFrame(rows)


def axis(name, values, slope):
    """Records of `settings`: the gain at the last fork is 20 + slope * its place on the axis (-1 or 1)."""
    rng = np.random.default_rng(2)
    rows = []
    for place, value in zip((-1, 1), values, strict=True):
        config = config_of(*DEFAULT, arms="pair", **{name: value})
        end, steps = TASKS * config["steps_per_task"], config["steps_per_task"]
        for seed in range(5):
            for arm in ("control", "inject"):
                gain = 0 if arm == "control" else 20 + slope * place + rng.normal(0, 0.3)
                rows.append(
                    row(f"{name}{value}-{seed}", seed, config, TASKS, end + steps, "train_accuracy", (50 + gain) / 100,
                        arm, experiment="settings")
                )  # fmt: skip
    return pl.DataFrame(rows)


def labels(gain=3.0, seeds=10, **changes):
    """Records of the classification MDP: every copy's reward rate falls short of 0.5 by its own amount."""
    rng = np.random.default_rng(3)
    gains = {"control": 0, "inject": gain, "placebo": 0, "reset": 1, "shrink_perturb": 1, "fresh": 4}
    config = {k: v for k, v in vars(MDPConfig(**changes)).items() if k != "seed"}
    rows = []
    for seed in range(seeds):
        for arm, given in gains.items():
            for part in (0.5, 1.0):
                value = (50 + part * given + rng.normal(0, 0.3)) / 100
                step = int(config["updates"] * (1 + part) / 2)
                rows.append(row(f"mdp-{seed}", seed, config, 0, step, "train_reward", value, arm, experiment="mdp"))
    return pl.DataFrame(rows)


GAME_GAINS = {"breakout": (0.0, 2.0, 4.0), "freeway": (-1.0, 0.0, 1.0)}


def playing(seeds=5):
    """Records of two games; gains at the three forks. Returns are sums over so many episodes."""
    rng = np.random.default_rng(4)
    rows = []
    for game, gains in GAME_GAINS.items():
        config = {k: v for k, v in vars(GamesConfig(game=game, frames=800, period=2)).items() if k != "seed"}
        for seed in range(seeds):
            run = f"{game}-{seed}"

            def put(step, value, branch="", event=1, run=run, seed=seed, config=config):
                episodes = rng.integers(1, 4)
                for metric, number in (("train_episodes", episodes), ("train_returns", episodes * value)):
                    made = row(run, seed, config, 0, step, metric, number, branch, experiment="games")
                    rows.append({**made, "event": event})

            for step in (1, *range(10, 401, 10)):
                put(step, 10 + step / 100)
            for fork, gain in enumerate(gains, 1):
                for step in range(100 * fork + 10, 100 * fork + 101, 10):
                    last = step == 100 * (fork + 1)
                    value = 10 + step / 100 + (gain if last else -5) + rng.normal(0, 0.1)
                    put(step, value, "inject", 10 * fork)
    return pl.DataFrame(rows)


def regressing(slope=0.1, seeds=5, tasks=6, reached=True):
    """Records of the illustration: at a loss of 0.5 a warm start needs exp(slope) times more updates every task."""
    rng = np.random.default_rng(5)
    config = {k: v for k, v in vars(IllustrationConfig(policies=20)).items() if k != "seed"}
    rows = []
    for seed in range(seeds):
        for task in range(1, tasks + 1):
            for arm, growth in (("warm", slope), ("reset", 0.0)):
                count = 100 * np.exp(growth * task + rng.normal(0, 0.01))
                found = {"loss": 0.2, "updates-0.8": count / 2, "updates-0.5": count, "updates-0.3": 1001}
                for what, value in found.items():
                    value = value if reached or what == "loss" else 1001
                    place = f"{task}/{arm}/{what}"
                    rows.append(
                        row(f"ill-{seed}", seed, config, 0, 100, "regression", value, "", place, "illustration")
                    )
    return pl.DataFrame(rows)


def played(game, final, frames=5_000_000, seeds=3, spread=0.5, unfinished=False):
    """Records of `learning`: returns rise to `final` over nine tenths and stay there, seeds differ by `spread`."""
    config = {k: v for k, v in vars(GamesConfig(game=game, frames=frames)).items() if k != "seed"}
    rows = []
    for seed in range(seeds):
        mine = final + spread * (seed - (seeds - 1) / 2)
        for at in (1, *(int(frames * part / 20) for part in range(1, 20 if unfinished else 21))):
            # Twice as many episodes end in the first half of the last tenth, and their returns are lower.
            tail = {19: (2.0, -1.0), 20: (1.0, 2.0)}.get(round(20 * at / frames), (1.0, 0.0))
            episodes, more = tail
            value = 1.0 if at == 1 else mine * min(1.0, at / (0.9 * frames)) + more
            for metric, number in (("train_episodes", episodes), ("train_returns", episodes * value)):
                rows.append(
                    row(f"l-{game}-{frames}-{seed}", seed, config, 0, at, metric, number, experiment="learning")
                )
    return pl.DataFrame(rows)


def everything(**changes):
    parts = [
        labels(),
        played("breakout", 10.0),
        played("freeway", 30.0, frames=1_000_000),
        playing(),
        regressing(),
        relabel(**changes),
        grown(),
        axis("steps_per_task", (STEPS // 2, 2 * STEPS), 5),
        axis("learning_rate", (2.5e-4, 4e-3), 5),
        axis("width", (64, 256), -5),
    ]
    return pl.concat(parts, how="diagonal_relaxed")


def verdicts(frame):
    return {claim["id"]: claim for claim in evaluate(STUDY.claims, frame)}


def test_claims_hold_where_the_records_say_so():
    found = verdicts(everything())
    assert {claim["verdict"] for claim in found.values()} == {"holds"}, {k: v["verdict"] for k, v in found.items()}
    assert found["INJ-3"]["measured"] == pytest.approx(20.0, abs=0.5)
    assert found["INJ-3"]["n"] == SEEDS
    assert found["INJ-5"]["measured"] == pytest.approx(10.0, abs=0.3)
    assert found["INJ-7"]["measured"] == pytest.approx(10.0, abs=0.5)
    assert found["INJ-8"]["measured"] == pytest.approx(0.5, abs=0.5)
    assert found["INJ-10"]["measured"] == pytest.approx(5.0, abs=0.5)
    assert found["INJ-10"]["parts"][0]["measured"] == pytest.approx(3.0, abs=0.5)
    not_worse, _, *better = found["INJ-6"]["parts"]
    assert not_worse["measured"] == pytest.approx(2.0, abs=0.5)
    assert [part["verdict"] for part in better] == ["holds", "holds"]
    assert [part["n"] for part in found["INJ-12"]["parts"]] == [5, 5, 5]


def test_claims_fail_where_the_opposite_is_so():
    found = verdicts(relabel(gains={"inject": -5.0}, tuned_gain=9.0, start=-5.0, jump=1e-3))
    failing = ("INJ-1", "INJ-3", "INJ-4", "INJ-5", "INJ-6", "INJ-7", "INJ-8")
    assert {name: found[name]["verdict"] for name in failing} == dict.fromkeys(failing, "fails")
    assert verdicts(grown(gain=-4.0))["INJ-10"]["verdict"] == "fails"


def test_the_diagnosis_in_reinforcement_learning():
    found = verdicts(everything())["INJ-9"]
    assert found["measured"] == pytest.approx(3.0, abs=0.4)
    assert found["n"] == 10
    told = {part["name"]: part["measured"] for part in found["parts"]}
    assert len(told) == 6
    for game, gains in GAME_GAINS.items():
        for fork, gain in enumerate(gains, 1):
            assert told[f"{game}, injected at {25 * fork} % (reported, not claimed)"] == pytest.approx(gain, abs=0.15)
    assert verdicts(labels(gain=-3.0))["INJ-9"]["verdict"] == "fails"
    # A game with a loss is reported and decides nothing.
    assert verdicts(pl.concat([labels(), playing()], how="diagonal_relaxed"))["INJ-9"]["verdict"] == "holds"
    assert verdicts(labels(updates=40))["INJ-9"]["verdict"] == "not_run"
    mixed = pl.concat([labels(), labels(width=64)])
    assert "width" in verdicts(mixed)["INJ-9"]["reason"]


def test_a_copy_of_an_agent_that_diverged_counts_with_the_worst_value():
    frame = labels()
    lost = (pl.col("branch") == "inject") & (pl.col("seed") == 2)
    ends = frame.filter(lost).head(1).with_columns(metric=pl.lit("diverged"))
    found = verdicts(pl.concat([frame.filter(~lost), ends]))["INJ-9"]
    assert found["n"] == 10
    assert found["measured"] == pytest.approx(2.7, abs=0.4)
    played = playing()
    gone = (pl.col("branch") == "inject") & (pl.col("event") == 20) & (pl.col("run") == "breakout-1")
    ends = played.filter(gone).head(1).with_columns(metric=pl.lit("diverged"))
    gains = game_gains(pl.concat([played.filter(~gone), ends]))
    mine = gains.filter((pl.col("game") == "breakout") & (pl.col("seed") == 1)).sort("fork")["value"].to_list()
    worst = game_returns(played).filter(pl.col("game") == "breakout")["value"].min()
    assert mine == pytest.approx([0.0, worst - 13.0, 4.0], abs=0.4)


def test_warm_starts_that_slow_down():
    found = verdicts(regressing(slope=0.1))["INJ-13"]
    # 0.3 is never reached, 0.5 always: that is the loss that counts.
    assert (found["verdict"], found["n"]) == ("holds", 5)
    assert found["measured"] == pytest.approx(0.1, abs=0.01)
    assert verdicts(regressing(slope=-0.1))["INJ-13"]["verdict"] == "fails"
    assert verdicts(regressing(reached=False))["INJ-13"]["verdict"] == "inconclusive"
    assert verdicts(regressing(tasks=2))["INJ-13"]["verdict"] == "not_run"


@pytest.mark.parametrize(
    ("final", "frames", "reading"),
    [
        (10.0, 5_000_000, "in the published range"),
        # Three seeds half apart: the interval is 1.24 to either side; the range is 9.3 to 11.3.
        (9.31, 5_000_000, "in the published range"),
        (9.30, 5_000_000, "below the published range, which its interval reaches"),
        (9.31 - 1.2, 5_000_000, "below the published range, which its interval reaches"),
        (9.3 - 1.3, 5_000_000, "below the published range"),
        (11.29, 5_000_000, "in the published range"),
        (11.3 + 1.2, 5_000_000, "above the published range, which its interval reaches"),
        (11.3 + 1.3, 5_000_000, "above the published range"),
        (3.0, 1_000_000, "above random play"),
        (2.1, 1_000_000, "not told apart from random play"),
        (-3.0, 1_000_000, "below random play"),
    ],
)
def test_the_published_agent_is_read_against_what_is_published(final, frames, reading):
    (found,) = learned(played("breakout", final, frames))
    assert found.final.value == pytest.approx(final)
    assert found.final.high - found.final.value == pytest.approx(4.303 * 0.5 / 3**0.5, rel=1e-3)
    assert (found.start.value, found.gain.value) == pytest.approx((1.0, final - 1.0))
    assert found.verdict == reading


def test_published_ranges_hold_the_papers_scores():
    assert PUBLISHED["breakout"].range == pytest.approx((9.306, 11.294), abs=1e-3)
    assert PUBLISHED["freeway"].range == pytest.approx((50.5, 53.897), abs=1e-3)
    for published in PUBLISHED.values():
        low, high = published.range
        assert low <= published.score <= high


def test_what_was_learned_needs_finished_runs_and_counts_those_that_diverged():
    assert learned(played("breakout", 10.0, unfinished=True)) == []
    assert learned(relabel()) == []
    frame = played("breakout", 10.0)
    lost = pl.col("seed") == 1
    ends = frame.filter(lost).head(1).with_columns(metric=pl.lit("diverged"), step=pl.lit(2_000_000))
    kept = frame.filter(~lost | (pl.col("step") < 2_000_000))
    (found,) = learned(pl.concat([kept, ends], how="vertical_relaxed"))
    worst = frame.filter(pl.col("metric") == "train_returns")["value"].to_numpy()
    assert found.final.n == 3
    assert found.final.value == pytest.approx((9.5 + 10.5 + min(1.0, worst.min())) / 3, abs=0.2)
    header, rows = beside_the_published(pl.concat([frame, played("asterix", 4.0, 1_000_000)]))
    assert len(header) == len(rows[0]) == len(rows[1])
    assert [line[0] for line in rows] == ["Asterix", "Breakout"]
    assert rows[1][5] == "10 [9.3, 11.3]"


def test_the_published_agent_learns_as_published():
    plan = make_plan(STUDY, Request("injection", "minatar"))
    frames = {}
    for run in plan.runs.values():
        assert run.experiment == "learning"
        frames.setdefault((run.config.game, run.config.frames), []).append(run.config.seed)
    lengths = {"breakout": 5_000_000, "space_invaders": 5_000_000}
    lengths |= {"asterix": 1_000_000, "freeway": 1_000_000, "seaquest": 1_000_000}
    assert frames == {pair: [0, 1, 2] for pair in lengths.items()}
    config = GamesConfig(game="seaquest")
    learner, agent = learning_learner(config), MinAtarDQN()
    assert not agent.double
    assert minatar_source(config) == agent.source()
    (task,) = minatar_stream(config)
    assert task.environment == agent.environment("seaquest")
    events = learning_script(replace(config, frames=1_000), (task,))
    trained = [event.steps for event in events if isinstance(event, Train)]
    assert (trained[0], sum(trained)) == (1, 1_000)
    assert [event for event in events if isinstance(event, Fork)] == []
    assert learner.periodic is not None


def test_returns_are_discounted_to_the_end_of_an_episode():
    rng = np.random.default_rng(6)
    rewards, ended = rng.normal(size=(30, 3)).astype(np.float32), rng.random((30, 3)) < 0.15
    expected = np.zeros((30, 3))
    for env in range(3):
        for start in range(30):
            for at in range(start, 30):
                expected[start, env] += 0.9 ** (at - start) * rewards[at, env]
                if ended[at, env]:
                    break
    np.testing.assert_allclose(monte_carlo(rewards, ended, 0.9), expected, atol=1e-5)


def test_updates_to_a_loss_are_counted_from_one_and_one_more_where_it_is_not_reached():
    curve = np.asarray([1.0, 0.8, 0.45, 0.6, 0.3], np.float32)
    assert [int(updates_to(curve, threshold)) for threshold in (1.0, 0.7, 0.3, 0.1)] == [1, 3, 5, 6]
    losses = np.asarray([4.0, 0.0, 2.0], np.float32)
    np.testing.assert_allclose(smoothed(losses), [4.0, 3.8, 3.71], rtol=1e-6)


def test_a_changed_count_fails():
    frame = relabel()
    changed = (pl.col("metric") == "parameters") & (pl.col("branch") == "inject") & (pl.col("seed") == 3)
    more = frame.with_columns(pl.when(changed).then(pl.col("value") + 1).otherwise("value").alias("value"))
    assert verdicts(frame)["INJ-2"]["verdict"] == "holds"
    assert verdicts(more)["INJ-2"]["verdict"] == "fails"


def test_a_proxy_that_follows_the_gain_fails():
    frame = relabel()
    told = (pl.col("metric") == "weight_norm") & (pl.col("place") == "all")
    knowing = frame.with_columns(pl.when(told).then(pl.col("task")).otherwise("value").alias("value"))
    found = verdicts(knowing)["INJ-11"]
    assert found["verdict"] == "fails"
    assert [part["verdict"] for part in found["parts"]] == ["holds", "holds", "holds", "fails"]


def test_forks_one_after_another_are_told_apart():
    # After task 1 the copies learn task 2; after task 2 copies go on with it: the same task number, two forks.
    rows = relabel().filter(pl.col("adam_b2") == 0.999)
    later = performance_of(rows)
    same = performance_of(rows, following=False)
    assert sorted(later["fork"].unique()) == sorted(same["fork"].unique()) == list(FORKS)
    assert later["value"].max() < 80 < same["value"].min() + 5
    area = performance_of(rows, whole=True)
    np.testing.assert_allclose(area["value"].mean(), 0.75 * later["value"].mean(), rtol=0.02)


def test_a_copy_that_diverged_counts_with_the_worst_value():
    frame = relabel()
    lost = (
        (pl.col("branch") == "control")
        & (pl.col("seed") == 0)
        & (pl.col("task") == TASKS)
        & (pl.col("adam_b2") == 0.999)
    )
    ends = frame.filter(lost).head(1).with_columns(metric=pl.lit("diverged"))
    found = verdicts(pl.concat([frame.filter(~lost), ends]))["INJ-3"]
    worst = performance_of(relabel_rows(frame, DEFAULT))["value"].min()
    assert found["n"] == SEEDS
    assert found["measured"] == pytest.approx(20 + (50 - worst) / SEEDS, abs=0.5)


def test_what_was_not_run_is_said_to_be_so():
    assert {c["verdict"] for c in verdicts(grown()).values()} == {"not_run", "holds"}
    found = verdicts(relabel())
    missing = {name for name, claim in found.items() if claim["verdict"] == "not_run"}
    assert missing == {"INJ-9", "INJ-10", "INJ-12", "INJ-13"}
    mixed = pl.concat([relabel(), relabel(width=64)])
    assert verdicts(mixed)["INJ-3"]["verdict"] == "not_run"
    assert "width" in verdicts(mixed)["INJ-3"]["reason"]


def test_figures_and_summary():
    frame = everything()
    drawn = {figure.name: figure.draw(frame) for figure in STUDY.figures}
    assert {name for name, figure in drawn.items() if figure is None} == {"atari_returns"}
    assert any("+20" in text or "+19" in text for text in summary(frame))
    for part in (grown(), relabel(), labels(), playing(), regressing()):
        for figure in STUDY.figures:
            figure.draw(part)


def test_what_was_reached_on_atari_is_told_beside_random_play():
    config = {k: v for k, v in vars(AtariConfig(game="freeway", frames=320, inject_at=0, evaluate_every=160)).items()}
    rows = []
    for seed in range(2):
        mine = {**config, "seed": seed}
        for step, value in ((10, 0.0), (20, 20.0 + seed)):
            rows.append(row(f"a-{seed}", seed, mine, 0, step, "return", value, experiment="atari"))
    frame = pl.DataFrame(rows).with_columns(env_steps=4 * pl.col("step"))
    (told,) = told_of_atari(frame)
    assert "20.5 [14.1, 26.9], 2 seeds; random actions 0." in told
    assert told in summary(frame)
    assert told_of_atari(frame.filter(pl.col("step") < 20)) == []
    drawn = {figure.name: figure.draw(frame) for figure in STUDY.figures}
    assert drawn["atari_returns"] is not None


def test_the_preset_of_atari_has_no_other_runs():
    plan = make_plan(STUDY, Request("injection", "atari"))
    assert {run.experiment for run in plan.runs.values()} == {"atari"}


@pytest.mark.parametrize("preset", ["smoke", "quick", "paper"])
def test_presets(preset):
    plan = make_plan(STUDY, Request("injection", preset))
    kinds = {run.experiment for run in plan.runs.values()}
    others = {"smoke": {"atari", "learning"}, "quick": set(), "paper": {"atari"}}[preset]
    assert kinds == {"relabel", "settings", "growth", "mdp", "games", "illustration"} | others
    seeds = {r.config.seed for r in plan.runs.values() if r.experiment == "relabel"}
    assert len(seeds) == (2 if preset == "smoke" else 10)
    around = [r.config for r in plan.runs.values() if r.experiment == "settings"]
    middle = next(r.config for r in plan.runs.values() if r.experiment == "relabel")
    for config in around:
        axes = ("width", "steps_per_task", "learning_rate", "spectral")
        changed = [n for n in axes if getattr(config, n) != getattr(middle, n)]
        assert len(changed) == 1


def test_the_script_forks_where_it_says():
    config = Config(data="digits", tasks=12, steps_per_task=100, width=8)
    assert forks(config) == FORKS
    events = script(config, tuple(stream(config)))
    forked = [event for event in events if isinstance(event, Fork)]
    assert len(forked) == 2 * len(FORKS) + 1
    *forked, again = forked
    assert all(set(fork.branches) == set(CORE) for fork in forked[1:-1:2])
    assert set(forked[-1].branches) | set(again.branches) == set(ARMS)
    first, switch, half, second, rest = again.branches["inject_twice"]
    assert first == second == Intervene(Inject("hidden2"))
    assert switch == forked[-1].then[0]
    for train in (half, rest):
        assert (train.steps, train.task.index, train.record_every) == (50, 12, 10)
    for steps in (1, 2, 5, 6, 11):
        short = script(replace(config, steps_per_task=steps), tuple(stream(config)))
        twice = short[-1].branches["inject_twice"]
        assert sum(event.steps for event in twice if isinstance(event, Train)) == steps
    for same, following in zip(forked[::2], forked[1::2], strict=True):
        (train,) = same.then
        assert train.steps == train.record_every == 2
        switch, train_next = following.then
        assert isinstance(switch, Switch)
        assert switch.task.index == train.task.index + 1
        assert (train_next.steps, train_next.record_every) == (100, 10)
    assert [event.name for event in events if isinstance(event, Save)] == [f"before-{fork}" for fork in FORKS]
    trained = [event for event in events if isinstance(event, Train)]
    assert [event.steps for event in trained] == [100] * 12
    pair = script(replace(config, arms="pair"), tuple(stream(config)))
    assert [set(event.branches) for event in pair if isinstance(event, Fork)] == [{"control", "inject"}] * 2


def test_every_task_of_growth_costs_the_same():
    costs = {}
    for arm in ("grow", "grow_whole", "large", "small"):
        config = GrowthConfig(data="digits", small=8, large=32, batch=64, tasks=4, steps_per_task=200, arm=arm)
        events = growth_script(config, tuple(growth_stream(config)))
        events_grown = [i for i, event in enumerate(events) if isinstance(event, Intervene)]
        assert len(events_grown) == (arm in ("grow", "grow_whole"))
        width = 32 if arm == "large" else 8
        plain = update_flops("digits", width, 64, None)
        later = update_flops("digits", 8, 64, growing(config)) if events_grown else plain
        steps = [event.steps for event in events if isinstance(event, Train)]
        costs[arm] = [steps[0] * plain, steps[1] * plain, steps[2] * later, steps[3] * later]
        assert later >= plain
    for arm, spent in costs.items():
        np.testing.assert_allclose(spent, 200 * update_flops("digits", 32, 64, None), rtol=0.01, err_msg=arm)


@pytest.mark.parametrize(
    ("config", "field"),
    [(Config, name) for name in ("width", "batch", "tasks", "steps_per_task", "learning_rate", "adam_b2", "seed")]
    + [(GrowthConfig, name) for name in ("small", "large", "tasks", "adam_eps_root")],
)
def test_values_out_of_range_are_refused(config, field):
    with pytest.raises(UsageError, match=field):
        configs.product(config, {field: (-1 if configs.fields(config)[field].type is int else -1.0,)})


def test_agents_are_saved_along_the_way():
    config = GamesConfig(frames=400)
    (task,) = environments([Corridor()])
    events = games_script(config, (task,))
    assert [event.name for event in events if isinstance(event, Save)] == [f"quarter{n}" for n in (1, 2, 3, 4)]
    assert isinstance(events[-1], Save)
    trained = [sum(e.steps for e in events[:place] if isinstance(e, Train)) for place, event in enumerate(events)
               if isinstance(event, Save)]  # fmt: skip
    assert trained == [100, 200, 300, 400]
    # Copies leave the run where the networks were saved, and end where the next ones are.
    forked = [(place, event) for place, event in enumerate(events) if isinstance(event, Fork)]
    assert [events[place - 1].name for place, _ in forked] == ["quarter1", "quarter2", "quarter3"]
    for number, (_, fork) in enumerate(forked, 1):
        assert set(fork.branches) == {"inject"}
        inject, save, jump = fork.branches["inject"]
        assert (inject, save) == (Intervene(Inject(GAME_HEAD)), Save(f"injected{number}"))
        assert jump.saves == (f"quarter{number}", f"injected{number}")
        assert [event.steps for event in fork.then] == [100]


def test_the_agent_of_the_classification_mdp_is_forked_half_way():
    (task,) = environments([Corridor()])
    events = mdp_script(MDPConfig(updates=41), (task,))
    assert sum(event.steps for event in events if isinstance(event, Train)) == 20
    *_, save, fork = events
    assert (save, isinstance(fork, Fork)) == (Save("before"), True)
    assert [event.steps for event in fork.then] == [21]
    assert set(fork.branches) == {"control", "inject", "placebo", "reset", "shrink_perturb", "fresh"}
    for name, branch in fork.branches.items():
        assert branch[:1] == (() if name == "control" else (Intervene(MDP_ARMS[name]),))
    # Networks kept first, injection, networks kept again, and only then compared.
    _, kept, compared = fork.branches["inject"]
    assert kept == Save("injected")
    assert isinstance(compared, Probe)
    assert compared.saves == ("before", "injected")


@pytest.mark.parametrize(("inject_at", "inside"), [(0, []), (960, [1_280, 1_600])])
def test_agents_on_atari_are_saved_in_fifths(inject_at, inside):
    config = AtariConfig(frames=1_600, inject_at=inject_at, evaluate_every=160, target_every=160)
    (task,) = environments([Corridor()])
    events = atari_script(config, (task,))
    names = [event.name for event in events if isinstance(event, Save) and event.name != "before"]
    assert names == [f"frames{n}" for n in (320, 640, 960, 1_280, 1_600)]
    assert sum(event.steps for event in events if isinstance(event, Train)) == 100
    branches = [
        event.name for fork in events if isinstance(fork, Fork) for event in fork.then if isinstance(event, Save)
    ]
    assert branches == [f"frames{n}" for n in inside]
    short = atari_script(AtariConfig(frames=480, inject_at=0, evaluate_every=160, target_every=160), (task,))
    assert len({event.name for event in short if isinstance(event, Save)}) == 3
