"""What each model of the lru study is made of: layer, parameterisation, gamma, ring, phases, what surrounds it."""

from __future__ import annotations

import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from neoteny.networks import S4D, S5, Chain, Dense, Discretization, identity, relu, tanh
from neoteny.networks.lru import LRU, Cartesian, DenseRecurrence, Exponential, StableExponential
from neoteny.networks.sequence import Embedding, LastSteps, MeanPool, Pairs, Positionwise
from neoteny.studies.lru.models import TITLES, ModelName, mixer
from neoteny.studies.lru.sequences import Config, maker

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


def test_a_bag_has_no_recurrence():
    assert mixer(Config(model="bag")) is None
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
