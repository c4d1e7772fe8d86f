"""A study of seconds: two experiments, three packs, six runs, on data made up here."""

from dataclasses import dataclass

import numpy as np
import optax

from neoteny.analysis import Above, mean_estimate, not_run, verdict
from neoteny.analysis.claims import Claim
from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment, Study
from neoteny.learners.supervised import supervised
from neoteny.networks import mlp
from neoteny.tasks.images import from_arrays
from neoteny.tasks.sources import Minibatch
from neoteny.tasks.streams import random_labels
from neoteny.training.events import Evaluate, Save, Switch, Train

BROKEN: set[str] = set()
"""What raises in the pack of width 5: "learner" when traced, "script" when events are listed, "predict"."""


@dataclass(frozen=True)
class Config:
    width: int = 3
    tasks: int = 2
    steps: int = 5
    rate: Lane[float] = 0.1
    seed: Lane[int] = 0

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width must be at least 1, not {self.width}")


def data():
    rng = np.random.default_rng(0)
    return from_arrays(rng.standard_normal((40, 6)).astype(np.float32), np.arange(40) % 3, name="made_up")


def stream(config):
    return random_labels(data(), tasks=config.tasks)


def learner(config):
    if config.width == 5 and "learner" in BROKEN:
        raise RuntimeError("the learner is broken")
    made = supervised(mlp((6,), [config.width], 3), optax.sgd(config.rate))

    def predict(state, inputs):
        if config.width == 5 and "predict" in BROKEN:
            raise RuntimeError("the prediction is broken")
        return made.predict(state, inputs)

    return made._replace(predict=predict)


def script(config, tasks):
    if config.width == 5 and "script" in BROKEN:
        raise ValueError("the script is broken")
    events = [
        event
        for task in tasks
        for event in (Switch(task), Train(task, config.steps, record_every=2), Evaluate(task, "train"))
    ]
    return (*events, Save("last/of it"))


def source(config):
    return Minibatch(8)


def _learns(frame):
    values = frame.filter(frame["metric"] == "accuracy")["value"].to_numpy()
    return verdict(mean_estimate(values), Above(0.0)) if len(values) > 2 else not_run("needs three runs")


one = Experiment("one", Config, lambda preset: {"rate": (0.1, 0.2), "seed": (0, 1)}, stream, learner, script, source)
two = Experiment("two", Config, lambda preset: {"width": (4, 5)}, stream, learner, script, source)

STUDY = Study(
    name="tiny",
    title="A tiny study",
    paper="Nobody",
    paper_url="https://example.org",
    question="Does it run?",
    experiments=(one, two),
    claims=(Claim("T-1", "It learns", "yes", _learns),),
    presets={"smoke": "seconds", "quick": "seconds", "paper": "seconds"},
)
