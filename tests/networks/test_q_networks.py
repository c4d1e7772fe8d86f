"""The networks of deep Q-learning: sizes, stages and draws of the originals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.networks import LayerNorm, Norm
from neoteny.networks.minatar import minatar
from neoteny.networks.nature import SharedBias, nature


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_minatar_has_the_published_sizes():
    network = minatar((10, 10, 4), 6)(jax.random.key(0))
    assert network.names == ("conv1", "dense1", "head")
    sizes = [count(stage) for stage in network.stages]
    assert sizes == [16 * 9 * 4 + 16, 8 * 8 * 16 * 128 + 128, 128 * 6 + 6]
    stages = network(jnp.zeros((3, 10, 10, 4))).stages
    assert [stages[name].shape for name in network.names] == [(3, 8, 8, 16), (3, 128), (3, 6)]


def test_nature_has_the_sizes_of_dqn_zoo_and_one_bias_for_all_actions():
    network = nature(18)(jax.random.key(0))
    assert network.names == ("conv1", "conv2", "conv3", "dense1", "head")
    torso, head = network.stages[:3], network.stages[3:]
    assert count(torso) == 77_984
    assert count(head) == 3136 * 512 + 512 + 512 * 18 + 1
    assert count(nature(18, shared_bias=False)(jax.random.key(0)).stages[3:]) == count(head) + 17
    x = jax.random.uniform(jax.random.key(1), (2, 84, 84, 4))
    stages = network(x).stages
    assert stages["conv3"].shape == (2, 7, 7, 64)
    weights, bias = network.stage("head").layers
    assert isinstance(bias, SharedBias)
    np.testing.assert_allclose(stages["head"], stages["dense1"] @ weights.weight.T + bias.bias[0], rtol=1e-5)


@pytest.mark.parametrize(("maker", "stage", "fan_in"), [(minatar((10, 10, 4), 6), 0, 36), (nature(4), 3, 3136)])
def test_draws_are_uniform_within_one_over_the_root_of_the_fan_in(maker, stage, fan_in):
    leaves = jax.tree.leaves(maker(jax.random.key(0)).stages[stage])
    values = np.abs(np.concatenate([np.ravel(leaf) for leaf in leaves])) * np.sqrt(fan_in)
    assert values.max() <= 1.0
    assert values.max() > 0.97
    assert values.mean() == pytest.approx(0.5, abs=0.03)
    head = maker(jax.random.key(0)).stage("head")
    inputs = 128 if fan_in == 36 else 512
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(head)) <= 1 / np.sqrt(inputs)


def test_layer_norm_comes_before_every_activation():
    for maker in (
        minatar((10, 10, 4), 6, norm=Norm.LAYER),
        nature(4, input_shape=(40, 40, 4), width=8, norm=Norm.LAYER),
    ):
        network = maker(jax.random.key(0))
        for stage in network.stages[:-1]:
            kinds = [type(layer) for layer in stage.layers]
            assert LayerNorm in kinds
            assert kinds.index(LayerNorm) == len(kinds) - 2


def test_equal_arguments_give_equal_makers():
    assert nature(4) == nature(4)
    assert hash(nature(4)) == hash(nature(4))
    assert nature(4) != nature(4, shared_bias=False)
