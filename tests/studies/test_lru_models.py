"""What each model of the lru study is made of: layer, parameterisation, gamma, ring, phases, what surrounds it."""

from __future__ import annotations

import math
import typing
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from neoteny.networks import S4D, S5, Chain, Dense, Discretization, identity, relu, split_trainable, tanh
from neoteny.networks.lru import LRU, Cartesian, DenseRecurrence, Exponential, StableExponential
from neoteny.networks.sequence import Embedding, LastSteps, MeanPool, Pairs, Positionwise
from neoteny.studies.lru.models import TITLES, ModelName, mixer
from neoteny.studies.lru.sequences import Config, maker, optimizer

KEY = jax.random.key(0)
WIDTH, STATE = 3, 200

DENSE = {"rnn_tanh": tanh, "rnn_relu": relu, "rnn_linear": identity}
DIAGONAL = {
    "complex": (Cartesian, False),
    "exponential": (Exponential, False),
    "stable": (StableExponential, False),
    "ring": (StableExponential, False),
    "lru": (StableExponential, True),
}
S4DS = {
    "s4d": (Discretization.ZOH, True),
    "s4d_delta_b": (Discretization.DELTA_B, True),
    "s4d_untied": (Discretization.ZOH, False),
}


def layer_of(**fields):
    make = mixer(Config(width=WIDTH, state=STATE, **fields))
    assert make is not None
    return make(WIDTH, KEY)


def test_every_model_is_in_one_of_the_tables():
    assert set(typing.get_args(ModelName)) == {*DENSE, *DIAGONAL, *S4DS, "s5", "bag"} == set(TITLES)


@pytest.mark.parametrize("model", list(DENSE))
def test_dense_models(model):
    layer = layer_of(model=model)
    assert (type(layer), layer.activation, layer.state) == (DenseRecurrence, DENSE[model], STATE)


@pytest.mark.parametrize("model", list(DIAGONAL))
def test_diagonal_models_begin_on_the_ring_and_phases_of_the_configuration(model):
    layer = layer_of(model=model, r_min=0.7, r_max=0.8, max_phase=0.4)
    assert type(layer) is LRU
    assert (type(layer.eigenvalues), layer.gamma_log is not None) == DIAGONAL[model]
    uniform = (np.abs(layer.lam) ** 2 - 0.49) / (0.64 - 0.49)
    assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(np.angle(layer.lam) / 0.4, "uniform").pvalue > 1e-3
    if layer.gamma_log is not None:
        np.testing.assert_allclose(np.exp(layer.gamma_log) ** 2, 1 - np.abs(layer.lam) ** 2, rtol=1e-5)
    assert np.abs(np.angle(layer_of(model=model).lam) % (2 * math.pi)).max() > 6


@pytest.mark.parametrize("model", list(S4DS))
def test_models_of_s4d(model):
    layer = layer_of(model=model)
    assert type(layer) is S4D
    assert (layer.discretization, layer.delta_B_log is None, layer.state) == (*S4DS[model], STATE)


def test_the_model_s5():
    layer = layer_of(model="s5")
    assert (type(layer), layer.discretization, layer.state) == (S5, Discretization.ZOH, STATE)
    assert layer.delta_log.shape == (STATE // 2,)


SLOW = {
    **{model: {"A", "B"} for model in DENSE},
    "complex": {"lam_re", "lam_im", "B_re", "B_im"},
    "exponential": {"nu", "theta", "B_re", "B_im"},
    "stable": {"nu_log", "theta_log", "B_re", "B_im"},
    "ring": {"nu_log", "theta_log", "B_re", "B_im"},
    "lru": {"nu_log", "theta_log", "gamma_log", "B_re", "B_im"},
    "s4d": {"A_re_log", "A_im", "delta_log"},
    "s4d_delta_b": {"A_re_log", "A_im", "delta_log"},
    "s4d_untied": {"A_re_log", "A_im", "delta_log", "delta_B_log"},
    "s5": {"A_re", "A_im", "B_re", "B_im", "delta_log"},
    "bag": set(),
}


@pytest.mark.parametrize("model", list(SLOW))
def test_what_learns_at_a_factor_of_the_rate_and_without_decay(model):
    """With gradients of 1 AdamW moves every entry by the rate, and decay by more."""
    config = Config(data="digits", size=8, model=model, width=WIDTH, state=4, depth=1, steps=10, factor=0.1)
    params, _ = split_trainable(maker(config)(KEY))
    gradients = jax.tree.map(jnp.ones_like, params)

    def moved(decay):
        rule = optimizer(replace(config, weight_decay=decay))
        _, state = rule.update(gradients, rule.init(params), params)
        # the second, since the schedule begins at almost nothing
        changes, _ = rule.update(gradients, state, params)
        return [(path[-1].name, np.abs(x)) for path, x in jax.tree_util.tree_leaves_with_path(changes)]

    free, held = moved(0.0), moved(0.5)
    rate = max(change.max() for _, change in free)
    assert {name for name, change in free if np.allclose(change, 0.1 * rate, rtol=1e-3)} == SLOW[model]
    assert all(np.allclose(change, rate, rtol=1e-3) for name, change in free if name not in SLOW[model])
    still = {name for (name, change), (_, other) in zip(free, held, strict=True) if np.array_equal(change, other)}
    assert still - {"bias"} == SLOW[model]  # a bias begins at 0, where nothing decays


@pytest.mark.parametrize("model", [*DENSE, *DIAGONAL, *S4DS, "s5"])
def test_every_layer_can_run_both_ways(model):
    assert [layer_of(model=model, bidirectional=both).bidirectional for both in (False, True)] == [False, True]


def test_a_bag_has_no_recurrence():
    assert mixer(Config(model="bag")) is None
    with pytest.raises(ValueError, match="bidirectional"):
        Config(model="bag", bidirectional=True)
    network = maker(Config(model="bag", data="listops", size=30, examples=24, width=4))(KEY)
    assert network.names == ("encoder", "head")
    tokens = jnp.asarray([[11, 3, 4, 15, 0, 0]], jnp.int8)
    np.testing.assert_allclose(network(tokens).output, network(tokens[:, jnp.array([2, 0, 3, 1])]).output, atol=1e-5)
    assert not np.allclose(network(tokens).output, network(tokens.at[0, 1].set(9)).output)


def parts(layer):
    return [type(part) for part in layer.layers] if isinstance(layer, Chain) else [type(layer)]


@pytest.mark.parametrize(
    ("fields", "encoder", "head"),
    [
        ({"data": "digits", "size": 8}, [Positionwise], [MeanPool, Dense]),
        ({"data": "listops", "size": 30, "examples": 24}, [Embedding], [MeanPool, Dense]),
        ({"data": "recall", "size": 5, "examples": 24}, [Positionwise], [LastSteps, Dense]),
    ],
)
def test_what_surrounds_the_blocks(fields, encoder, head):
    network = maker(Config(width=64, state=4, depth=2, half_glu=True, dropout=0.1, **fields))(KEY)
    assert network.names == ("encoder", "block1", "block2", "head")
    assert (parts(network.stage("encoder")), parts(network.stage("head"))) == (encoder, head)
    readout = network.stage("head").layers[-1]
    assert readout.out_size == (7 if fields["data"] == "recall" else 10)
    np.testing.assert_allclose(np.var(readout.weight), 1 / 64, rtol=0.25)
    block = network.stage("block2")
    assert (block.glu.gate.value, block.dropout.rate) == ("half", 0.1)


def test_a_pair_of_documents_is_read_by_one_encoder_and_compared(tmp_path, monkeypatch):
    folder = tmp_path / "aan"
    folder.mkdir()
    for name in ("train", "eval", "test"):
        rows = [f"{label}\t1\t2\tfirst text\tother text" for label in ("0.0", "1.0")]
        (folder / f"new_aan_pairs.{name}.tsv").write_text("\n".join(rows))
    monkeypatch.setenv("NEOTENY_DATA", str(tmp_path))
    for model, between in (("lru", []), ("bag", ["Dense", "Activation"])):
        network = maker(Config(data="retrieval", size=12, model=model, width=4, state=4, depth=1))(KEY)
        assert parts(network.stage("encoder")) == [Pairs, Embedding]
        assert [part.__name__ for part in parts(network.stage("head"))] == ["MeanPool", "Compare", *between, "Dense"]
        assert network.stage("head").layers[-1].in_size == 16
        assert network(jnp.ones((3, 2, 12), jnp.int16)).output.shape == (3, 2)
