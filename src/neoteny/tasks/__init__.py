"""Tasks: data sets as arrays, streams of tasks over them, and the sources that turn a task into batches."""

from neoteny.learners.learner import Transitions
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.atari import Atari
from neoteny.tasks.catalogue import load
from neoteny.tasks.classification import ClassificationMDP, Goal, Labels
from neoteny.tasks.environments import DeviceEnvironment, EnvironmentTask, HostEnvironment, environments
from neoteny.tasks.experience import DeviceExperience, LinearEpsilon
from neoteny.tasks.generated import teacher
from neoteny.tasks.gymnax_environments import Gymnax, catch, minatar
from neoteny.tasks.host_experience import HostExperience
from neoteny.tasks.images import (
    average_pool,
    cifar10,
    cifar100,
    cinic10,
    digits,
    fashion_mnist,
    from_arrays,
    greyscale,
    hub,
    image_folder,
    mnist,
    mnist_digits,
    npz,
    parquet,
    whole,
)
from neoteny.tasks.sources import Minibatch
from neoteny.tasks.streams import (
    Centred,
    PermutedPixels,
    RandomLabels,
    Stream,
    Task,
    Transform,
    Unchanged,
    class_incremental,
    domains,
    permuted,
    random_labels,
    single,
)
from neoteny.tasks.subsets import as_shape, subset

__all__ = [
    "Arrays",
    "Atari",
    "Centred",
    "ClassificationMDP",
    "DeviceEnvironment",
    "DeviceExperience",
    "EnvironmentTask",
    "Goal",
    "Gymnax",
    "HostEnvironment",
    "HostExperience",
    "Labels",
    "LinearEpsilon",
    "Minibatch",
    "PermutedPixels",
    "RandomLabels",
    "Stream",
    "Task",
    "Transform",
    "Transitions",
    "Unchanged",
    "as_shape",
    "average_pool",
    "catch",
    "cifar10",
    "cifar100",
    "cinic10",
    "class_incremental",
    "digits",
    "domains",
    "environments",
    "fashion_mnist",
    "from_arrays",
    "greyscale",
    "hub",
    "image_folder",
    "load",
    "minatar",
    "mnist",
    "mnist_digits",
    "npz",
    "parquet",
    "permuted",
    "random_labels",
    "single",
    "subset",
    "teacher",
    "whole",
]
