"""Convolutions on a CPU: lanes one after another, updates outside loops, and nothing else different."""

from __future__ import annotations

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neoteny.interventions import Redo, ShrinkPerturb
from neoteny.learners import supervised
from neoteny.networks import Network, cnn
from neoteny.probes import dead_units, gradient_norm
from neoteny.tasks import Minibatch, from_arrays, random_labels
from neoteny.training import Evaluate, Fork, Intervene, Probe, Reached, Save, Switch, Train
from neoteny.training import runner as runner_module
from neoteny.training.ledger import runs_convolution
from neoteny.training.tracing import Tracer
from training_cases import EXPERIMENT, Config, finish, make_runner, same

RNG = np.random.default_rng(0)
IMAGES = from_arrays(RNG.integers(0, 256, (48, 6, 6, 1), dtype=np.uint8), np.arange(48) % 3, name="images", test=16)
CONFIGS = [Config(seed=seed) for seed in range(3)]


def learner(config, lowering="convolution", rate=None):
    maker = cnn((6, 6, 1), 3, channels=(4,), dense=(8,), lowering=lowering)
    return supervised(maker, optax.adam(config.learning_rate if rate is None else rate))


def script(config, tasks, until=None):
    (task,) = tasks
    return (
        Switch(task),
        Train(task, 9, until=until, record_every=4),
        Evaluate(task, "test"),
        Probe(dead_units, gradient_norm, on=task, samples=20),
        Intervene(ShrinkPerturb(), on=task),
        Intervene(Redo(tau=0.5), on=task),
        Fork({"a": (Train(task, 3),)}),
        Train(task, 5, record_every=4),
        Save("end"),
    )


def runner_of(configs=CONFIGS, events=script, make=learner):
    experiment = replace(
        EXPERIMENT,
        script=events,
        learner=make,
        stream=lambda config: random_labels(IMAGES, tasks=1),
        source=lambda config: Minibatch(8),
    )
    return make_runner(configs, experiment=experiment)


@pytest.fixture
def scanned(monkeypatch):
    """scanned(): from now on lanes are computed side by side in loops, whatever the network."""
    return lambda: monkeypatch.setattr(Tracer, "lane_by_lane", lambda self, task, learner: False)


@pytest.fixture(scope="module")
def whole():
    runner = runner_of()
    return runner, *finish(runner)


def separately(runner):
    return runner.tracer.lane_by_lane(runner.tasks[0], runner.tracer.initial().learner)


def test_networks_are_told_by_what_their_update_runs():
    def patches(config):
        return learner(config, lowering="auto")

    def foreign(config):
        def make(key):
            one, two = jax.random.split(key)
            return Network(
                body=eqx.nn.Sequential(
                    [
                        eqx.nn.Lambda(lambda x: x.transpose(2, 0, 1)),
                        eqx.nn.Conv2d(1, 2, 3, key=one),
                        eqx.nn.Lambda(jnp.ravel),
                        eqx.nn.Linear(32, 3, key=two),
                    ]
                )
            )

        return supervised(make, optax.sgd(0.1))

    assert separately(runner_of())
    assert separately(runner_of(make=foreign))
    assert not separately(runner_of(make=patches))
    assert not separately(make_runner([Config()]))


def test_a_convolution_inside_a_loop_is_found():
    from neoteny.networks.convolution import convolve

    x, w = jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1))

    def looped(lowering):
        return lambda w: jax.lax.scan(lambda c, _: (convolve(x, c, lowering=lowering).sum() + c, None), w, length=2)[0]

    assert runs_convolution(looped("convolution"), w, platform="cpu")
    assert runs_convolution(looped("auto"), w, platform="cuda")
    assert not runs_convolution(looped("auto"), w, platform="cpu")
    assert not runs_convolution(looped("patches"), w, platform="cuda")


UNTIL = Reached("accuracy", 0.375, window=2)
DYING = [Config(seed=s, learning_rate=rate) for s, rate in enumerate((0.01, 1e38, 0.03))]


@pytest.mark.parametrize(("until", "configs"), [(None, CONFIGS), (UNTIL, CONFIGS), (UNTIL, DYING)])
def test_lanes_one_after_another_do_what_the_pack_does(scanned, until, configs):
    def events(config, tasks):
        return script(config, tasks, until)

    stepped = runner_of(configs, events)
    records, saves, _ = finish(stepped)
    assert separately(stepped)
    scanned()
    packed = runner_of(configs, events)
    expected, expected_saves, _ = finish(packed)
    assert not separately(packed)
    assert [r[:11] for r in records] == [r[:11] for r in expected]
    np.testing.assert_allclose([r.value for r in records], [r.value for r in expected], rtol=2e-4, atol=2e-5)
    assert [r[12:] for r in records] == [r[12:] for r in expected]
    for path in saves["end"]:
        np.testing.assert_allclose(saves["end"][path], expected_saves["end"][path], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(stepped.state.source.order, packed.state.source.order)
    assert int(stepped.clock.update) == int(packed.clock.update)
    if until is not None:
        taken = [r.value for r in records if r.metric == "updates_taken"]
        assert len(set(taken)) > 1, "the lanes of this case need different numbers of updates"
        assert min(taken) < 9


@pytest.mark.parametrize("length", [1, 3])
def test_bits_do_not_depend_on_the_chunks(whole, monkeypatch, length):
    runner, records, saves, _ = whole
    monkeypatch.setattr(runner_module.Runner, "_chunk_length", lambda self: length)
    cut = runner_of()
    found, found_saves, _ = finish(cut)
    assert found == records
    same(cut.arrays(), runner.arrays())
    same(found_saves["end"], saves["end"])


def test_bits_do_not_depend_on_the_number_of_lanes(whole):
    _, records, saves, _ = whole
    alone, alone_saves, _ = finish(runner_of(CONFIGS[1:2]))
    assert alone == [record for record in records if record.run == "run-1-0.999"]
    for path, array in alone_saves["end"].items():
        np.testing.assert_array_equal(array[0], saves["end"][path][1], err_msg=path)


def test_resume_from_every_tick_with_held_and_dead_lanes(monkeypatch):
    monkeypatch.setattr(runner_module.Runner, "_chunk_length", lambda self: 3)

    def runner():
        return runner_of(DYING, lambda config, tasks: script(config, tasks, UNTIL))

    whole = runner()
    records, _, ticks = finish(whole)
    assert whole.alive.tolist() == [True, False, True]
    for stop in range(2, len(ticks), 2):
        first = runner()
        kept, source = [], first.ticks()
        for _ in range(stop):
            kept += next(source).records
        second = runner()
        second.restore(first.cursor, first.arrays())
        rest, _, _ = finish(second)
        assert kept + rest == records, f"stopped after tick {stop}"
        same(second.arrays(), whole.arrays())


def test_one_program_serves_every_lane_and_length():
    def compiled(configs, steps):
        def events(config, tasks):
            (task,) = tasks
            return (Switch(task), Train(task, steps, record_every=3), Evaluate(task, "test"))

        runner = runner_of(configs, events)
        jax.clear_caches()
        return sum(tick.compilations for tick in finish(runner)[2])

    few = compiled(CONFIGS[:2], 4)
    assert compiled(CONFIGS, 11) == few
