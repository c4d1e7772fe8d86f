"""The experiments of the tunnel study and what each preset varies."""

from __future__ import annotations

from neoteny.lab.study import Experiment
from neoteny.studies.tunnel.models import learner, source, swap_learner
from neoteny.studies.tunnel.scripts import depth_script, dynamics_script, light_script, swap_script
from neoteny.studies.tunnel.settings import Config, stream, swap_stream

SMOKE = {
    "data": ("digits",),
    "ood": ("mnist_digits",),
    "samples": (400,),
    "depth": (4,),
    "width": (32,),
    "batch": (64,),
    "epochs": (2,),
    "probe_epochs": (2,),
    "seed": (0,),
}

MLP = {"width": (1024,), "momentum": (0.0,), "epochs": (1000,), "stop": (0.0,), "init": ("torch_uniform",)}
VGG = {
    "network": ("vgg19",),
    "learning_rate": (0.01,),
    "weight_decay": (1e-4,),
    "epochs": (160,),
    "stop": (0.0,),
    "drops": (True,),
}
NARROW = {
    "network": ("vgg11",),
    "factor": (0.125,),
    "learning_rate": (0.02,),
    "weight_decay": (1e-4,),
    "rank_samples": (2_000,),
}
"""A VGG that two CPU cores can train: unlike in an MLP, its first layers do not separate the classes of CIFAR-10."""

SETTLED = {**NARROW, "drops": (True,)}
"""The same with the paper's schedule, whose drops of the rate let training settle."""

RESNET = {**VGG, "network": ("resnet34",), "learning_rate": (0.1,), "epochs": (164,)}
WHOLE = {"samples": (50_000,), "seed": (0, 1, 2)}
"""The paper's settings (section 3 of the specification), one for each family of networks."""

FIVE, THREE = tuple(range(5)), tuple(range(3))
CLASS_COUNTS = (10, 25, 50, 100)


def depth_axes(preset: str) -> dict | list[dict]:
    """MLPs of several depths; controls at the deepest, which most claims are about."""
    if preset == "smoke":
        return {**SMOKE, "controls": (True,)}
    if preset == "paper":
        return [
            {**WHOLE, **MLP, "depth": (6, 8, 10)},
            {**WHOLE, **MLP, "depth": (12,), "controls": (True,)},
        ]
    quick = {"samples": (5_000,), "epochs": (50,), "seed": FIVE}
    return [{**quick, "depth": (12,), "controls": (True,)}, {**quick, "depth": (10, 8, 6)}]


def width_axes(preset: str) -> dict | list[dict]:
    """The deepest MLP, narrower and wider than in `depth`."""
    if preset == "smoke":
        return {**SMOKE, "width": (16,)}
    if preset == "paper":
        return [{**WHOLE, **MLP, "width": (256, 2048)}, {**WHOLE, **VGG, "factor": (0.25, 2.0)}]
    return {"samples": (5_000,), "width": (128,), "epochs": (50,), "seed": FIVE}


def families_axes(preset: str) -> list[dict]:
    """Convolutional networks: a narrow VGG-11 in `quick`, those of the paper in `paper`."""
    if preset == "smoke":
        return []
    if preset == "quick":
        return [{**SETTLED, "samples": (5_000,), "epochs": (60,), "seed": FIVE, "controls": (True,)}]
    reverse = {"data": ("cifar100",), "ood": ("cifar10",), "ood_classes": ("all",)}
    looked_at = [{**WHOLE, **family, **data, "controls": (True,)} for family in (VGG, RESNET) for data in ({}, reverse)]
    more_images = [{**WHOLE, **family, "data": ("cinic10",), "samples": (90_000,)} for family in (VGG, RESNET)]
    return looked_at + more_images


def classes_axes(preset: str) -> dict | list[dict]:
    """Subsets of the classes of CIFAR-100 with as many images in all; in `paper` also with as many of each class."""
    if preset == "smoke":
        return {**SMOKE, "classes": (3, 6), "samples": (300,)}
    shared = {"data": ("cifar100",), "ood": ("cifar10",), "ood_classes": ("all",), "seed": THREE}
    if preset == "paper":
        shared = {**shared, **VGG}
        equal = {**shared, "classes": CLASS_COUNTS, "samples": (5_000,)}
        return [equal, *({**shared, "classes": (k,), "samples": (500 * k,)} for k in CLASS_COUNTS[1:])]
    return {**shared, **NARROW, "ood": ("none",), "epochs": (120,), "classes": CLASS_COUNTS[:3], "samples": (1_800,)}


def samples_axes(preset: str) -> dict | list[dict]:
    """A quarter of the images of the same network in `depth` or `families`."""
    if preset == "smoke":
        return {**SMOKE, "samples": (100,)}
    if preset == "paper":
        return {**WHOLE, **MLP, "depth": (10,), "samples": (12_500,)}
    return {**SETTLED, "ood": ("none",), "samples": (1_250,), "epochs": (150,), "seed": FIVE}


def dynamics_axes(preset: str) -> dict | list[dict]:
    """One network, while training begins."""
    if preset == "smoke":
        return {**SMOKE, "ood": ("none",)}
    if preset == "paper":
        return [{**WHOLE, **MLP, "ood": ("none",)}, {**WHOLE, **VGG, "ood": ("none",)}]
    return {"depth": (10,), "ood": ("none",), "epochs": (13,), "seed": FIVE}


def swap_axes(preset: str) -> dict | list[dict]:
    """Two tasks; the full network, and shortened ones."""
    if preset == "smoke":
        return {**SMOKE, "ood": ("none",), "depth": (3, 4)}
    if preset == "paper":
        return {**WHOLE, **VGG, "ood": ("none",), "network": ("vgg19", "vgg16", "vgg11", "vgg9")}
    return {**SETTLED, "network": ("vgg11", "vgg7"), "ood": ("none",), "epochs": (50,), "seed": FIVE}


depth = Experiment("depth", Config, depth_axes, stream, learner, depth_script, source)
width = Experiment("width", Config, width_axes, stream, learner, light_script, source)
families = Experiment("families", Config, families_axes, stream, learner, depth_script, source)
classes = Experiment("classes", Config, classes_axes, stream, learner, light_script, source)
samples = Experiment("samples", Config, samples_axes, stream, learner, light_script, source)
dynamics = Experiment("dynamics", Config, dynamics_axes, stream, learner, dynamics_script, source)
swap = Experiment("swap", Config, swap_axes, swap_stream, swap_learner, swap_script, source)
