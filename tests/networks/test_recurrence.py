"""The recurrence against a complex128 loop in NumPy and its gradients against sums written out."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neoteny.networks.recurrence import Method, diagonal_recurrence, planar_recurrence, recurrence_step
from neoteny.networks.recurrence_kernels import as_complex, as_planes
from neoteny.training.ledger import count_flops

HERE = [method for method in Method if method is not Method.PALLAS]
RESETTING = [method for method in HERE if method is not Method.FFT]


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def loop(lam, b, initial=None, reset=None, reverse=False):
    """The definition."""
    h = np.zeros_like(b)
    state = np.zeros_like(b[:, 0]) if initial is None else initial
    order = range(b.shape[1])
    for k in reversed(order) if reverse else order:
        for row in range(b.shape[0]):
            cut = reset is not None and reset[row, k]
            h[row, k] = b[row, k] if cut else lam * state[row] + b[row, k]
        state = h[:, k]
    return h


def loop_gradients(lam, b, initial, reset, reverse, weights):
    """Gradients of sum(weights * h), no conjugates (the bilinear pairing JAX uses), by the transposed loop."""
    h = loop(lam, b, initial, reset, reverse)
    d, into, total = np.zeros_like(b), np.zeros_like(initial), np.zeros_like(lam)
    order = list(range(b.shape[1]))
    order = order[::-1] if reverse else order
    for row in range(b.shape[0]):
        passed = np.zeros_like(lam)
        for place in range(len(order) - 1, -1, -1):
            k = order[place]
            d[row, k] = weights[row, k] + passed
            if reset is not None and reset[row, k]:
                passed = np.zeros_like(lam)
            else:
                total += (initial[row] if place == 0 else h[row, order[place - 1]]) * d[row, k]
                passed = lam * d[row, k]
        into[row] = passed
    return total, d, into


def problem(batch, length, state, *, is_complex=True, modulus=0.9, seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        real = rng.normal(size=shape)
        return real + 1j * rng.normal(size=shape) if is_complex else real

    lam = draw(state)
    lam *= modulus / np.abs(lam)
    return lam, draw(batch, length, state), draw(batch, state), rng.random((batch, length)) < 0.3


@pytest.mark.parametrize("method", HERE)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 3), (2, 37, 5)])
def test_values_and_gradients_equal_the_loop(double, method, reverse, is_complex, size):
    lam, b, initial, reset = problem(*size, is_complex=is_complex)
    weights = problem(*size, is_complex=is_complex, seed=1)[1]
    for mask in (None,) if method is Method.FFT else (None, reset):

        def value(lam, b, initial, mask=mask):
            h = diagonal_recurrence(lam, b, initial=initial, reset=mask, reverse=reverse, method=method)
            return jnp.sum(weights * h), h

        # Holomorphic differentiation is the bilinear pairing itself.
        gradient = jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True, holomorphic=is_complex))
        gradients, h = gradient(lam, b, initial)
        np.testing.assert_allclose(h, loop(lam, b, initial, mask, reverse), rtol=0, atol=1e-12)
        for ours, theirs in zip(gradients, loop_gradients(lam, b, initial, mask, reverse, weights), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", HERE)
@pytest.mark.parametrize("modulus", [0.999, 0.9999])
def test_long_sequences_near_the_unit_circle_in_single_precision(method, modulus):
    lam, b, initial, _ = problem(1, 4096, 3, modulus=modulus)
    lam = lam.astype(np.complex64)  # what the recurrence is given, so that rounding of lam is not held against it
    b, initial = b.astype(np.complex64), initial.astype(np.complex64)
    expected = loop(lam.astype(complex), b.astype(complex), initial.astype(complex))
    weights = problem(1, 4096, 3, seed=2)[1].astype(np.complex64)
    expected_gradients = loop_gradients(
        *(x.astype(complex) for x in (lam, b, initial)), None, False, weights.astype(complex)
    )

    def value(lam, b, initial):
        h = diagonal_recurrence(lam, b, initial=initial, method=method)
        return jnp.sum(weights * h), h

    gradients, h = jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True, holomorphic=True))(lam, b, initial)
    for ours, theirs in zip((h, *gradients), (expected, *expected_gradients), strict=True):
        assert np.max(np.abs(ours - theirs)) <= 1e-4 * np.max(np.abs(theirs))


@pytest.mark.parametrize("method", HERE)
@pytest.mark.parametrize("reverse", [False, True])
def test_long_sequences_near_the_unit_circle_in_double_precision(double, method, reverse):
    lam, b, initial, _ = problem(1, 4096, 3, modulus=0.9999)
    weights = problem(1, 4096, 3, seed=2)[1]
    reset = np.zeros((1, 4096), bool)
    reset[0, 3000] = True
    for mask in (None,) if method is Method.FFT else (None, reset):

        def value(lam, b, initial, mask=mask):
            h = diagonal_recurrence(lam, b, initial=initial, reset=mask, reverse=reverse, method=method)
            return jnp.sum(weights * h), h

        gradients, h = jax.jit(jax.grad(value, (0, 1, 2), has_aux=True, holomorphic=True))(lam, b, initial)
        expected = (
            loop(lam, b, initial, mask, reverse),
            *loop_gradients(lam, b, initial, mask, reverse, weights),
        )
        for ours, theirs in zip((h, *gradients), expected, strict=True):
            assert np.max(np.abs(ours - theirs)) <= 1e-10 * np.max(np.abs(theirs))


def reference(lam, b, initial, reset, reverse):
    """The recurrence in elementary JAX, to be differentiated automatically."""
    order = range(b.shape[1])
    h, states = initial, {}
    for k in reversed(order) if reverse else order:
        h = jnp.where(reset[:, k, None], 0, lam * h) + b[:, k]
        states[k] = h
    return jnp.stack([states[k] for k in order], axis=1)


@pytest.mark.parametrize("method", [Method.SEQUENTIAL, Method.ASSOCIATIVE])
@pytest.mark.parametrize("reverse", [False, True])
def test_forward_mode_and_second_derivatives_of_every_mixture(double, method, reverse):
    lam, b, initial, reset = problem(2, 5, 2)
    reset[:, [0, -1]] = False  # so that the initial state matters
    weights = problem(2, 5, 2, seed=1)[1]

    def ours(lam, b, initial):
        return diagonal_recurrence(lam, b, initial=initial, reset=reset, reverse=reverse, method=method)

    def theirs(lam, b, initial):
        return reference(lam, b, initial, reset, reverse)

    def results(function):
        def value(lam, b, initial):
            h = function(lam, b, initial)
            return jnp.sum(weights * h * h * h)

        primals, tangents = (lam, b, initial), problem(2, 5, 2, seed=3)[:3]
        derivative = jax.grad(value, argnums=(0, 1, 2), holomorphic=True)

        def along(*primals):
            return sum(jnp.sum(t * g) for t, g in zip(tangents, derivative(*primals), strict=True))

        return {
            "forward": jax.jvp(function, primals, tangents),
            "forward over reverse": jax.jvp(derivative, primals, tangents),
            "reverse over reverse": jax.grad(along, argnums=(0, 1, 2), holomorphic=True)(*primals),
            "reverse over forward": jax.grad(
                lambda *p: jax.jvp(value, p, tangents)[1], argnums=(0, 1, 2), holomorphic=True
            )(*primals),
            "third": jax.jvp(
                jax.grad(lambda *p: jax.jvp(value, p, tangents)[1], argnums=(0, 1, 2), holomorphic=True),
                primals,
                tangents,
            ),
        }

    got, expected = (jax.jit(lambda f=f: results(f))() for f in (ours, theirs))
    for name in expected:
        pairs = zip(jax.tree.leaves(got[name]), jax.tree.leaves(expected[name]), strict=True)
        for a, e in pairs:
            np.testing.assert_allclose(a, e, rtol=1e-11, atol=1e-11, err_msg=name)


def scan_derivatives(lam, b, initial, *, lanes=False, method=Method.AUTO):
    """First and second derivatives, compiled, alone or in lanes: of the recurrence, and of a differentiated scan."""
    weights = problem(*b.shape, seed=1)[1]

    def scan(lam, b, initial):
        def step(h, x):
            h = lam * h + x
            return h, h

        return jnp.swapaxes(jax.lax.scan(step, initial, jnp.swapaxes(b, 0, 1))[1], 0, 1)

    def derivatives(function):
        def value(lam, b, initial):
            h = function(lam, b, initial)
            return jnp.sum(weights * h * h)

        first = jax.grad(value, (0, 1, 2), holomorphic=True)

        def squares(*arguments):
            return sum(jnp.sum(g * g) for g in first(*arguments))

        def both(*arguments):
            return first(*arguments), jax.grad(squares, (0, 1, 2), holomorphic=True)(*arguments)

        return jax.jit(jax.vmap(both, (0, None, 0)) if lanes else both)

    arguments = (np.stack([lam, 0.5 * lam]), b, np.stack([initial, -initial])) if lanes else (lam, b, initial)
    ours = derivatives(lambda lam, b, initial: diagonal_recurrence(lam, b, initial=initial, method=method))(*arguments)
    return zip(jax.tree.leaves(ours), jax.tree.leaves(derivatives(scan)(*arguments)), strict=True)


@pytest.mark.parametrize("lanes", [False, True])
def test_derivatives_are_those_of_a_differentiated_scan(double, lanes):
    """Over several stretches of the sequential loop."""
    lam, b, initial, _ = problem(2, 37, 3)
    for a, e in scan_derivatives(lam, b, initial, lanes=lanes):
        assert np.max(np.abs(a - e)) <= 1e-12 * np.max(np.abs(e))


@pytest.mark.parametrize("method", HERE)
def test_second_derivatives_of_long_sequences_near_the_unit_circle(double, method):
    lam, b, initial, _ = problem(1, 4096, 2, modulus=0.9999)
    for a, e in scan_derivatives(lam, b, initial, method=method):
        assert np.max(np.abs(a - e)) <= 1e-10 * np.max(np.abs(e))


def test_derivative_by_one_argument_alone(double):
    lam, b, initial, reset = problem(2, 6, 3)
    reset[:, 0] = False
    weights = problem(2, 6, 3, seed=1)[1]
    expected = loop_gradients(lam, b, initial, reset, False, weights)
    for which in range(3):

        def value(*arguments):
            lam, b, initial = arguments
            return jnp.sum(weights * diagonal_recurrence(lam, b, initial=initial, reset=reset))

        gradient = jax.grad(value, argnums=which, holomorphic=True)(lam, b, initial)
        np.testing.assert_allclose(gradient, expected[which], rtol=0, atol=1e-12)


def test_linear_in_what_enters_and_transposed_exactly(double):
    lam, b, _, reset = problem(2, 9, 3)
    c = problem(2, 9, 3, seed=5)[1]
    transposed = jax.linear_transpose(lambda b: diagonal_recurrence(lam, b, reset=reset), b)
    h = diagonal_recurrence(lam, b, reset=reset)
    np.testing.assert_allclose(jnp.sum(c * h), jnp.sum(transposed(jnp.asarray(c))[0] * b), rtol=1e-13)
    np.testing.assert_allclose(
        diagonal_recurrence(lam, 2 * b + c, reset=reset), 2 * h + diagonal_recurrence(lam, c, reset=reset), atol=1e-12
    )


@pytest.mark.parametrize("method", HERE)
def test_closed_forms(double, method):
    lam = np.array([0.5, 0.99j, -0.999, 0.0])
    constant = np.broadcast_to([1.0, 2.0, 3.0, 4.0], (1, 33, 4))
    k = np.arange(33)[:, None]
    h = diagonal_recurrence(lam, constant, method=method)
    np.testing.assert_allclose(h[0], constant[0] * (1 - lam ** (k + 1)) / (1 - lam), atol=1e-11)
    impulse = np.zeros((1, 33, 4))
    impulse[0, 0] = 1
    np.testing.assert_allclose(diagonal_recurrence(lam, impulse, method=method)[0], lam**k, atol=1e-12)
    started = diagonal_recurrence(lam, 0 * impulse, initial=np.ones((1, 4)), method=method)
    np.testing.assert_allclose(started[0], lam ** (k + 1), atol=1e-12)
    later = diagonal_recurrence(lam, np.roll(impulse, 5, axis=1), method=method)[0]
    np.testing.assert_allclose(later, np.concatenate([np.zeros((5, 4)), (lam**k)[:-5]]), atol=1e-12)


def test_the_real_block_form_is_the_complex_one(double):
    lam, b, _, _ = problem(1, 20, 1)
    block = np.array([[lam[0].real, -lam[0].imag], [lam[0].imag, lam[0].real]])
    state, states = np.zeros(2), []
    for x in b[0, :, 0]:
        state = block @ state + [x.real, x.imag]
        states.append(state[0] + 1j * state[1])
    np.testing.assert_allclose(diagonal_recurrence(lam, b)[0, :, 0], states, atol=1e-13)


@pytest.mark.parametrize("method", RESETTING)
@pytest.mark.parametrize("reverse", [False, True])
def test_resets_are_sequences_cut_in_pieces_even_after_nan(double, method, reverse):
    lam, b, initial, _ = problem(1, 11, 3)
    reset = np.zeros((1, 11), bool)
    cuts = (4, 7)
    first = [cut - 1 for cut in cuts] if reverse else list(cuts)
    reset[0, first] = True
    spoilt = b.copy()
    spoilt[0, 0 if not reverse else -1] = np.nan
    pieces = np.split(b, cuts, axis=1)
    starts = [None, None, initial] if reverse else [initial, None, None]
    expected = [
        diagonal_recurrence(lam, piece, initial=start, reverse=reverse, method=method)
        for piece, start in zip(pieces, starts, strict=True)
    ]
    arguments = {"initial": initial, "reset": reset, "reverse": reverse, "method": method}
    whole = diagonal_recurrence(lam, b, **arguments)
    np.testing.assert_allclose(whole, jnp.concatenate(expected, axis=1), atol=1e-13)
    after = slice(None, cuts[1]) if reverse else slice(cuts[0], None)
    np.testing.assert_allclose(diagonal_recurrence(lam, spoilt, **arguments)[:, after], whole[:, after], atol=1e-13)

    by_input = jax.grad(lambda b: jnp.sum(jnp.real(diagonal_recurrence(lam, b, **arguments)[:, after])))
    np.testing.assert_allclose(by_input(spoilt)[:, after], by_input(b)[:, after], atol=1e-13)


@pytest.mark.parametrize("reverse", [False, True])
def test_carried_state_joins_pieces_to_one_pass(double, reverse):
    lam, b, initial, reset = problem(2, 12, 3)
    whole = diagonal_recurrence(lam, b, initial=initial, reset=reset, reverse=reverse)
    state, pieces = initial, {}
    for piece in (slice(7, 12), slice(0, 7)) if reverse else (slice(0, 7), slice(7, 12)):
        pieces[piece.start] = diagonal_recurrence(
            lam, b[:, piece], initial=state, reset=reset[:, piece], reverse=reverse
        )
        state = pieces[piece.start][:, 0 if reverse else -1]
    np.testing.assert_allclose(jnp.concatenate([pieces[0], pieces[7]], axis=1), whole, atol=1e-14)


def test_steps_equal_the_whole(double):
    lam, b, initial, reset = problem(2, 9, 3)
    h, states = initial, []
    for k in range(9):
        h = recurrence_step(lam, h, b[:, k], reset=reset[:, k])
        states.append(h)
    np.testing.assert_allclose(
        jnp.stack(states, 1), diagonal_recurrence(lam, b, initial=initial, reset=reset), atol=1e-14
    )


def test_backwards_is_forwards_on_the_reversed_sequence(double):
    lam, b, initial, _ = problem(2, 8, 3)
    flipped = diagonal_recurrence(lam, b[:, ::-1], initial=initial)[:, ::-1]
    np.testing.assert_allclose(diagonal_recurrence(lam, b, initial=initial, reverse=True), flipped, atol=1e-14)


@pytest.mark.parametrize("method", [Method.SEQUENTIAL, Method.ASSOCIATIVE])
def test_lanes_are_single_recurrences_whatever_is_mapped(double, method):
    lams, bs, initials, resets = (np.stack(x) for x in zip(*(problem(2, 6, 3, seed=s) for s in range(3)), strict=True))
    weights = problem(2, 6, 3, seed=9)[1]

    def gradients(lam, b, initial, reset):
        def value(lam, b, initial):
            h = diagonal_recurrence(lam, b, initial=initial, reset=reset, method=method)
            return jnp.sum(weights * h * h), h

        return jax.grad(value, (0, 1, 2), has_aux=True, holomorphic=True)(lam, b, initial)

    given = (lams, bs, initials, resets)
    for axes in [(0, 0, 0, 0), (0, None, None, None), (None, 0, None, None), (None, None, 0, 0), (None, None, None, 0)]:
        arguments = [x if axis == 0 else x[0] for x, axis in zip(given, axes, strict=True)]
        mapped = jax.vmap(gradients, axes)(*arguments)
        for lane in range(3):
            single = gradients(*(x[lane] if axis == 0 else x for x, axis in zip(arguments, axes, strict=True)))
            for a, e in zip(jax.tree.leaves(mapped), jax.tree.leaves(single), strict=True):
                np.testing.assert_allclose(a[lane], e, atol=1e-12)


def test_two_levels_of_lanes_and_an_inner_axis(double):
    lam, b, _, _ = problem(4, 6, 3)
    mapped = jax.vmap(jax.vmap(diagonal_recurrence, (None, 0)), (0, None), out_axes=2)(
        np.stack([lam, 2 * lam]), b[:, None]
    )
    np.testing.assert_allclose(mapped[:, :, 1, :, :][:, 0], diagonal_recurrence(2 * lam, b), atol=1e-12)


@settings(max_examples=8, deadline=None)
@given(length=st.integers(1, 40), chunks=st.integers(1, 50), reverse=st.booleans())
def test_any_number_of_stretches_gives_the_same(length, chunks, reverse):
    from neoteny.networks.recurrence_kernels import chunked

    with jax.enable_x64(True):
        lam, b, initial, reset = problem(2, length, 2, seed=length)
        h = chunked(lam[None], b[None], initial[None], reset[None], reverse=reverse, chunks=chunks)
        np.testing.assert_allclose(h[0], loop(lam, b, initial, reset, reverse), atol=1e-12)


@pytest.mark.parametrize("tile", [1, 2, 8])
def test_pallas_tiles_need_not_divide_the_state(double, tile):
    from neoteny.networks.recurrence_kernels import pallas_chunked

    lam, b, initial, reset = problem(2, 10, 3)
    h = pallas_chunked(
        lam[None], b[None], initial[None], reset[None], reverse=False, chunks=3, tile=tile, interpret=True
    )
    np.testing.assert_allclose(h[0], loop(lam, b, initial, reset), atol=1e-12)


def test_the_kernel_for_gpus_lowers_without_one():
    lam, b, initial = (jnp.asarray(x, jnp.complex64) for x in problem(2, 64, 5)[:3])
    reset = jnp.zeros((2, 64), bool)
    run = jax.jit(lambda *x: diagonal_recurrence(x[0], x[1], initial=x[2], reset=x[3], method="pallas"))
    unchecked = [jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
    exported = jax.export.export(run, platforms=["cuda"], disabled_checks=unchecked)(lam, b, initial, reset)
    assert exported.mlir_module().count("@__gpu$xla.gpu.triton") == 2


def test_platforms_choose_their_own_way():
    lam, b, _, _ = problem(2, 64, 5)
    lam, b = lam.astype(np.complex64), b.astype(np.complex64)
    modules = {
        platform: jax.export.export(jax.jit(diagonal_recurrence), platforms=[platform])(lam, b).mlir_module()
        for platform in ("cpu", "cuda")
    }
    assert "while" in modules["cpu"]
    assert "while" not in modules["cuda"]


@pytest.mark.parametrize("length", [40, 41, 45])
@pytest.mark.parametrize("recurrence", [diagonal_recurrence, planar_recurrence])
def test_the_loops_on_a_cpu_copy_no_whole_array(length, recurrence):
    lam, b, _, _ = (jnp.asarray(x, jnp.complex64) for x in problem(3, length, 5))
    b = as_planes(b) if recurrence is planar_recurrence else b

    def both(lam, b, g):
        h, pull = jax.vjp(functools.partial(recurrence, method="sequential"), lam, b)
        return h, *pull(g)

    program = jax.jit(both).lower(lam, b, b).compile().as_text()
    loops, entry = program.split("ENTRY ")
    whole = re.compile(rf"= \w+\[1,3,{length},{b.shape[-1]}\]\S* copy\(")
    assert "while(" in loops + entry
    assert not whole.findall(loops)
    assert len(whole.findall(entry)) <= 2  # b and g belong to the caller


def test_types():
    lam, b = jnp.array([0.5]), jnp.ones((1, 3, 1))
    assert diagonal_recurrence(lam, b).dtype == jnp.float32
    assert diagonal_recurrence(lam.astype(jnp.complex64), b).dtype == jnp.complex64
    assert diagonal_recurrence(lam, b.astype(jnp.complex64)).dtype == jnp.complex64
    assert diagonal_recurrence(lam, b.astype(jnp.int32)).dtype == jnp.float32
    assert diagonal_recurrence(lam, b, initial=jnp.ones((1, 1), jnp.complex64)).dtype == jnp.complex64
    assert diagonal_recurrence(lam, jnp.zeros((2, 0, 1))).shape == (2, 0, 1)


def test_operations_are_counted_alike_by_every_method():
    lam, b, _, _ = problem(2, 64, 5)
    for method in ("auto", "associative"):
        run = functools.partial(diagonal_recurrence, method=method)
        assert count_flops(run, lam.astype(np.complex64), b.astype(np.complex64)) == 8 * b.size
        assert count_flops(run, lam.real.astype(np.float32), b.real.astype(np.float32)) == 2 * b.size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lam": np.ones((1, 3))}, "lam must be"),
        ({"b": np.ones((2, 5, 4))}, "lam must be"),
        ({"b": np.ones((5, 3))}, "b \\(batch, length, state\\)"),
        ({"initial": np.ones(3)}, "initial must be"),
        ({"reset": np.ones((2, 4), bool)}, "reset must be"),
        ({"reset": np.ones((2, 5))}, "boolean"),
        ({"method": "quick"}, "method must be one of 'auto'"),
        ({"method": "fft", "reset": np.ones((2, 5), bool)}, "cannot reset"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"lam": np.ones(3), "b": np.ones((2, 5, 3))} | change
    with pytest.raises(ValueError, match=message):
        diagonal_recurrence(arguments.pop("lam"), arguments.pop("b"), **arguments)


# Planes ---------------------------------------------------------------------------------------------------


def by_complex(lam, b, **arguments):
    """What `planar_recurrence` means."""
    initial = arguments.pop("initial", None)
    start = None if initial is None else as_complex(initial)
    return as_planes(diagonal_recurrence(lam, as_complex(b), initial=start, method="associative", **arguments))


def planar_problem(*size):
    lam, b, initial, reset = problem(*size)
    return jnp.asarray(lam), as_planes(jnp.asarray(b)), as_planes(jnp.asarray(initial)), jnp.asarray(reset)


@pytest.mark.parametrize("method", HERE)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 9, 10, 37])
def test_planes_hold_the_same_numbers_and_derivatives(double, method, reverse, length):
    lam, b, initial, reset = planar_problem(2, length, 3)
    weights = planar_problem(2, length, 3)[1][::-1]
    for mask in (None,) if method is Method.FFT else (None, reset):

        def loss(recurrence, lam, b, initial, mask=mask, **how):
            h = recurrence(lam, b, initial=initial, reset=mask, reverse=reverse, **how)
            return jnp.sum(weights * h**2), h

        ours = jax.value_and_grad(functools.partial(loss, planar_recurrence, method=method), (0, 1, 2), has_aux=True)
        theirs = jax.value_and_grad(functools.partial(loss, by_complex), (0, 1, 2), has_aux=True)
        for mine, exact in zip(
            jax.tree.leaves(ours(lam, b, initial)), jax.tree.leaves(theirs(lam, b, initial)), strict=True
        ):
            np.testing.assert_allclose(mine, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["auto", "chunked"])
def test_forward_mode_and_second_derivatives_in_planes(double, method):
    lam, b, initial, reset = planar_problem(2, 11, 3)
    parts = as_planes(lam)

    def scalar(recurrence, parts, b, initial, **how):
        return jnp.sum(jnp.sin(recurrence(as_complex(parts), b, initial=initial, reset=reset, **how)))

    ours = functools.partial(scalar, planar_recurrence, method=method)
    theirs = functools.partial(scalar, by_complex)
    arguments = (parts, b, initial)
    directions = tuple(jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) for x in arguments)

    def all_derivatives(f):
        gradient = jax.grad(f, (0, 1, 2))
        forward_over_reverse = jax.jvp(gradient, arguments, directions)
        reverse_over_forward = jax.grad(lambda *x: jax.jvp(f, x, directions)[1], (0, 1, 2))(*arguments)
        reverse_over_reverse = jax.vjp(gradient, *arguments)[1](directions)
        return jax.jvp(f, arguments, directions), forward_over_reverse, reverse_over_forward, reverse_over_reverse

    for mine, exact in zip(
        jax.tree.leaves(all_derivatives(ours)), jax.tree.leaves(all_derivatives(theirs)), strict=True
    ):
        np.testing.assert_allclose(mine, exact, rtol=1e-9, atol=1e-11)


def test_lanes_in_planes_are_single_recurrences(double):
    lam, b, _, _ = planar_problem(3, 12, 2)
    lams = jnp.stack((lam, 0.5 * lam))
    mapped = jax.vmap(planar_recurrence)(lams, jnp.stack((b, 2 * b)))
    np.testing.assert_allclose(mapped[0], planar_recurrence(lam, b), rtol=1e-12)
    np.testing.assert_allclose(mapped[1], 2 * planar_recurrence(0.5 * lam, b), rtol=1e-12)


def test_planes_are_counted_and_refused_as_complex_numbers_are():
    lam, b, initial, _ = planar_problem(2, 16, 3)
    lam, b = lam.astype(jnp.complex64), b.astype(jnp.float32)
    assert count_flops(planar_recurrence, lam, b) == 8 * b.size / 2
    with pytest.raises(ValueError, match="2 state"):
        planar_recurrence(lam, b[..., :5])
    with pytest.raises(ValueError, match="must be real"):
        planar_recurrence(lam, b.astype(jnp.complex64))
    with pytest.raises(ValueError, match="initial must be"):
        planar_recurrence(lam, b, initial=initial[:, :3])
    assert planar_recurrence(lam, b).dtype == jnp.float32
    assert planar_recurrence(lam, b[:, :0]).shape == (2, 0, 6)
