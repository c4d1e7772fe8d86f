"""neoteny's side: what a user gets, a `Runner` folding a script of one `Switch` and one `Train`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cases import Case, Dot, data
from contestants import Block, Step
from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.learners.learner import Learner
from neoteny.learners.supervised import supervised
from neoteny.networks import mlp
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.sources import DataArrays, Minibatch, TaskArrays
from neoteny.tasks.streams import Stream, Unchanged, single
from neoteny.training.events import Event, Switch, Train
from neoteny.training.keys import Purpose, named_key, root_key
from neoteny.training.runner import Runner
from ticking import Ticking

FOREVER = 10**9
"""Updates in the script; the benchmark stops asking for ticks long before."""


@dataclass(frozen=True)
class Config:
    """One lane."""

    case: Case
    record_every: int
    seed: Lane[int] = 0


def _stream(config: Config) -> Stream:
    inputs, labels = data(config.case)
    rows = np.arange(len(inputs), dtype=np.int32)
    return single(Arrays(config.case.name, inputs, labels, {"train": rows}, config.case.sizes[-1]))


def _learner(config: Config) -> Learner:
    features, *hidden, classes = config.case.sizes
    return supervised(mlp(features, hidden, classes), optax.adam(config.case.learning_rate))


def _script(config: Config, tasks) -> tuple[Event, ...]:
    return Switch(tasks[0]), Train(tasks[0], FOREVER, record_every=config.record_every)


EXPERIMENT = Experiment(
    "benchmark",
    Config,
    lambda preset: {},
    _stream,
    _learner,
    _script,
    lambda config: Minibatch(config.case.batch),
)


def make_runner(case: Case, lanes: int, record_every: int = 100) -> Runner:
    """A pack of this many lanes; 100 is the default interval of records."""
    configs = [Config(case, record_every, seed) for seed in range(lanes)]
    return Runner(EXPERIMENT, configs, [f"lane-{seed}" for seed in range(lanes)])


class Neoteny(Ticking):
    """A pack, with a record every 100 updates."""

    def __init__(self, case: Case, lanes: int):
        super().__init__(make_runner(case, lanes), quiet=5)


class FirstUpdates(NamedTuple):
    """The last lane before every update and after the last (updates + 1), and every update's rows and loss."""

    steps: list[Step]
    rows: np.ndarray
    losses: np.ndarray


def first_updates(case: Case, lanes: int, updates: int) -> FirstUpdates:
    """What the first updates of a pack do to its last lane."""
    runner = make_runner(case, lanes, record_every=1)
    ticks = runner.ticks()

    def arrays(tree) -> list[np.ndarray]:
        return [np.array(leaf[-1]) for leaf in jax.tree.leaves(tree)]

    def step() -> Step:
        learner = runner.state.learner
        adam = [learner.optimizer["online"][stage][0] for stage in learner.networks["online"].names]
        first, second = ([a for state in adam for a in arrays(getattr(state, moment))] for moment in ("mu", "nu"))
        return Step(arrays(learner.networks["online"]), first, second)

    next(ticks)
    steps, losses = [step()], []
    while len(losses) < updates:
        losses += [r.value for r in next(ticks).records if r.metric == "train_loss" and r.run == runner.names[-1]]
        if len(losses) == len(steps):
            steps.append(step())
    return FirstUpdates(steps, _rows(case, lanes - 1, updates), np.asarray(losses))


def _rows(case: Case, seed: int, updates: int) -> np.ndarray:
    """Row numbers of the first minibatches (updates, batch), from data whose targets are row numbers."""
    inputs, _ = data(case)
    rows = jnp.arange(len(inputs), dtype=jnp.int32)
    task = TaskArrays(DataArrays(jnp.asarray(inputs), rows), rows, jnp.asarray(len(inputs), jnp.int32))
    source, root = Minibatch(case.batch), root_key(seed)
    state, found = source.init(task, Unchanged(), root), []
    for update in range(updates):
        key = named_key(root, Purpose.BATCH, 0, update)
        state, batch = source.next(state, task, Unchanged(), jnp.asarray(update, jnp.int32), key)
        found.append(np.asarray(batch.targets))
    return np.stack(found)


class Floor:
    """The bare matrix products of one update with `jnp.dot`, each in a compiled loop of its own."""

    def __init__(self, case: Case, lanes: int):
        self._lanes, self._programs = lanes, []
        self._best: dict[str, float] = {}
        for number, dot in enumerate(case.dots()):
            keys = jax.random.split(jax.random.key(number))
            left, right = (jax.random.normal(k, (lanes, *s)) for k, s in zip(keys, dot.operands(), strict=True))
            program = _repeated(dot)
            program(left, right, 1).block_until_ready()
            start = time.perf_counter()
            program(left, right, 3).block_until_ready()
            times = max(1, int(0.01 * 3 / (time.perf_counter() - start)))  # one call lasts about ten milliseconds
            self._programs.append((dot, program, left, right, times))
        self.detail = {"gflops": self._best}

    def train(self, seconds: float) -> Block:
        """The sum of the products' times."""
        start, cpu, total = time.perf_counter(), time.process_time(), 0.0
        for dot, program, left, right, times in self._programs:
            begin, done = time.perf_counter(), 0
            while time.perf_counter() - begin < seconds / len(self._programs) or done == 0:
                program(left, right, times).block_until_ready()
                done += times * self._lanes
            taken = (time.perf_counter() - begin) / done
            m, k, n = dot.shape
            self._best[dot.name] = max(self._best.get(dot.name, 0.0), 2e-9 * m * k * n / taken)
            total += taken
        return Block(total, time.perf_counter() - start, time.process_time() - cpu, float("nan"))


def _repeated(dot: Dot):
    """A program that computes the product `count` times, each depending on the last by a single number."""
    left_axis, right_axis = (0 if dot.role == "weight" else 1), (1 if dot.role == "input" else 0)

    def product(left, right):
        return jax.lax.dot_general(left, right, (((left_axis,), (right_axis,)), ((), ())))

    @jax.jit
    def loop(left, right, count):
        def body(_, carry):
            left, _ = carry
            result = jax.vmap(product)(left, right)
            return left.at[0, 0, 0].set(result[0, 0, 0] * 1e-6), result

        shape = jax.eval_shape(jax.vmap(product), left, right)
        return jax.lax.fori_loop(0, count, body, (left, jnp.zeros(shape.shape, shape.dtype)))[1]

    return loop
