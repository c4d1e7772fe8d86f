"""PyTorch's side: a plain loop written with care, and the ways there are to make it faster."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.func import functional_call, grad_and_value, stack_module_state
from torch.nn import functional

from cases import Case, data
from contestants import Block, Step

STRETCH = 8
"""Updates between two looks at the clock."""

ADAMS = {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}
"""Implementations of torch.optim.Adam."""


@dataclass(frozen=True)
class Variant:
    """One way of running the loop."""

    adam: str
    threads: int
    compiled: bool = False
    form: str = "loop"  # "loop": one network. "bmm", "vmap": all lanes' networks stacked


def _model(sizes: Sequence[int]) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(fan_in, fan_out), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def _tensors(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs as float32 in [0, 1], converted once (neoteny converts every batch), and labels."""
    inputs, labels = data(case)
    scaled = inputs.astype(np.float32) / 255 if inputs.dtype == np.uint8 else inputs
    return torch.from_numpy(scaled), torch.from_numpy(labels.astype(np.int64))


def _adam(case: Case, parameters, variant: Variant) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=case.learning_rate, **ADAMS[variant.adam])


def loop(case: Case, variant: Variant, stretch: int = STRETCH) -> Iterator[tuple[int, float]]:
    """One network; yields (updates, mean loss) every `stretch` updates.

    Lanes come one after another, so one stands for all.
    """
    x_all, y_all = _tensors(case)
    model = _model(case.sizes)
    optimizer = _adam(case, model.parameters(), variant)

    def loss_of(x, y):
        return functional.cross_entropy(model(x), y)

    step = torch.compile(loss_of) if variant.compiled else loss_of
    total, updates = torch.zeros(()), 0
    while True:
        order = torch.randperm(len(x_all))
        for start in range(0, len(x_all) - case.batch + 1, case.batch):
            chosen = order[start : start + case.batch]
            loss = step(x_all.index_select(0, chosen), y_all.index_select(0, chosen))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach()
            updates += 1
            if updates == stretch:
                yield updates, total.item() / updates
                total, updates = torch.zeros(()), 0


def _ensemble(case: Case, lanes: int, variant: Variant) -> Iterator[tuple[int, float]]:
    """All lanes' networks stacked and stepped together, each on its own shuffled minibatches."""
    x_all, y_all = _tensors(case)
    models = [_model(case.sizes) for _ in range(lanes)]
    if variant.form == "vmap":
        parameters, _ = stack_module_state(models)

        def loss_of(parameters, x, y):
            return functional.cross_entropy(functional_call(models[0], parameters, (x,)), y)

        gradients_of = torch.vmap(grad_and_value(loss_of))

        def stacked_step(x, y):
            gradients, losses = gradients_of(parameters, x, y)
            for name, parameter in parameters.items():
                parameter.grad = gradients[name]
            return losses.detach().mean()

        step, trained = stacked_step, list(parameters.values())
    else:
        # The hand-written form: batched products, one autograd graph for all lanes.
        linear = [[layer for layer in model if isinstance(layer, torch.nn.Linear)] for model in models]
        weights = [
            torch.stack([w.weight.detach().T for w in same]).requires_grad_() for same in zip(*linear, strict=True)
        ]
        biases = [
            torch.stack([w.bias.detach()[None] for w in same]).requires_grad_() for same in zip(*linear, strict=True)
        ]
        trained = [*weights, *biases]

        def loss_sum(x, y):
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                x = functional.relu(torch.baddbmm(bias, x, weight))
            logits = torch.baddbmm(biases[-1], x, weights[-1])
            return functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / case.batch

        loss_of_all = torch.compile(loss_sum) if variant.compiled else loss_sum

        def batched_step(x, y):
            loss = loss_of_all(x, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            return loss.detach() / lanes

        step = batched_step

    optimizer = _adam(case, trained, variant)
    total, updates = torch.zeros(()), 0
    while True:
        order = torch.argsort(torch.rand(lanes, len(x_all)), dim=1)
        for start in range(0, len(x_all) - case.batch + 1, case.batch):
            rows = order[:, start : start + case.batch].reshape(-1)
            x = x_all.index_select(0, rows).view(lanes, case.batch, -1)
            total += step(x, y_all.index_select(0, rows).view(lanes, case.batch))
            optimizer.step()
            updates += 1
            if updates == STRETCH:
                yield updates * lanes, total.item() / updates
                total, updates = torch.zeros(()), 0


class Torch:
    """The fastest of several variants, found by trying each twice, so that no one disturbance decides."""

    def __init__(self, case: Case, lanes: int, variants: Sequence[Variant], trial_seconds: float):
        torch.set_flush_denormal(True)  # as XLA does; otherwise dead units' decaying moments slow Adam down many times
        trials = {}
        for variant in variants:
            torch.set_num_threads(variant.threads)
            training = loop(case, variant) if variant.form == "loop" else _ensemble(case, lanes, variant)
            start = time.perf_counter()
            _, first_loss = next(training)
            trials[variant] = (training, time.perf_counter() - start, first_loss)
        seconds = dict.fromkeys(trials, float("inf"))
        for variant, (training, *_) in [*trials.items()] * 2:
            torch.set_num_threads(variant.threads)
            seconds[variant] = min(seconds[variant], _train(training, trial_seconds).per_update)
        best = min(seconds, key=lambda variant: seconds[variant])
        torch.set_num_threads(best.threads)
        self._training, first, first_loss = trials[best]
        self.detail = {
            "chosen": asdict(best),
            "first_stretch_seconds": first,
            "first_loss": first_loss,
            "tried": [{**asdict(variant), "milliseconds": 1e3 * taken} for variant, taken in seconds.items()],
        }

    def train(self, seconds: float) -> Block:
        """Updates until the time is over."""
        return _train(self._training, seconds)


def _train(training: Iterator[tuple[int, float]], seconds: float) -> Block:
    start, cpu, updates, loss = time.perf_counter(), time.process_time(), 0, float("nan")
    while time.perf_counter() - start < seconds or updates == 0:
        done, loss = next(training)
        updates += done
    now = time.perf_counter() - start
    return Block(now / updates, now, time.process_time() - cpu, loss)


def _thread_counts() -> tuple[int, ...]:
    return tuple(sorted({1, len(os.sched_getaffinity(0))}))


def plain(case: Case, lanes: int, trial_seconds: float) -> Torch:
    """The loop as it is usually written: Adam and the number of threads as they come."""
    return Torch(case, lanes, [Variant("default", torch.get_num_threads())], trial_seconds)


def eager(case: Case, lanes: int, trial_seconds: float) -> Torch:
    """The plain loop with every Adam at every number of threads."""
    variants = [Variant(adam, threads) for adam in ADAMS for threads in _thread_counts()]
    return Torch(case, lanes, variants, trial_seconds)


def compiled(case: Case, lanes: int, trial_seconds: float) -> Torch:
    """The loop with its forward and backward pass under torch.compile."""
    variants = [Variant("fused", threads, compiled=True) for threads in _thread_counts()]
    return Torch(case, lanes, variants, trial_seconds)


def ensemble(case: Case, lanes: int, trial_seconds: float) -> Torch:
    """All lanes together, by torch.func and by hand."""
    forms, adams = ("vmap", "bmm"), ("foreach", "fused")
    variants = [Variant(a, t, form=f) for f in forms for a in adams for t in _thread_counts()]
    return Torch(case, lanes, variants, trial_seconds)


def ensemble_compiled(case: Case, lanes: int, trial_seconds: float) -> Torch:
    """All lanes together, by hand, under torch.compile."""
    variants = [Variant("fused", threads, compiled=True, form="bmm") for threads in _thread_counts()]
    return Torch(case, lanes, variants, trial_seconds)


def replay(case: Case, steps: Sequence[Step], rows: np.ndarray) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """One float64 update from each of these states on its rows: the parameters after it, and the losses."""
    x_all, y_all = _tensors(case)
    x_all, model = x_all.double(), _model(case.sizes).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=case.learning_rate)
    after, losses = [], []
    for count, (step, batch) in enumerate(zip(steps, rows, strict=True)):
        with torch.no_grad():
            for parameter, value, first, second in zip(
                model.parameters(), step.parameters, step.first, step.second, strict=True
            ):
                parameter.copy_(torch.from_numpy(value))
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(count)),
                    "exp_avg": torch.from_numpy(first).double(),
                    "exp_avg_sq": torch.from_numpy(second).double(),
                }
        loss = functional.cross_entropy(model(x_all[batch]), y_all[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after.append([p.detach().numpy().copy() for p in model.parameters()])
        losses.append(loss.item())
    return after, np.asarray(losses)


class Floor:
    """The bare matrix products of one update, by torch at its best number of threads or by NumPy."""

    def __init__(self, case: Case, lanes: int, library: str):
        rng = np.random.default_rng(0)
        self._lanes, self._programs = lanes, []
        self._best: dict[str, float] = {}
        for dot in case.dots():
            left, right = (rng.normal(size=(lanes, *shape)).astype(np.float32) for shape in dot.operands())
            left = left.swapaxes(1, 2) if dot.role == "weight" else left
            right = right.swapaxes(1, 2) if dot.role == "input" else right
            out = np.empty((lanes, dot.shape[0], dot.shape[2]), np.float32)
            if library == "torch":
                arrays = [torch.from_numpy(a) for a in (left, right, out)]
                program = _bound(torch.bmm, *arrays) if lanes > 1 else _bound(torch.mm, *(a[0] for a in arrays))
            else:
                program = _bound(np.matmul, *((left, right, out) if lanes > 1 else (left[0], right[0], out[0])))
            self._programs.append((dot, program))
        threads = _thread_counts()
        if library == "torch":
            seconds = {}
            for count in threads:
                torch.set_num_threads(count)
                seconds[count] = min(self.train(0.2).per_update for _ in range(2))
            torch.set_num_threads(min(seconds, key=lambda count: seconds[count]))
        self._best.clear()
        self.detail = {"gflops": self._best}

    def train(self, seconds: float) -> Block:
        """The sum of the products' times."""
        start, cpu, total = time.perf_counter(), time.process_time(), 0.0
        for dot, program in self._programs:
            begin, count = time.perf_counter(), 0
            while (now := time.perf_counter() - begin) < seconds / len(self._programs) or count == 0:
                for _ in range(10 if self._lanes == 1 else 1):
                    program()
                    count += 1
            taken = now / max(count, 1) / self._lanes
            m, k, n = dot.shape
            self._best[dot.name] = max(self._best.get(dot.name, 0.0), 2e-9 * m * k * n / taken)
            total += taken
        return Block(total, time.perf_counter() - start, time.process_time() - cpu, float("nan"))


def _bound(function: Callable, left, right, out) -> Callable[[], object]:
    return lambda: function(left, right, out=out)
