"""The diagonal linear recurrence h_k = lam h_{k-1} + b_k as one differentiable function.

It is a primitive of its own: the derivative rules below are closed (each is written with the recurrence itself), so
forward mode, reverse mode and every mixture of them work at any order, and `vmap` over lanes makes one wider
recurrence. Reverse mode keeps lam and h only; the backward pass is one reversed recurrence that gathers the gradient of
lam on its way. Orvieto et al. 2023 use an associative scan with automatic derivatives, which moves far more memory.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Bool, Complex, Float, Inexact

from neoteny.networks import recurrence_kernels as kernels
from neoteny.networks.recurrence_kernels import Numbers


class Method(enum.Enum):
    """How the recurrence is evaluated; all give the same numbers up to rounding.

    AUTO is SEQUENTIAL on a CPU, where it was the fastest measured, forwards and backwards (benchmarks/recurrence.md),
    and ASSOCIATIVE elsewhere, where nothing was measured yet. PALLAS is a kernel for GPUs; INTERPRETED runs that kernel
    as ordinary JAX anywhere.
    """

    AUTO = "auto"
    SEQUENTIAL = "sequential"
    ASSOCIATIVE = "associative"
    CHUNKED = "chunked"
    FFT = "fft"
    PALLAS = "pallas"
    INTERPRETED = "interpreted"


MethodLike = Method | str


def as_method(method: MethodLike) -> Method:
    """`method` as a `Method`; ValueError naming those there are."""
    try:
        return Method(method)
    except ValueError:
        raise ValueError(f"method must be one of {', '.join(repr(m.value) for m in Method)}; got {method!r}") from None


def diagonal_recurrence(
    lam: Inexact[Array, " state"],
    b: Inexact[Array, "batch length state"],
    *,
    initial: Inexact[Array, "batch state"] | None = None,
    reset: Bool[Array, "batch length"] | None = None,
    reverse: bool = False,
    method: MethodLike = Method.AUTO,
) -> Inexact[Array, "batch length state"]:
    """h_k = lam h_{k-1} + b_k, elementwise over the state, and h_k = b_k where `reset`.

    Real or complex (if either is complex, the result is). `initial` is h_{-1}, by default 0; with `reverse` time runs
    backwards, h_k = lam h_{k+1} + b_k, and `initial` is the state after the last step. `reset` marks first steps of
    episodes: nothing passes into them, neither forwards nor in derivatives, be it NaN. Differentiable to any order in
    both modes by lam, b and initial. Orvieto et al. 2023, eq. 5 and section 3. ValueError for shapes that do not fit.
    """
    lam, b = jnp.asarray(lam), jnp.asarray(b)
    dtype = jnp.result_type(lam, b, *(() if initial is None else (initial,)), jnp.bfloat16)
    if lam.ndim != 1 or b.ndim != 3 or b.shape[-1] != lam.shape[0]:
        raise ValueError(f"lam must be (state,) and b (batch, length, state); got {lam.shape} and {b.shape}")
    return _bound(lam.astype(dtype), b.astype(dtype), initial, reset, reverse, method, Numbers.PLAIN)


def planar_recurrence(
    lam: Complex[Array, " state"],
    b: Float[Array, "batch length planes"],
    *,
    initial: Float[Array, "batch planes"] | None = None,
    reset: Bool[Array, "batch length"] | None = None,
    reverse: bool = False,
    method: MethodLike = Method.AUTO,
) -> Float[Array, "batch length planes"]:
    """`diagonal_recurrence` of complex states in real arrays: of b, `initial` and h the last axis has the real parts of
    all states and then their imaginary parts, planes = 2 state.

    Real products give and take such arrays as they are; joining them to complex ones and splitting those again moves
    more memory than the recurrence itself. Everything else is as there, derivatives of every order included.
    """
    lam, b = jnp.asarray(lam), jnp.asarray(b)
    if lam.ndim != 1 or b.ndim != 3 or b.shape[-1] != 2 * lam.shape[0]:
        raise ValueError(f"lam must be (state,) and b (batch, length, 2 state); got {lam.shape} and {b.shape}")
    if jnp.iscomplexobj(b):
        raise ValueError("b must be real, the real parts of all states and then the imaginary ones; it is complex")
    dtype = jnp.result_type(lam.real, b, *(() if initial is None else (initial,)), jnp.bfloat16)
    parts = jnp.concatenate((lam.real, lam.imag)).astype(dtype)
    return _bound(parts, b.astype(dtype), initial, reset, reverse, method, Numbers.PLANES)


def _bound(
    lam: Array,
    b: Array,
    initial: Array | None,
    reset: Array | None,
    reverse: bool,
    method: MethodLike,
    numbers: Numbers,
) -> Array:
    """The primitive of a single group; ValueError for what does not fit lam and b."""
    method = as_method(method)
    batch, length, entries = b.shape
    if initial is None:
        start = jnp.zeros((batch, entries), b.dtype)
    else:
        start = _fitting(jnp.asarray(initial), (batch, entries), "initial", "(batch, state)").astype(b.dtype)
    if reset is not None:
        reset = _fitting(jnp.asarray(reset), (batch, length), "reset", "(batch, length)")
        if reset.dtype != jnp.bool_:
            raise ValueError(f"reset must be boolean, True at the first step of an episode; got {reset.dtype}")
        if method is Method.FFT:
            raise ValueError("method 'fft' cannot reset the state; use another")
    if length == 0:
        return b
    masks = () if reset is None else (reset[None],)
    operands = (lam[None], b[None], start[None], *masks)
    return _recurrence_p.bind(*operands, reverse=bool(reverse), method=method, numbers=numbers)[0]


def recurrence_step(
    lam: Inexact[Array, " state"],
    h: Inexact[Array, "batch state"],
    b: Inexact[Array, "batch state"],
    *,
    reset: Bool[Array, " batch"] | None = None,
) -> Inexact[Array, "batch state"]:
    """One step: lam h + b, and b where `reset`. As many of them as there are steps equal `diagonal_recurrence`."""
    if reset is not None:
        h = jnp.where(reset[:, None], jnp.zeros_like(h), h)
    return lam * h + b


def _fitting(x: Array, shape: tuple[int, ...], name: str, spelt: str) -> Array:
    if x.shape != shape:
        raise ValueError(f"{name} must be {spelt} = {shape}; got shape {x.shape}")
    return x


# Primitives -----------------------------------------------------------------------------------------------
#
# recurrence  (lam, b, initial, [reset])                            -> h      linear in (b, initial)
# tangent     (lam, h, initial, [reset], dlam, db, dinitial)        -> dh     linear in the last three
# cotangent   (lam, h, initial, [reset], g)                 -> dlam, db, dinitial   the transpose of tangent
#
# Shapes as in `recurrence_kernels`. Residuals of reverse mode are the first operands of `tangent`: lam and h.

_recurrence_p = Primitive("diagonal_recurrence")
_tangent_p = Primitive("diagonal_recurrence_tangent")
_cotangent_p = Primitive("diagonal_recurrence_cotangent")
_cotangent_p.multiple_results = True

_METHODS: dict[Method, Callable[..., Array]] = {
    Method.ASSOCIATIVE: kernels.associative,
    Method.CHUNKED: kernels.chunked,
    Method.FFT: kernels.fft,
    Method.PALLAS: kernels.pallas_chunked,
    Method.INTERPRETED: functools.partial(kernels.pallas_chunked, interpret=True),
}


def _one_mask(masks: tuple[Array, ...]) -> Array | None:
    return masks[0] if masks else None


def _masks(reset: Array | None) -> tuple[Array, ...]:
    return () if reset is None else (reset,)


def _tangent_by_parts(
    lam, h, initial, masks, lam_tangent, b_tangent, initial_tangent, *, reverse, method, numbers: Numbers
):
    """What `tangent` means, in terms of the recurrence."""
    entering = kernels.previous(h, initial, _one_mask(masks), reverse=reverse)
    changed = numbers.multiplier(numbers.opened(lam_tangent)[:, None, None])
    source = b_tangent + numbers.closed(changed(numbers.opened(entering)))
    return _recurrence_p.bind(lam, source, initial_tangent, *masks, reverse=reverse, method=method, numbers=numbers)


def _cotangent_by_parts(lam, h, initial, masks, cotangent, *, reverse, method, numbers: Numbers):
    """What `cotangent` means, in terms of the recurrence."""
    reset = _one_mask(masks)
    d, into = _transposed(
        lam, cotangent, jnp.zeros_like(initial), reset, reverse=reverse, method=method, numbers=numbers
    )
    entering = kernels.previous(h, initial, reset, reverse=reverse)
    terms = numbers.pairing(numbers.opened(entering), numbers.opened(d))
    total = numbers.paired(tuple(jnp.sum(term, axis=(1, 2)) for term in terms))
    return [numbers.closed(total), d, into]


def _transposed(lam, cotangent, zero, reset, *, reverse, method, numbers: Numbers):
    """The cotangents of b and of the initial state."""
    factor = numbers.adjoint(numbers.opened(lam))
    back = numbers.closed(factor)
    passing = _masks(kernels.leaving(reset, reverse=reverse))
    d = _recurrence_p.bind(back, cotangent, zero, *passing, reverse=not reverse, method=method, numbers=numbers)
    first = -1 if reverse else 0
    into = numbers.closed(numbers.multiplier(factor[:, None])(numbers.opened(d[:, :, first])))
    return d, into if reset is None else jnp.where(reset[:, :, first, None], jnp.zeros_like(into), into)


# Evaluation and lowering ----------------------------------------------------------------------------------


def _evaluate_recurrence(auto: Method, lam, b, initial, *masks, reverse, method, numbers: Numbers):
    method, reset = auto if method is Method.AUTO else method, _one_mask(masks)
    if method is Method.SEQUENTIAL:
        return kernels.sequential(lam, b, initial, reset, reverse=reverse, numbers=numbers)
    lam, b, initial = (numbers.one_each(x) for x in (lam, b, initial))
    return numbers.restored(_METHODS[method](lam, b, initial, reset, reverse=reverse))


def _evaluate_tangent(auto: Method, lam, h, initial, *rest, reverse, method, numbers: Numbers):
    masks, linear = rest[:-3], rest[-3:]
    method, how = auto if method is Method.AUTO else method, {"reverse": reverse, "numbers": numbers}
    if method is Method.SEQUENTIAL:
        return kernels.sequential_tangent(lam, h, initial, _one_mask(masks), *linear, **how)
    return _tangent_by_parts(lam, h, initial, masks, *linear, method=method, **how)


def _evaluate_cotangent(auto: Method, lam, h, initial, *rest, reverse, method, numbers: Numbers):
    masks, cotangent = rest[:-1], rest[-1]
    method, how = auto if method is Method.AUTO else method, {"reverse": reverse, "numbers": numbers}
    if method is Method.SEQUENTIAL:
        return list(kernels.sequential_cotangent(lam, h, initial, _one_mask(masks), cotangent, **how))
    return _cotangent_by_parts(lam, h, initial, masks, cotangent, method=method, **how)


def _shape_of(x) -> ShapedArray:
    return ShapedArray(x.shape, x.dtype)


def _define(primitive: Primitive, evaluate: Callable, shape: Callable) -> None:
    @functools.cache
    def compiled(**params):
        return jax.jit(functools.partial(primitive.bind, **params))

    primitive.def_impl(lambda *operands, **params: compiled(**params)(*operands))
    primitive.def_abstract_eval(shape)
    several = primitive.multiple_results
    for platform, auto in (("cpu", Method.SEQUENTIAL), (None, Method.ASSOCIATIVE)):
        rule = mlir.lower_fun(functools.partial(evaluate, auto), multiple_results=several)
        mlir.register_lowering(primitive, rule, platform=platform)


_define(_recurrence_p, _evaluate_recurrence, lambda lam, b, *_, **__: _shape_of(b))
_define(_tangent_p, _evaluate_tangent, lambda lam, h, *_, **__: _shape_of(h))
_define(
    _cotangent_p,
    _evaluate_cotangent,
    lambda lam, h, initial, *_, **__: [_shape_of(lam), _shape_of(h), _shape_of(initial)],
)


# Derivatives ----------------------------------------------------------------------------------------------


def _instantiated(tangent: Any, primal: Array) -> Array:
    return jnp.zeros_like(primal) if type(tangent) is ad.Zero else tangent


def _recurrence_jvp(primals, tangents, **params):
    lam, b, initial, *masks = primals
    h = _recurrence_p.bind(*primals, **params)
    lam_tangent, b_tangent, initial_tangent = tangents[:3]
    source, start = _instantiated(b_tangent, b), _instantiated(initial_tangent, initial)
    if type(lam_tangent) is ad.Zero:
        return h, _recurrence_p.bind(lam, source, start, *masks, **params)
    return h, _tangent_p.bind(lam, h, initial, *masks, lam_tangent, source, start, **params)


def _recurrence_transpose(cotangent, lam, b, initial, *masks, **params):
    if type(cotangent) is ad.Zero:
        return [None] * (3 + len(masks))
    shape = initial.aval if ad.is_undefined_primal(initial) else initial
    zero = jnp.zeros(shape.shape, shape.dtype)
    cotangents = _transposed(lam, cotangent, zero, _one_mask(masks), **params)
    wanted = [c if ad.is_undefined_primal(x) else None for c, x in zip(cotangents, (b, initial), strict=True)]
    return [None, *wanted, *[None] * len(masks)]


def _jvp_by_parts(primitive: Primitive, by_parts: Callable, linear: int):
    """The derivative of `tangent` and `cotangent`: that of what they mean."""

    def jvp(primals, tangents, **params):
        masks = primals[3:-linear]
        moving, primal_moving = (*tangents[:3], *tangents[-linear:]), (*primals[:3], *primals[-linear:])

        def function(lam, h, initial, *last):
            return by_parts(lam, h, initial, masks, *last, **params)

        out = primitive.bind(*primals, **params)
        changes = tuple(map(_instantiated, moving, primal_moving))
        return out, jax.jvp(function, primal_moving, changes)[1]

    ad.primitive_jvps[primitive] = jvp


def _tangent_transpose(cotangent, lam, h, initial, *rest, **params):
    masks, linear = rest[:-3], rest[-3:]
    if type(cotangent) is ad.Zero:
        return [None] * (6 + len(masks))
    cotangents = _cotangent_p.bind(lam, h, initial, *masks, cotangent, **params)
    wanted = [c if ad.is_undefined_primal(x) else None for c, x in zip(cotangents, linear, strict=True)]
    return [None, None, None, *[None] * len(masks), *wanted]


def _cotangent_transpose(cotangents, lam, h, initial, *rest, **params):
    masks = rest[:-1]
    given = [_instantiated(c, x) for c, x in zip(cotangents, (lam, h, initial), strict=True)]
    return [None] * (3 + len(masks)) + [_tangent_p.bind(lam, h, initial, *masks, *given, **params)]


ad.primitive_jvps[_recurrence_p] = _recurrence_jvp
ad.primitive_transposes[_recurrence_p] = _recurrence_transpose
_jvp_by_parts(_tangent_p, _tangent_by_parts, 3)
ad.primitive_transposes[_tangent_p] = _tangent_transpose
_jvp_by_parts(_cotangent_p, _cotangent_by_parts, 1)
ad.primitive_transposes[_cotangent_p] = _cotangent_transpose


# Lanes ----------------------------------------------------------------------------------------------------


def _grouped(operands, dims, size: int) -> list[Array]:
    """Operands whose leading axis is lanes x groups."""
    spread = []
    for x, dim in zip(operands, dims, strict=True):
        x = jnp.broadcast_to(x, (size, *x.shape)) if dim is None else jnp.moveaxis(x, dim, 0)
        spread.append(x.reshape(size * x.shape[1], *x.shape[2:]))
    return spread


def _batched(primitive: Primitive):
    def rule(operands, dims, **params):
        size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
        out = primitive.bind(*_grouped(operands, dims, size), **params)
        if primitive.multiple_results:
            return [x.reshape(size, -1, *x.shape[1:]) for x in out], [0] * len(out)
        return out.reshape(size, -1, *out.shape[1:]), 0

    batching.primitive_batchers[primitive] = rule


for _primitive in (_recurrence_p, _tangent_p, _cotangent_p):
    _batched(_primitive)
