"""The compute ledger against closed forms and against XLA's own count."""

from __future__ import annotations

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.training import count_flops
from training_cases import EXPERIMENT, Config, finish, make_runner


def shape(*size):
    return jax.ShapeDtypeStruct(size, jnp.float32)


def test_products_count_two_operations_a_term():
    assert count_flops(lambda a, b: a @ b, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7
    assert count_flops(jax.vmap(lambda a, b: a @ b), shape(4, 3, 5), shape(4, 5, 7)) == 4 * 2 * 3 * 5 * 7


def test_convolution_counts_its_kernel_at_every_output():
    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert count_flops(convolve, shape(2, 9, 9, 3), shape(3, 3, 3, 8)) == 2 * (2 * 4 * 4 * 8) * (3 * 3 * 3)


def test_scans_branches_and_nested_calls():
    def body(x):
        return jnp.sin(x)

    assert count_flops(body, shape(10)) == 10
    assert count_flops(lambda x: jax.lax.scan(lambda c, _: (body(c), None), x, None, length=7)[0], shape(10)) == 70
    assert count_flops(lambda x: jax.lax.cond(x[0] > 0, lambda v: jnp.sin(jnp.sin(v)), body, x), shape(10)) == 20
    assert count_flops(jax.jit(lambda x: jax.checkpoint(body)(x)), shape(10)) == 10
    assert count_flops(lambda x: jax.nn.relu(x).sum(), shape(10)) == 20  # the comparison and the sum, once each


def test_data_movement_and_integers_cost_nothing():
    assert count_flops(lambda x, i: x[i].reshape(2, 5).T, shape(20), jax.ShapeDtypeStruct((10,), jnp.int32)) == 0
    assert count_flops(lambda i: i * 2 + 1, jax.ShapeDtypeStruct((10,), jnp.int32)) == 0


def test_a_loop_without_fixed_length_is_refused():
    with pytest.raises(ValueError, match="true steps"):
        count_flops(lambda n: jax.lax.fori_loop(0, n, lambda i, x: x * 2.0, 1.0), jax.ShapeDtypeStruct((), jnp.int32))


def test_an_update_costs_its_products_and_little_more():
    batch, sizes = 16, (12, 8, 8, 3)
    runner = make_runner([Config()])
    counted = runner.tracer.update_flops(runner.tasks[0], runner.tracer.initial().learner)
    terms = [a * b for a, b in pairwise(sizes)]
    # Forward, gradient by weights, and gradient by inputs of all but the first layer.
    products = 2 * batch * (3 * sum(terms) - terms[0])
    assert products < counted
    parameters = sum(terms) + sum(sizes[1:])
    # Adam takes about a dozen operations a parameter; activations, softmax and bias gradients a few a unit.
    assert counted < products + 20 * parameters + 20 * batch * sum(sizes)


def test_the_count_agrees_with_xla_on_an_update():
    runner = make_runner([Config(width=64)])
    values, seed = runner.tracer.values, runner.tracer.seed
    programs, task = runner.programs, runner.tasks[0]
    learner = programs.init_lane(values, seed)
    batch = programs.batch_lane(seed, runner.data.data(task), task.transform, 16)
    cost = (
        jax.jit(lambda s, b, v, k: programs.update_lane(s, b, v, k, 0, 0))
        .lower(learner, batch, values, seed)
        .cost_analysis()
    )
    assert runner.tracer.update_flops(task, runner.tracer.initial().learner) == pytest.approx(cost["flops"], rel=0.05)


def test_the_ledger_counts_true_steps_and_keeps_accounts_apart():
    runner = make_runner([Config(seed=0), Config(seed=1)])
    records, _, _ = finish(runner)
    per_update = runner.tracer.update_flops(runner.tasks[0], runner.state.learner)
    np.testing.assert_allclose(runner.ledger.train, 60 * per_update)
    last = records[-1]
    assert last.flops_train == 60 * per_update
    assert last.flops_search == 0
    # 64 training and 32 test rows a task, one forward pass each: 2 * sum of products, and the softmax.
    forward = 2 * (12 * 8 + 8 * 8 + 8 * 3)
    assert 2 * 96 * forward < last.flops_forward < 2 * 96 * (forward + 20 * (12 + 8 + 8 + 3))
    assert EXPERIMENT.name == "small"


def test_probes_are_counted_by_their_forward_passes():
    runner = make_runner([Config()])
    position = next(i for i, event in enumerate(runner.script) if type(event).__name__ == "Probe")
    before = after = 0.0
    for tick in runner.ticks():
        if tick.event == position:
            after = float(runner.ledger.probe[0])
            break
        before = float(runner.ledger.probe[0])
    assert before == 0
    # Features of 32 rows take one forward pass; the gradient norm takes one forward and a backward pass.
    products = 2 * 32 * (12 * 8 + 8 * 8 + 8 * 3)
    backward = 2 * 32 * (12 * 8 + 2 * (8 * 8 + 8 * 3))
    assert 2 * products + backward < after < 1.5 * (2 * products + backward)
