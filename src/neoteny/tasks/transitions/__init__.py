"""Fixed data sets of transitions: made, read, written, and learned from (arXiv:2207.02099, offline RL)."""

from neoteny.tasks.transitions.atari_ram import RamRecipe, record_ram
from neoteny.tasks.transitions.behaviour import LEVELS, Level, Recipe, generate, returns_summary
from neoteny.tasks.transitions.data import NO_ACTION, Action, TransitionSet, from_episodes, load_npz
from neoteny.tasks.transitions.minari_sets import read_minari, write_minari
from neoteny.tasks.transitions.offline import AsOutcomes, NoisyActions, OfflineSource, offline
from neoteny.tasks.transitions.unplugged import read_unplugged

__all__ = [
    "LEVELS",
    "NO_ACTION",
    "Action",
    "AsOutcomes",
    "Level",
    "NoisyActions",
    "OfflineSource",
    "RamRecipe",
    "Recipe",
    "TransitionSet",
    "from_episodes",
    "generate",
    "load_npz",
    "offline",
    "read_minari",
    "read_unplugged",
    "record_ram",
    "returns_summary",
    "write_minari",
]
