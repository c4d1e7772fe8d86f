"""Networks, learners and the source of the rank study."""

from __future__ import annotations

from dataclasses import dataclass

import optax
from jaxtyping import PRNGKeyArray

from neoteny.learners.action_values import CopyEvery, Polyak
from neoteny.learners.learner import Learner
from neoteny.learners.offline_q import OfflineObjective, offline_q
from neoteny.learners.values import Scalar
from neoteny.networks import Maker, Network, mlp, orthogonal
from neoteny.networks.activations import elu, relu, tanh
from neoteny.networks.network import Frozen
from neoteny.networks.normalization import Norm
from neoteny.studies.rank.settings import Config, environment, limit
from neoteny.tasks.experience import DeviceExperience
from neoteny.tasks.transitions import OfflineSource

ACTIVATIONS = {"relu": relu, "tanh": tanh, "elu": elu}


@dataclass(frozen=True)
class FrozenFeatures:
    """A maker of `maker`'s network with every hidden stage frozen as it was drawn: its rank cannot move."""

    maker: Maker

    def __call__(self, key: PRNGKeyArray) -> Network:
        network = self.maker(key)
        return network.replace(**{name: Frozen(network.stage(name)) for name in network.names[:-1]})


def maker(config: Config) -> Maker:
    """The MLP of a configuration; orthogonal weights of gain 1, whatever the activation."""
    shown = environment(config.level).specification
    made = mlp(
        shown.shape,
        [config.width] * config.depth,
        shown.actions,
        activation=ACTIVATIONS[config.activation],
        norm=Norm.LAYER if config.layer_norm else None,
        initializer=orthogonal,
        head_initializer=orthogonal,
        dropout=config.dropout,
    )
    return made if config.features == "learned" else FrozenFeatures(made)


def learner(config: Config) -> Learner:
    """What learns from the data."""
    adam = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
    return offline_q(
        maker(config),
        adam if config.weight_decay else optax.adam(config.learning_rate),
        objective=OfflineObjective(config.objective),
        double=config.double,
        discount=config.discount,
        values=Scalar(1.0 if config.huber else None),
        following=Polyak(config.polyak) if config.polyak else CopyEvery(config.target_period),
        rank_coefficient=config.rank_coefficient or None,
        sharpness_radius=config.sharpness_radius,
    )


def source(config: Config) -> OfflineSource:
    """Shuffled minibatches; evaluated episodes are as long as the level's."""
    playing = DeviceExperience(evaluation_epsilon=0.0, evaluation_limit=limit(config.level) + 1)
    return OfflineSource(config.batch, playing)
