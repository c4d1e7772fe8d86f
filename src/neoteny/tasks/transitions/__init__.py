"""Fixed data sets of transitions: made, read, written, and learned from (arXiv:2207.02099, offline RL)."""

from neoteny.tasks.transitions.behaviour import LEVELS, Level, Recipe, generate, returns_summary
from neoteny.tasks.transitions.data import NO_ACTION, Action, TransitionSet, from_episodes, load_npz, renamed
from neoteny.tasks.transitions.offline import AsOutcomes, NoisyActions, OfflineSource, offline, with_limit

__all__ = [
    "LEVELS",
    "NO_ACTION",
    "Action",
    "AsOutcomes",
    "Level",
    "NoisyActions",
    "OfflineSource",
    "Recipe",
    "TransitionSet",
    "from_episodes",
    "generate",
    "load_npz",
    "offline",
    "renamed",
    "returns_summary",
    "with_limit",
]
