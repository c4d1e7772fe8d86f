"""Published agents on games as several studies play them: what a configuration says of them, in its own words.

A configuration of MinAtar has the fields game, frames, period, learning_starts, capacity, exploration, episodes,
evaluation_limit, learning_rate and seed; one of Atari has game, replay, learning_starts, exploration, epsilon_end,
width, batch, segment, noops, life_loss, frame_limit and learning_rate, with lengths in frames where `AtariDQN` counts
steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from neoteny.agents.atari import FRAME_SKIP, AtariDQN
from neoteny.agents.minatar import MinAtarDQN
from neoteny.lab.study import Axes, Experiment
from neoteny.learners.learner import Learner
from neoteny.networks import Norm
from neoteny.tasks.environments import environments
from neoteny.tasks.experience import DeviceExperience
from neoteny.tasks.host_experience import HostExperience
from neoteny.tasks.streams import Stream
from neoteny.training.events import AnyTask, Evaluate, Event, Train

Game = Literal["asterix", "breakout", "freeway", "seaquest", "space_invaders"]

GAMES: tuple[Game, ...] = ("breakout", "asterix", "seaquest", "space_invaders", "freeway")
"""Of MinAtar."""

MINATAR_SMOKE: dict[str, tuple] = {
    "frames": (40,),
    "learning_starts": (60,),
    "capacity": (200,),
    "exploration": (20,),
    "episodes": (2,),
    "evaluation_limit": (20,),
    "seed": (0, 1),
}
"""Fields of a configuration of MinAtar for seeing that everything works."""


def check_minatar(config: Any) -> None:
    """ValueError naming a field that is out of its range."""
    for name in ("frames", "period", "learning_starts", "capacity", "exploration", "episodes", "evaluation_limit"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(config, name)}")
    if not config.learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, not {config.learning_rate}")
    if config.seed < 0:
        raise ValueError(f"seed must not be negative, not {config.seed}")


def minatar_agent(config: Any, *, norm: Norm = Norm.NONE) -> MinAtarDQN:
    """Double DQN as Young & Tian 2019 published DQN, with what the configuration says but for the learning rate."""
    return MinAtarDQN(
        double=True,
        norm=norm,
        replay=config.capacity,
        learning_starts=config.learning_starts,
        period=config.period,
        epsilon_steps=config.exploration,
        evaluation_limit=config.evaluation_limit,
    )


def minatar_stream(config: Any) -> Stream:
    """One game."""
    return environments([minatar_agent(config).environment(config.game)])


def minatar_learner(config: Any, *, norm: Norm = Norm.NONE) -> Learner:
    """The agent's learner, inside the traced program."""
    agent = replace(minatar_agent(config, norm=norm), learning_rate=config.learning_rate)
    return agent.learner(agent.environment(config.game).specification)


def minatar_source(config: Any) -> DeviceExperience:
    """Its exploration and replay."""
    return minatar_agent(config).source()


def atari_agent(config: Any) -> AtariDQN:
    """DQN Zoo's agent with what the configuration says but for the learning rate."""
    return AtariDQN(
        width=config.width,
        batch=config.batch,
        replay=config.replay,
        learning_starts=config.learning_starts,
        epsilon_end=config.epsilon_end,
        epsilon_steps=config.exploration // FRAME_SKIP,
        segment=config.segment // FRAME_SKIP,
        noops=config.noops,
        life_loss=config.life_loss,
        frame_limit=config.frame_limit,
    )


def atari_experiment(
    config: type,
    axes: Callable[[str], Axes | Sequence[Axes]],
    agent: Callable[[Any], AtariDQN],
    script: Callable[[Any, tuple[AnyTask, ...]], tuple[Event, ...]],
) -> Experiment:
    """The experiment `atari`, one lane at a time, as a replay is large.

    agent(config) is the agent but for the learning rate; the rest is as in `Experiment`.
    """

    def stream(config: Any) -> Stream:
        return environments([agent(config).environment(config.game)])

    def learner(config: Any) -> Learner:
        playing = agent(config)
        actions = playing.environment(config.game).specification.actions
        return replace(playing, learning_rate=config.learning_rate).learner(actions)

    def source(config: Any) -> HostExperience:
        return agent(config).source()

    return Experiment("atari", config, axes, stream, learner, script, source, lanes=1)


RECORDS = 5
"""Records of the training metrics between two evaluations of an agent on Atari."""


def atari_rounds(config: Any, task: AnyTask, frames: int, *, frames_an_update: int) -> tuple[Event, ...]:
    """Train and evaluate in turn for so many frames; the configuration has evaluate_every (frames) and episodes."""
    updates = config.evaluate_every // frames_an_update
    one = (Train(task, updates, record_every=max(1, updates // RECORDS)), Evaluate(task, samples=config.episodes))
    return one * (frames // config.evaluate_every)
