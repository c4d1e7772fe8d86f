"""Sequence tasks: the Long Range Arena's, pixels one by one, memory, and the toy systems of the LRU paper.

Inputs are (n, length, channels), or tokens (n, length) with 0 for padding at the end: see `neoteny.networks.sequence`.
Generators are seeded; equal arguments give equal arrays, made once in a process.
"""

from neoteny.tasks.sequences.listops import listops, listops_tsv
from neoteny.tasks.sequences.memory import Between, Recall, patterns, recall
from neoteny.tasks.sequences.pathfinder import Drawing, pathfinder, pathfinder_archive, pathfinder_images
from neoteny.tasks.sequences.pixels import pixels, sequential_cifar10, sequential_digits, sequential_mnist
from neoteny.tasks.sequences.text import aan, imdb
from neoteny.tasks.sequences.toys import filtered_waves

__all__ = [
    "Between",
    "Drawing",
    "Recall",
    "aan",
    "filtered_waves",
    "imdb",
    "listops",
    "listops_tsv",
    "pathfinder",
    "pathfinder_archive",
    "pathfinder_images",
    "patterns",
    "pixels",
    "recall",
    "sequential_cifar10",
    "sequential_digits",
    "sequential_mnist",
]
