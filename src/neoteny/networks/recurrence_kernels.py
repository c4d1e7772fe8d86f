"""Ways to evaluate the diagonal recurrence h_k = lam h_{k-1} + b_k: one function a way, all of equal meaning.

Shapes everywhere: lam (groups, state), b (groups, batch, length, state), initial (groups, batch, state), reset
(groups, batch, length) of bool or None; a group is a set of sequences with one lam, for instance a lane. With `reverse`
time runs from the last step to the first and `initial` is the state after the last. `associative` and `fft` are
parallel in time throughout; `sequential` reads and writes every number of the arrays once, in place. What the last
axis holds is said by `Numbers`; only `sequential` and its derivatives know planes.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Complex, Float, Inexact

LamArray = Inexact[Array, "groups state"]
Inputs = Inexact[Array, "groups batch length state"]
State = Inexact[Array, "groups batch state"]
Reset = Bool[Array, "groups batch length"] | None


class Numbers(enum.Enum):
    """How the last axis holds the numbers of the states.

    PLAIN: one entry each, real or complex. PLANES: complex numbers as real arrays of twice the size, the real parts of
    all states and then their imaginary parts, which is what a real matrix product reads and writes.
    """

    PLAIN = "plain"
    PLANES = "planes"

    def one_each(self, x: Array) -> Array:
        """As PLAIN."""
        return x if self is Numbers.PLAIN else as_complex(x)

    def restored(self, x: Array) -> Array:
        """Of what `one_each` gave."""
        return x if self is Numbers.PLAIN else as_planes(x)

    def opened(self, x: Array) -> Array:
        """What is computed with: planes have an axis of their own, (..., 2, state)."""
        return x if self is Numbers.PLAIN else x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)

    def closed(self, x: Array) -> Array:
        """Of what `opened` gave."""
        return x if self is Numbers.PLAIN else x.reshape(*x.shape[:-2], 2 * x.shape[-1])

    def adjoint(self, factor: Array) -> Array:
        """Of an opened factor: the one whose product is the transpose under JAX's pairing sum(g * x).

        Of complex arrays that is the factor itself. Planes are real, and there it is the conjugate.
        """
        return factor if self is Numbers.PLAIN else factor * _signs(1, -1, factor)

    def multiplier(self, factor: Array) -> Callable[[Array], Array]:
        """x -> factor x, both opened, both broadcast; what depends on the factor alone is computed now.

        The sum of two products of whole arrays, one with the planes exchanged: XLA makes one vectorised loop of it.
        """
        if self is Numbers.PLAIN:
            return lambda x: factor * x
        real, imaginary = factor[..., :1, :], factor[..., 1:, :]
        both, signed = jnp.concatenate((real, real), axis=-2), imaginary * _signs(-1, 1, factor)
        return lambda x: both * x + signed * jnp.flip(x, -2)

    def pairing(self, x: Array, y: Array) -> tuple[Array, ...]:
        """Terms whose sums give the sum of adjoint(x) y by `paired`: as many as can be summed without a slice."""
        return (x * y,) if self is Numbers.PLAIN else (x * y, x * jnp.flip(y, -2))

    def paired(self, sums: tuple[Array, ...]) -> Array:
        """Sums of the terms of `pairing` as the numbers they are, opened."""
        if self is Numbers.PLAIN:
            return sums[0]
        crossed = sums[1] * _signs(1, -1, sums[1])
        return jnp.stack((jnp.sum(sums[0], axis=-2), jnp.sum(crossed, axis=-2)), axis=-2)


def _signs(real: float, imaginary: float, like: Array) -> Array:
    return jnp.array([[real], [imaginary]], like.dtype)


def as_complex(planes: Float[Array, "*shape planes"]) -> Complex[Array, "*shape state"]:
    """Complex numbers of their real parts and then imaginary parts along the last axis."""
    return lax.complex(*jnp.split(planes, 2, axis=-1))


def as_planes(numbers: Complex[Array, "*shape state"]) -> Float[Array, "*shape planes"]:
    """Real parts and then imaginary parts along the last axis."""
    return jnp.concatenate((numbers.real, numbers.imag), axis=-1)


CHUNKS = 16
"""Stretches of time that `chunked` and `blocked` work on at once."""

TILE = 64
"""Channels a program of the Pallas kernel holds: a power of two, as Triton asks for."""


STEPS = 8
"""Steps that `sequential` and its derivatives read at once."""


def _at(x: Array, index) -> Array:
    return lax.dynamic_index_in_dim(x, index, 2, keepdims=False, allow_negative_indices=False)


def _put(x: Array, value: Array, index) -> Array:
    return lax.dynamic_update_index_in_dim(x, value, index, 2, allow_negative_indices=False)


def _stretch(x: Array, start, steps: int) -> Array:
    return lax.dynamic_slice_in_dim(x, start, steps, 2, allow_negative_indices=False)


def _unless(reset: Reset, index, value: Array) -> Array:
    """`value` (groups, batch, ...), 0 where the step at `index` is a reset. A product would keep NaN alive."""
    if reset is None:
        return value
    cut = jnp.expand_dims(_at(reset, index), tuple(range(2, value.ndim)))
    return jnp.where(cut, jnp.zeros_like(value), value)


def previous(h: Inputs, initial: State, reset: Reset, *, reverse: bool) -> Inputs:
    """The state that enters every step: h_{k-1}, `initial` at the first, 0 at a reset."""
    pieces = (h[:, :, 1:], initial[:, :, None]) if reverse else (initial[:, :, None], h[:, :, :-1])
    entering = jnp.concatenate(pieces, axis=2)
    return entering if reset is None else jnp.where(reset[..., None], jnp.zeros_like(entering), entering)


def leaving(reset: Reset, *, reverse: bool) -> Reset:
    """The resets of the transposed recurrence: where nothing of a step's state enters the next."""
    if reset is None:
        return None
    none = jnp.zeros_like(reset[:, :, :1])
    pieces = (none, reset[:, :, :-1]) if reverse else (reset[:, :, 1:], none)
    return jnp.concatenate(pieces, axis=2)


# One step after another -----------------------------------------------------------------------------------
#
# The loops overwrite their input, a stretch of STEPS at a time: a stretch is copied out, then its steps are written
# over it one by one. Nothing else reads the array, so that XLA needs no copy of it: neither a second array nor, at
# every step, the whole of this one, which is what reading single steps of the overwritten array cost (3 s instead of
# 9 ms for both passes). A stretch of a sequence is also one piece of memory, which single steps of a batch are not.

Carry = TypeVar("Carry", bound=tuple)


def _in_stretches(
    length: int, body: Callable[[Array | int, int, bool, Carry], Carry], carry: Carry, *, backwards: bool
) -> Carry:
    """`body(start, steps, last, carry)` for all stretches in order, or `backwards`.

    The last has up to STEPS + 1 steps, and more than one if there are: XLA writes out a loop of one, and then copies.
    """
    whole = max(0, length - 2) // STEPS
    rest = length - whole * STEPS

    def stretch(count, carry):
        return body(length - STEPS * (count + 1) if backwards else STEPS * count, STEPS, False, carry)

    if whole:
        carry = lax.fori_loop(0, whole, stretch, carry)
    return body(0 if backwards else whole * STEPS, rest, True, carry)


def _within(steps: int, step: Callable[[Array, Carry], Carry], carry: Carry, *, backwards: bool) -> Carry:
    """`step(index, carry)` for the steps of a stretch."""
    return lax.fori_loop(0, steps, lambda count, c: step(steps - 1 - count if backwards else count, c), carry)


def sequential(
    lam: LamArray, b: Inputs, initial: State, reset: Reset, *, reverse: bool, numbers: Numbers = Numbers.PLAIN
) -> Inputs:
    """Step by step."""
    lam, b, initial = (numbers.opened(x) for x in (lam, b, initial))
    passed_on = numbers.multiplier(lam[:, None])

    def stretch(start, steps, last, carry):
        array = carry[1]
        inputs = _stretch(array, start, steps)
        cuts = None if reset is None else _stretch(reset, start, steps)

        def step(k, carry):
            h, array = carry
            h = passed_on(_unless(cuts, k, h)) + _at(inputs, k)
            return h, _put(array, h, start + k)

        return _within(steps, step, carry, backwards=reverse)

    return numbers.closed(_in_stretches(b.shape[2], stretch, (initial, b), backwards=reverse)[1])


def sequential_tangent(
    lam: LamArray,
    h: Inputs,
    initial: State,
    reset: Reset,
    lam_tangent: LamArray,
    b_tangent: Inputs,
    initial_tangent: State,
    *,
    reverse: bool,
    numbers: Numbers = Numbers.PLAIN,
) -> Inputs:
    """t_k = lam t_{k-1} + dlam h_{k-1} + db_k in one pass."""
    passed_on, changed = (numbers.multiplier(numbers.opened(x)[:, None]) for x in (lam, lam_tangent))
    h, *begin = (numbers.opened(x) for x in (h, initial_tangent, initial, b_tangent))

    def stretch(start, steps, last, carry):
        array = carry[2]
        inputs, states = _stretch(array, start, steps), _stretch(h, start, steps)
        cuts = None if reset is None else _stretch(reset, start, steps)

        def step(k, carry):
            t, before, array = carry
            t = passed_on(_unless(cuts, k, t)) + changed(_unless(cuts, k, before)) + _at(inputs, k)
            return t, _at(states, k), _put(array, t, start + k)

        return _within(steps, step, carry, backwards=reverse)

    return numbers.closed(_in_stretches(h.shape[2], stretch, tuple(begin), backwards=reverse)[2])


def sequential_cotangent(
    lam: LamArray,
    h: Inputs,
    initial: State,
    reset: Reset,
    cotangent: Inputs,
    *,
    reverse: bool,
    numbers: Numbers = Numbers.PLAIN,
) -> tuple[LamArray, Inputs, State]:
    """The transpose of `sequential_tangent` in one pass: d_k = lam d_{k+1} + g_k, and the sum of h_{k-1} d_k on
    the way, with the adjoints of lam and h where `Numbers` has others.
    """
    lam, h, initial, cotangent = (numbers.opened(x) for x in (lam, h, initial, cotangent))
    passed_on = numbers.multiplier(numbers.adjoint(lam)[:, None])

    def stretch(start, steps, last, carry):
        array = carry[2]
        inputs = _stretch(array, start, steps)
        if last:  # where the recurrence itself begins
            entering = previous(_stretch(h, start, steps), initial, None, reverse=reverse)
        else:
            entering = _stretch(h, start + 1 if reverse else start - 1, steps)
        cuts = None if reset is None else _stretch(reset, start, steps)

        def step(k, carry):
            d, sums, array = carry
            d = passed_on(d) + _at(inputs, k)
            terms = numbers.pairing(_unless(cuts, k, _at(entering, k)), d)
            sums = tuple(total + term for total, term in zip(sums, terms, strict=True))
            return _unless(cuts, k, d), sums, _put(array, d, start + k)

        return _within(steps, step, carry, backwards=not reverse)

    zero = jnp.zeros_like(initial)
    begin = zero, tuple(jnp.zeros_like(term) for term in numbers.pairing(zero, zero)), cotangent
    d, sums, array = _in_stretches(h.shape[2], stretch, begin, backwards=not reverse)
    total = numbers.paired(tuple(jnp.sum(each, axis=1) for each in sums))
    return numbers.closed(total), numbers.closed(array), numbers.closed(passed_on(d))


# Parallel in time ----------------------------------------------------------------------------------------


def associative(lam: LamArray, b: Inputs, initial: State, reset: Reset, *, reverse: bool) -> Inputs:
    """`jax.lax.associative_scan` of the pairs (a, b) with (a1, b1) o (a2, b2) = (a2 a1, a2 b1 + b2).

    The factors are shared by the batch unless there are resets. Then a pair also says whether it holds a reset, and
    what came before is left out by selection: multiplied by 0, NaN would stay.
    """
    if reset is None:
        factors = jnp.broadcast_to(lam[:, None, None], (lam.shape[0], 1, *b.shape[2:]))

        def combine(first, second):
            return second[0] * first[0], second[0] * first[1] + second[1]

        products, h = lax.associative_scan(combine, (factors, b), axis=2, reverse=reverse)
        return h + products * initial[:, :, None]

    def combine_unless_cut(first, second):
        cut, carried = second[0], second[1] * first[2]
        return first[0] | cut, second[1] * first[1], jnp.where(cut, 0, carried) + second[2]

    pairs = (reset[..., None], jnp.broadcast_to(lam[:, None, None], b.shape), b)
    cut, products, h = lax.associative_scan(combine_unless_cut, pairs, axis=2, reverse=reverse)
    return h + jnp.where(cut, 0, products * initial[:, :, None])


def fft(lam: LamArray, b: Inputs, initial: State, reset: Reset, *, reverse: bool) -> Inputs:
    """Causal convolution with lam^k by a Fourier transform of twice the length. ValueError with resets."""
    if reset is not None:
        raise ValueError("a Fourier transform cannot reset the state; use method='auto'")
    if reverse:
        return jnp.flip(fft(lam, jnp.flip(b, 2), initial, None, reverse=False), 2)
    kernel = powers(lam, b.shape[2] + 1)
    h = causal_convolution(kernel[:, None, :-1], b)
    return h + kernel[:, None, 1:] * initial[:, :, None]


def powers(lam: Inexact[Array, "*shape state"], count: int) -> Inexact[Array, "*shape count state"]:
    """lam^0 .. lam^(count - 1), by repeated squaring: 0^0 = 1, and no logarithm of 0."""
    result, base = jnp.ones((*lam.shape[:-1], 1, lam.shape[-1]), lam.dtype), lam[..., None, :]
    while result.shape[-2] < count:
        result = jnp.concatenate((result, result * base), axis=-2)
        base = base * base
    return result[..., :count, :]


def causal_convolution(kernel: Inexact[Array, ...], u: Inexact[Array, ...]) -> Inexact[Array, ...]:
    """y_k = sum_j kernel_j u_{k-j} along the second to last axis, as long in both; other axes broadcast.

    Padded to twice the length, so that nothing wraps.
    """
    length = u.shape[-2]
    if jnp.iscomplexobj(kernel) or jnp.iscomplexobj(u):
        forward, inverse = jnp.fft.fft, jnp.fft.ifft
    else:
        forward, inverse = jnp.fft.rfft, jnp.fft.irfft
    size = 2 * length
    y = inverse(forward(kernel, size, axis=-2) * forward(u, size, axis=-2), size, axis=-2)
    return y[..., :length, :].astype(jnp.result_type(kernel, u))


# Stretches of time side by side --------------------------------------------------------------------------


def _in_chunks(run, lam: LamArray, b: Inputs, initial: State, reset: Reset, *, reverse: bool, chunks: int) -> Inputs:
    """Run stretches of time side by side: their last states from zero first, then all states from the right start.

    `run(lam, b, initial, reset, last)` evaluates stretches that are part of the batch; `last` asks for the last state
    only.
    """
    if reverse:
        flipped = None if reset is None else jnp.flip(reset, 2)
        h = _in_chunks(run, lam, jnp.flip(b, 2), initial, flipped, reverse=False, chunks=chunks)
        return jnp.flip(h, 2)
    groups, batch, length, state = b.shape
    chunks = min(chunks, length)
    size = -(-length // chunks)
    chunks = -(-length // size)
    padding = chunks * size - length

    def cut(x):  # (groups, batch, length, ...) to (groups, batch chunks, size, ...)
        x = jnp.pad(x, [(0, 0), (0, 0), (0, padding), *[(0, 0)] * (x.ndim - 3)])
        return x.reshape(groups, batch * chunks, size, *x.shape[3:])

    pieces, cuts = cut(b), None if reset is None else cut(reset)
    ends = run(lam, pieces, jnp.zeros((groups, batch * chunks, state), b.dtype), cuts, last=True)
    # Every stretch but those with a reset passes on lam^size of the state it started from.
    passes = None if cuts is None else jnp.any(cuts, axis=2).reshape(groups, batch, chunks)
    whole = sequential(
        powers(lam, size + 1)[:, -1], ends.reshape(groups, batch, chunks, state), initial, passes, reverse=False
    )
    starts = jnp.concatenate((initial[:, :, None], whole[:, :, :-1]), axis=2)
    h = run(lam, pieces, starts.reshape(groups, batch * chunks, state), cuts, last=False)
    return h.reshape(groups, batch, chunks * size, state)[:, :, :length]


def _steps(lam: LamArray, b: Inputs, initial: State, reset: Reset, *, last: bool) -> Array:
    if not last:
        return sequential(lam, b, initial, reset, reverse=False)

    def step(k, h):
        return lam[:, None] * _unless(reset, k, h) + _at(b, k)

    return lax.fori_loop(0, b.shape[2], step, initial)


def chunked(lam: LamArray, b: Inputs, initial: State, reset: Reset, *, reverse: bool, chunks: int = CHUNKS) -> Inputs:
    """`chunks` stretches side by side: length / chunks steps of a larger batch, twice."""
    return _in_chunks(_steps, lam, b, initial, reset, reverse=reverse, chunks=chunks)


# A kernel for GPUs ---------------------------------------------------------------------------------------


def pallas_chunked(
    lam: LamArray,
    b: Inputs,
    initial: State,
    reset: Reset,
    *,
    reverse: bool,
    chunks: int = CHUNKS,
    tile: int = TILE,
    interpret: bool = False,
) -> Inputs:
    """`chunked` with one Pallas program for every group, sequence, stretch and tile of channels.

    A program holds its state in registers and walks through its stretch. Complex numbers go in as two real planes,
    since Triton has no complex type. `interpret` runs the kernel as ordinary JAX, on any platform.
    """
    run = functools.partial(_pallas_steps, tile=tile, interpret=interpret)
    return _in_chunks(run, lam, b, initial, reset, reverse=reverse, chunks=chunks)


def _pallas_steps(
    lam: LamArray, b: Inputs, initial: State, reset: Reset, *, last: bool, tile: int, interpret: bool
) -> Array:
    from jax.experimental import pallas  # 0.3 s that only this kernel should cost
    from jax.experimental.pallas import triton

    groups, batch, length, state = b.shape
    tiles = -(-state // tile)
    width = tiles * tile
    is_complex = jnp.iscomplexobj(b)

    def planes(x):
        x = jnp.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, width - state)])
        return (x.real, x.imag) if is_complex else (x,)

    inputs = (*planes(lam), *planes(b), *planes(initial))
    # Named by what they index: group, sequence, tile.
    of_lam = pallas.BlockSpec((1, tile), lambda g, s, t: (g, t))
    of_b = pallas.BlockSpec((1, 1, length, tile), lambda g, s, t: (g, s, 0, t))
    of_state = pallas.BlockSpec((1, 1, tile), lambda g, s, t: (g, s, t))
    of_reset = pallas.BlockSpec((1, 1, length), lambda g, s, t: (g, s, 0))
    parts = 2 if is_complex else 1
    specs = [of_lam] * parts + [of_b] * parts + [of_state] * parts
    if reset is not None:
        inputs, specs = (*inputs, reset.astype(jnp.int32)), [*specs, of_reset]
    real = inputs[0].dtype
    shape = (groups, batch, width) if last else (groups, batch, length, width)
    outputs = pallas.pallas_call(
        functools.partial(_walk, length=length, parts=parts, resets=reset is not None, last=last),
        out_shape=[jax.ShapeDtypeStruct(shape, real)] * parts,
        in_specs=specs,
        out_specs=[of_state if last else of_b] * parts,
        grid=(groups, batch, tiles),
        # Also says that it is Triton that compiles the kernel: one thread a channel.
        compiler_params=triton.CompilerParams(num_warps=max(1, tile // 32)),
        interpret=interpret,
    )(*inputs)
    h = lax.complex(*outputs) if is_complex else outputs[0]
    return h[..., :state]


def _walk(*refs, length: int, parts: int, resets: bool, last: bool) -> None:
    """The Pallas program: one tile of channels of one sequence through all its steps."""
    lam, b, initial = (refs[parts * n : parts * (n + 1)] for n in range(3))
    outputs = refs[3 * parts + resets :]
    factor = [ref[0] for ref in lam]

    def step(k, h):
        if resets:
            cut = refs[3 * parts][0, 0, k] != 0
            h = [jnp.where(cut, jnp.zeros_like(plane), plane) for plane in h]
        x = [ref[0, 0, k] for ref in b]
        if parts == 1:
            h = [factor[0] * h[0] + x[0]]
        else:
            h = [factor[0] * h[0] - factor[1] * h[1] + x[0], factor[0] * h[1] + factor[1] * h[0] + x[1]]
        if not last:
            for ref, plane in zip(outputs, h, strict=True):
                ref[0, 0, k] = plane
        return h

    h = lax.fori_loop(0, length, step, [ref[0, 0] for ref in initial])
    if last:
        for ref, plane in zip(outputs, h, strict=True):
            ref[0, 0] = plane
