"""DQN on Atari, as in DQN Zoo (https://github.com/google-deepmind/dqn_zoo).

Steps are the actions of the agent, each of which lasts four frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neoteny.learners.dqn import atari_rmsprop, dqn
from neoteny.learners.learner import Learner
from neoteny.learners.values import Scalar
from neoteny.networks.convolution import Lowering
from neoteny.networks.nature import Nature, nature
from neoteny.networks.normalization import Norm
from neoteny.tasks.atari import SIZE, Atari
from neoteny.tasks.experience import LinearEpsilon
from neoteny.tasks.host_experience import HostExperience

FRAME_SKIP = 4
"""Frames an action lasts (Mnih et al. 2015)."""


@dataclass(frozen=True)
class AtariDQN:
    """Double DQN on Atari as in DQN Zoo (`double_q`), the agent of Nikishin et al. 2023; `double=False` is its DQN.

    learning_rate: may be a traced number. batch, replay, learning_starts: transitions. period: steps between updates,
    of each of `envs` games played side by side. target_period: updates between copies of the network. epsilon: from 1
    to `epsilon_end` over `epsilon_steps` steps of learning. norm: of the hidden layers, which theirs has not. bound: of
    the TD error, beyond which it counts linearly.
    noops, life_loss, frame_limit, sticky: see `Atari`. segment: see `HostExperience`, which DQN Zoo has not.
    """

    double: bool = True
    width: int = 512
    norm: Norm = Norm.NONE
    learning_rate: Any = 2.5e-4  # centred RMSProp, decay 0.95, epsilon 0.01 / 32^2
    batch: int = 32
    replay: int = 1_000_000
    learning_starts: int = 50_000  # 5 % of the replay
    period: int = 4  # 16 frames
    envs: int = 1
    target_period: int = 7_500  # 120,000 frames
    discount: float = 0.99
    reward_bound: float | None = 1.0
    bound: float | None = 1.0  # its gradient clipping of 1/32 at a batch of 32
    epsilon_end: float = 0.01
    epsilon_steps: int = 1_000_000  # 4 million frames, 2 % of 200 million
    evaluation_epsilon: float = 0.01
    evaluation_limit: int = 27_000  # 108,000 frames
    noops: int = 30
    life_loss: bool = True
    frame_limit: int = 108_000
    sticky: float = 0.0
    segment: int = 100_000

    def environment(self, game: str) -> Atari:
        """A game by its name ("phoenix", "space_invaders"), without sticky actions unless they were asked for."""
        return Atari(
            game,
            sticky=self.sticky,
            frame_skip=FRAME_SKIP,
            noops=self.noops,
            life_loss=self.life_loss,
            frame_limit=self.frame_limit,
        )

    def network(self, actions: int) -> Nature:
        """Three convolutions (the encoder of Nikishin et al. 2023) and two dense layers with one bias for all actions.

        XLA's own convolution: on a CPU twice as fast as patches, since host environments are trained outside loops.
        """
        return nature(
            actions, width=self.width, norm=self.norm, lowering=Lowering.CONVOLUTION, input_shape=(SIZE, SIZE, 4)
        )

    def learner(self, actions: int) -> Learner:
        """The learner for a game with so many actions."""
        return dqn(
            self.network(actions),
            atari_rmsprop(self.learning_rate),
            double=self.double,
            values=Scalar(self.bound),
            target_period=self.target_period,
        )

    def source(self) -> HostExperience:
        """Its emulators, exploration and replay."""
        return HostExperience(
            batch_size=self.batch,
            envs=self.envs,
            period=self.period,
            learning_starts=self.learning_starts,
            capacity=self.replay,
            stack=4,
            discount=self.discount,
            reward_bound=self.reward_bound,
            epsilon=LinearEpsilon(1.0, self.epsilon_end, self.epsilon_steps),
            evaluation_epsilon=self.evaluation_epsilon,
            evaluation_limit=self.evaluation_limit,
            segment=self.segment,
        )
