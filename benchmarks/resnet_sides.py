"""Both sides of the ResNet-20 benchmark: the training step, its comparison, and the convolutions alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jax import lax
from torch import nn
from torch.nn import functional

from contestants import Block
from neoteny.learners.learner import Batch
from neoteny.learners.supervised import supervised
from neoteny.networks import BatchNorm, Conv2d, Dense, GroupNorm, Norm, resnet

BATCH, IMAGE, CLASSES = 64, (32, 32, 3), 10
RATE, MOMENTUM = 0.05, 0.9
GROUP = 16  # channels in a group of Norm.GROUP
CONVOLUTIONS = (
    # map before, channels in, channels out, stride, how many in ResNet-20
    (32, 3, 16, 1, 1),
    (32, 16, 16, 1, 6),
    (32, 16, 32, 2, 1),
    (16, 32, 32, 1, 5),
    (16, 32, 64, 2, 1),
    (8, 64, 64, 1, 5),
)


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images in [0, 1], channels last, and labels."""
    rng = np.random.default_rng(seed)
    return rng.random((BATCH, *IMAGE), dtype=np.float32), rng.integers(0, CLASSES, BATCH, dtype=np.int32)


def stretch(step: Callable[[], object], seconds: float) -> Block:
    """Steps until the time is over."""
    start, cpu, steps = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds or steps == 0:
        loss = step()
        steps += 1
    now = time.perf_counter() - start
    return Block(now / steps, now, time.process_time() - cpu, float(loss) if loss is not None else float("nan"))


def maker(norm: str):
    """ResNet-20."""
    return resnet(IMAGE, CLASSES, depth=20, norm=Norm(norm))


class Neoteny:
    """The update of the supervised learner as one donated program, as training outside loops calls it."""

    def __init__(self, norm: str):
        learner = supervised(maker(norm), optax.sgd(RATE, momentum=MOMENTUM))
        self._key = jax.random.key(0)
        self._state = jax.jit(learner.init)(self._key)
        self._batch = Batch(*map(jnp.asarray, batch()))
        self._update = jax.jit(learner.update, donate_argnums=0)
        start = time.perf_counter()
        self._step()
        self.detail: dict[str, Any] = {"first_step_seconds": time.perf_counter() - start}

    def _step(self) -> float:
        self._state, metrics = self._update(self._state, self._batch, self._key)
        return float(metrics["loss"])

    def train(self, seconds: float) -> Block:
        """Steps, the loss read after each."""
        return stretch(self._step, seconds)


# PyTorch ------------------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """He et al. 2016, figure 2, with the zero-padding shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs)
        self.second, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), norm(outputs)
        self.added = outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width)."""
        y = functional.relu(self.norm1(self.first(x)), inplace=True)
        y = self.norm2(self.second(y))
        if self.added:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.added))
        return functional.relu(y + x, inplace=True)


def torch_resnet(norm: str) -> nn.Sequential:
    """ResNet-20."""

    def make(size: int) -> nn.Module:
        return nn.BatchNorm2d(size) if norm == "batch" else nn.GroupNorm(max(size // GROUP, 1), size)

    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), make(16), nn.ReLU(inplace=True)]
    inputs = 16
    for outputs in (16, 32, 64):
        for index in range(3):
            layers.append(BasicBlock(inputs, outputs, 2 if index == 0 and outputs > 16 else 1, make))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


class Torch:
    """A plain eager loop."""

    def __init__(self, norm: str, layout: str):
        torch.manual_seed(0)
        torch.set_flush_denormal(True)
        memory = _memory_format(layout)
        images, labels = batch()
        self._inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(memory_format=memory)
        self._labels = torch.from_numpy(labels.astype(np.int64))
        self._model = torch_resnet(norm).to(memory_format=memory)
        self._optimizer = torch.optim.SGD(self._model.parameters(), RATE, momentum=MOMENTUM)
        self.detail: dict[str, Any] = {"threads": torch.get_num_threads()}

    def _step(self) -> float:
        return torch_step(self._model, self._optimizer, self._inputs, self._labels)

    def train(self, seconds: float) -> Block:
        """Steps, the loss read after each."""
        return stretch(self._step, seconds)


def torch_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """One update; the loss before it."""
    optimizer.zero_grad(set_to_none=True)
    loss = functional.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def _memory_format(layout: str) -> torch.memory_format:
    return torch.channels_last if layout == "channels_last" else torch.contiguous_format


# Are the two the same network? --------------------------------------------------------------------------


def _kernels(network) -> list[np.ndarray]:
    """Trained arrays in PyTorch's order and axes: kernel, scale, bias of every layer from input to output."""

    def is_layer(node: object) -> bool:
        return isinstance(node, Conv2d | Dense | BatchNorm | GroupNorm)

    arrays: list[np.ndarray] = []
    for layer in filter(is_layer, jax.tree.leaves(network, is_leaf=is_layer)):
        match layer:
            case Conv2d():
                arrays.append(np.asarray(layer.weight).transpose(3, 2, 0, 1))
            case Dense():
                arrays += [np.asarray(layer.weight), np.asarray(layer.bias)]
            case BatchNorm() | GroupNorm():
                arrays += [np.asarray(layer.scale), np.asarray(layer.bias)]
    return arrays


def compared(norm: str, steps: int) -> dict[str, float]:
    """Steps from equal weights on the same batches.

    loss: largest relative difference; parameters: of all together after the last step, relative; rounding: the same as
    `loss` between PyTorch in float32 and in float64.
    """
    learner = supervised(maker(norm), optax.sgd(RATE, momentum=MOMENTUM))
    key = jax.random.key(0)
    state = jax.jit(learner.init)(key)
    before = _kernels(state.networks["online"])
    update, losses = jax.jit(learner.update), []
    for step in range(steps):
        state, metrics = update(state, Batch(*map(jnp.asarray, batch(step))), key)
        losses.append(float(metrics["loss"]))
    ours = _kernels(state.networks["online"])
    single, theirs = _torch_steps(norm, before, steps, torch.float32)
    double, _ = _torch_steps(norm, before, steps, torch.float64)
    square = sum(float(np.sum((a - b) ** 2)) for a, b in zip(ours, theirs, strict=True))
    return {
        "loss": _apart(losses, single),
        "parameters": (square / sum(float(np.sum(b**2)) for b in theirs)) ** 0.5,
        "rounding": _apart(single, double),
    }


def _torch_steps(norm: str, weights: list[np.ndarray], steps: int, dtype: torch.dtype):
    model = torch_resnet(norm).to(dtype)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(value.copy()))
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM)
    losses = []
    for step in range(steps):
        images, labels = batch(step)
        inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(dtype)
        losses.append(torch_step(model, optimizer, inputs, torch.from_numpy(labels.astype(np.int64))))
    return losses, [parameter.detach().numpy().astype(np.float64) for parameter in model.parameters()]


def _apart(a: list[float], b: list[float]) -> float:
    return float(np.max(np.abs(np.subtract(a, b)) / np.abs(b)))


# The convolutions of one step, each alone ----------------------------------------------------------------


class _Convolutions:
    """Times every convolution, its gradient by the input and by the kernel alone; a step is their sum."""

    def __init__(self, programs: list[tuple[str, int, Callable[[], object]]]):
        self._programs = programs
        self._least: dict[int, float] = {}
        for _, _, program in programs:
            program()
        self.detail: dict[str, Any] = {"parts": {}}

    def train(self, seconds: float) -> Block:
        """The sum of the convolutions' mean times."""
        start, cpu, total = time.perf_counter(), time.process_time(), 0.0
        for index, (_, count, program) in enumerate(self._programs):
            begin, done = time.perf_counter(), 0
            while time.perf_counter() - begin < seconds / len(self._programs) or done == 0:
                program()
                done += 1
            taken = count * (time.perf_counter() - begin) / done
            self._least[index] = min(taken, self._least.get(index, taken))
            total += taken
        parts: dict[str, float] = {}
        for index, (part, _, _) in enumerate(self._programs):
            parts[part] = parts.get(part, 0.0) + self._least[index]
        self.detail["parts"] = parts
        return Block(total, time.perf_counter() - start, time.process_time() - cpu, float("nan"))


def _operands(size: int, inputs: int, outputs: int, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, size, size, inputs))
    weight = rng.normal(size=(3, 3, inputs, outputs))
    gradient = rng.normal(size=(BATCH, size // stride, size // stride, outputs))
    return x.astype(np.float32), weight.astype(np.float32), gradient.astype(np.float32)


class XlaConvolutions(_Convolutions):
    """lax.conv_general_dilated, channels last, and its two transposes."""

    def __init__(self):
        programs: list[tuple[str, int, Callable[[], object]]] = []
        for size, inputs, outputs, stride, count in CONVOLUTIONS:
            x, weight, gradient = map(jnp.asarray, _operands(size, inputs, outputs, stride))

            def convolution(x, weight, stride=stride):
                return lax.conv_general_dilated(
                    x, weight, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
                )

            def by_input(x, weight, gradient, convolution=convolution):
                return jax.linear_transpose(lambda x: convolution(x, weight), x)(gradient)

            def by_kernel(x, weight, gradient, convolution=convolution):
                return jax.linear_transpose(lambda weight: convolution(x, weight), weight)(gradient)

            programs.append(("forward", count, _blocking(jax.jit(convolution), x, weight)))
            if inputs != IMAGE[-1]:  # nothing is trained before the first convolution
                programs.append(("by input", count, _blocking(jax.jit(by_input), x, weight, gradient)))
            programs.append(("by kernel", count, _blocking(jax.jit(by_kernel), x, weight, gradient)))
        super().__init__(programs)


def _blocking(function: Callable, *arguments) -> Callable[[], object]:
    return lambda: jax.block_until_ready(function(*arguments))


class TorchConvolutions(_Convolutions):
    """conv2d and convolution_backward."""

    def __init__(self, layout: str):
        programs: list[tuple[str, int, Callable[[], object]]] = []
        memory = _memory_format(layout)
        for size, inputs, outputs, stride, count in CONVOLUTIONS:
            x, weight, gradient = _operands(size, inputs, outputs, stride)
            kernel = torch.from_numpy(weight.transpose(3, 2, 0, 1).copy()).to(memory_format=memory)
            x, gradient = (
                torch.from_numpy(array.transpose(0, 3, 1, 2).copy()).to(memory_format=memory) for array in (x, gradient)
            )

            def forward(x=x, kernel=kernel, stride=stride):
                with torch.no_grad():
                    return functional.conv2d(x, kernel, None, stride, 1)

            def backward(by_input, x=x, kernel=kernel, gradient=gradient, stride=stride):
                mask = [by_input, not by_input, False]
                return torch.ops.aten.convolution_backward(
                    gradient, x, kernel, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, mask
                )

            programs.append(("forward", count, forward))
            if inputs != IMAGE[-1]:
                programs.append(("by input", count, lambda backward=backward: backward(True)))
            programs.append(("by kernel", count, lambda backward=backward: backward(False)))
        super().__init__(programs)
