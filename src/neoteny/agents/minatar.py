"""DQN on MinAtar, as Young & Tian 2019 published it (https://github.com/kenjyoung/MinAtar, examples/dqn.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neoteny.learners.dqn import dqn, minatar_rmsprop
from neoteny.learners.learner import Learner
from neoteny.learners.values import Scalar
from neoteny.networks.cnn import CNN
from neoteny.networks.minatar import minatar as minatar_network
from neoteny.networks.normalization import Norm
from neoteny.tasks.environments import Specification
from neoteny.tasks.experience import DeviceExperience, LinearEpsilon
from neoteny.tasks.gymnax_environments import Gymnax, minatar


@dataclass(frozen=True)
class MinAtarDQN:
    """The published DQN; `double=True` is not theirs.

    learning_rate: may be a traced number. batch, replay, learning_starts, epsilon_steps: in frames, of which every one
    is an action and is followed by an update. target_period: updates between copies. sticky: probability that an action
    is repeated. norm: of the hidden layers, which the published network has not. frames: the published length of a run.
    """

    double: bool = False
    channels: int = 16
    width: int = 128
    norm: Norm = Norm.NONE
    learning_rate: Any = 2.5e-4  # centred RMSProp, decay 0.95, epsilon 0.01, no momentum
    batch: int = 32
    replay: int = 100_000
    learning_starts: int = 5_000
    period: int = 1
    envs: int = 1
    target_period: int = 1_000
    discount: float = 0.99
    bound: float | None = 1.0  # smooth L1
    epsilon_end: float = 0.1
    epsilon_steps: int = 100_000
    evaluation_epsilon: float = 0.0
    evaluation_limit: int = 10_000
    sticky: float = 0.1
    minimal_actions: bool = False  # all six actions in every game
    frames: int = 5_000_000

    def environment(self, game: str) -> Gymnax:
        """A game: asterix, breakout, freeway, seaquest or space_invaders."""
        return minatar(game, sticky=self.sticky, minimal_actions=self.minimal_actions)

    def network(self, game: Specification) -> CNN:
        """One convolution and one dense layer."""
        return minatar_network(game.shape, game.actions, channels=self.channels, width=self.width, norm=self.norm)

    def learner(self, game: Specification) -> Learner:
        """The learner for a game of this specification."""
        return dqn(
            self.network(game),
            minatar_rmsprop(self.learning_rate),
            double=self.double,
            values=Scalar(self.bound),
            target_period=self.target_period,
        )

    def source(self) -> DeviceExperience:
        """Its exploration and replay, inside the compiled program."""
        return DeviceExperience(
            batch_size=self.batch,
            envs=self.envs,
            period=self.period,
            learning_starts=self.learning_starts,
            capacity=self.replay,
            discount=self.discount,
            epsilon=LinearEpsilon(1.0, self.epsilon_end, self.epsilon_steps),
            evaluation_epsilon=self.evaluation_epsilon,
            evaluation_limit=self.evaluation_limit,
        )
