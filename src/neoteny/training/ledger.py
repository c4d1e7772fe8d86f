"""The compute ledger: floating-point operations, counted from the program, times how often it truly ran.

One update of one lane is traced once and its operations are counted; the ledger multiplies by the steps each lane
really took. Work for training, evaluation (forward), probes and search is kept apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import numpy as np
from jax.extend import core

from neoteny.networks.recurrence_kernels import Numbers

# One operation per output element; everything else that is not listed below moves or compares data and counts nothing.
_ELEMENTWISE = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div",
        "rem",
        "neg",
        "abs",
        "sign",
        "max",
        "min",
        "pow",
        "integer_pow",
        "sqrt",
        "rsqrt",
        "cbrt",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log1p",
        "tanh",
        "logistic",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "atan2",
        "sinh",
        "cosh",
        "asinh",
        "acosh",
        "atanh",
        "erf",
        "erfc",
        "erf_inv",
        "square",
        "lgamma",
        "digamma",
        "add_any",
        "clamp",
    ]
)
_REDUCTIONS = frozenset(
    [
        "reduce_sum",
        "reduce_max",
        "reduce_min",
        "reduce_prod",
        "argmax",
        "argmin",
        "cumsum",
        "cumprod",
        "cumlogsumexp",
        "cummax",
        "cummin",
    ]
)
# Multiply-adds an element: of the state, of its tangent, of its cotangent with the gradient of lam.
_RECURRENCES = {
    "diagonal_recurrence": 1,
    "diagonal_recurrence_tangent": 2,
    "diagonal_recurrence_cotangent": 2,
}


def _size(variable) -> int:
    return math.prod(variable.aval.shape)


def _is_floating(variable) -> bool:
    return jax.numpy.issubdtype(variable.aval.dtype, np.inexact)


def _dot_general(equation) -> float:
    (contracting, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * _size(equation.outvars[0]) * math.prod(left[axis] for axis in contracting)


def _convolution(equation) -> float:
    kernel = equation.invars[1].aval.shape
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * _size(equation.outvars[0]) * math.prod(kernel) / out_features


def _recurrence(equation) -> float:
    sequences = equation.outvars[0].aval if len(equation.outvars) == 1 else equation.outvars[1].aval
    if equation.params["numbers"] is Numbers.PLANES:
        operations = 4  # of a half of a complex number
    else:
        operations = 8 if jax.numpy.issubdtype(sequences.dtype, np.complexfloating) else 2
    return float(operations * _RECURRENCES[equation.primitive.name] * math.prod(sequences.shape))


def _jaxpr_of(parameter):
    return parameter.jaxpr if isinstance(parameter, core.ClosedJaxpr) else parameter


def _inner(equation) -> list:
    """The programs an operation holds: bodies of loops, branches, functions called."""
    kinds = core.ClosedJaxpr | core.Jaxpr
    leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: isinstance(x, kinds))
    return [_jaxpr_of(leaf) for leaf in leaves if isinstance(leaf, kinds)]


def _runs_convolution(jaxpr, platform: str) -> bool:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        inner = _inner(equation)
        platforms = equation.params.get("branches_platforms")
        if platforms is not None:
            # One of several programs is lowered: the first for this platform, or for all others.
            inner = [next(b for b, names in zip(inner, platforms, strict=True) if names is None or platform in names)]
        if any(_runs_convolution(program, platform) for program in inner):
            return True
    return False


def runs_convolution(function: Callable, *arguments, platform: str) -> bool:
    """Whether one call runs XLA's own convolution on this platform; found by tracing, as in `count_flops`."""
    return _runs_convolution(jax.make_jaxpr(function)(*arguments).jaxpr, platform)


def _count(jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inner = _inner(equation)
        if name == "dot_general":
            total += _dot_general(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name in _RECURRENCES:
            total += _recurrence(equation)
        elif name == "scan":
            total += equation.params["length"] * sum(map(_count, inner))
        elif name == "cond":
            total += max(map(_count, inner))
        elif name == "while":
            raise ValueError(
                "a loop with a traced count has no fixed cost; cost its body and multiply by the true steps"
            )
        elif inner:
            # A custom derivative rule carries its rules as parameters too; only the function itself runs.
            total += _count(inner[0])
        elif name in _ELEMENTWISE and _is_floating(equation.outvars[0]):
            total += _size(equation.outvars[0])
        elif name in _REDUCTIONS and _is_floating(equation.invars[0]):
            total += _size(equation.invars[0])
    return total


def count_flops(function: Callable, *arguments) -> float:
    """Floating-point operations of one call, from its traced program; nothing is compiled or run.

    `arguments` may be arrays or `jax.ShapeDtypeStruct`s. A product of (m, k) by (k, n) counts 2mkn, an elementwise
    operation one per output element, a reduction one per input element, a scan its body times its length, a branch its
    dearest side; a diagonal recurrence counts its multiply-adds, whichever way it is evaluated.
    Linear-algebra routines (LAPACK, FFT) and host work are not counted.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


@dataclass
class Ledger:
    """Cumulative operations of every lane of a pack: arrays of shape (lanes,), float64."""

    lanes: int
    train: np.ndarray = field(init=False)
    forward: np.ndarray = field(init=False)
    probe: np.ndarray = field(init=False)
    search: np.ndarray = field(init=False)

    def __post_init__(self):
        self.train, self.forward, self.probe, self.search = (np.zeros(self.lanes) for _ in range(4))

    def arrays(self) -> dict[str, np.ndarray]:
        """The four accounts by name, for storing."""
        return {"train": self.train, "forward": self.forward, "probe": self.probe, "search": self.search}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take the accounts from a stored state."""
        self.train, self.forward = arrays["train"].copy(), arrays["forward"].copy()
        self.probe, self.search = arrays["probe"].copy(), arrays["search"].copy()

    def copy(self) -> Ledger:
        """Accounts of their own, as they are now."""
        other = Ledger(self.lanes)
        other.restore(self.arrays())
        return other

    def add(self, other: Ledger, since: Ledger) -> None:
        """Add what `other` counted since it was `since`."""
        start, accounts = since.arrays(), self.arrays()
        for name, account in other.arrays().items():
            accounts[name] += account - start[name]
