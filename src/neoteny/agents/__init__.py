"""Agents as they were published: learner, network, replay, optimiser and schedules, each in one place.

A study takes one whole, or with fields replaced: `replace(AtariDQN(), replay=50_000)`.
"""

from neoteny.agents.atari import AtariDQN
from neoteny.agents.minatar import MinAtarDQN

__all__ = ["AtariDQN", "MinAtarDQN"]
