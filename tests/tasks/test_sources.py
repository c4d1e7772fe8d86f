"""Minibatches: every row once an epoch, padding never, and orders that depend on the key alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.tasks.sources import DataArrays, Minibatch, TaskArrays, as_inputs
from neoteny.tasks.streams import PermutedPixels, RandomLabels, Unchanged

ROWS = 100
"""Rows of the data set; a task has some of them."""


def task(rows, capacity=None):
    """A task of these rows, padded to `capacity`; an input of row r is (r, -r), its target r."""
    inputs = jnp.stack([jnp.arange(ROWS), -jnp.arange(ROWS)], axis=1).astype(jnp.float32)
    padded = np.zeros(capacity or len(rows), np.int32)
    padded[: len(rows)] = rows
    data = DataArrays(inputs, jnp.arange(ROWS, dtype=jnp.int32))
    return TaskArrays(data, jnp.asarray(padded), jnp.int32(len(rows)))


def batches(source, task, updates, key=0, transform=None):
    """The targets of the first batches: (updates, batch)."""
    transform = transform or Unchanged()
    root = jax.random.key(key)

    def next_batch(state, update):
        state, batch = source.next(state, task, transform, update, jax.random.fold_in(root, update))
        return state, (batch.targets, batch.inputs)

    state = source.init(task, transform, root)
    _, (targets, inputs) = jax.jit(lambda s, u: jax.lax.scan(next_batch, s, u))(state, jnp.arange(updates))
    return np.asarray(targets), np.asarray(inputs)


CHOSEN = np.random.default_rng(0).permutation(ROWS)[:24]


class TestEpochs:
    @pytest.mark.parametrize("batch", [1, 2, 8, 24])
    def test_every_row_exactly_once_where_batches_fill_the_epoch(self, batch):
        per_epoch = 24 // batch
        drawn, _ = batches(Minibatch(batch), task(CHOSEN), 3 * per_epoch)
        for epoch in drawn.reshape(3, 24):
            assert sorted(epoch) == sorted(CHOSEN)

    def test_every_epoch_has_an_order_of_its_own(self):
        drawn, _ = batches(Minibatch(8), task(CHOSEN), 30)
        orders = drawn.reshape(10, 24)
        assert len({tuple(order) for order in orders}) == 10
        assert not any((order == CHOSEN).all() for order in orders)

    @pytest.mark.parametrize("batch", [5, 7, 13])
    def test_an_incomplete_last_batch_is_dropped(self, batch):
        per_epoch = 24 // batch
        drawn, _ = batches(Minibatch(batch), task(CHOSEN), 40 * per_epoch)
        epochs = drawn.reshape(40, per_epoch * batch)
        for epoch in epochs:
            assert len(set(epoch)) == per_epoch * batch, "no row twice in an epoch"
        assert set(epochs.ravel()) == set(CHOSEN), "which rows are dropped changes"

    @pytest.mark.parametrize("batch", [8, 7])
    def test_padding_is_never_drawn(self, batch):
        """Padding is row 0, which is not of this task."""
        rows = np.arange(1, 25)
        drawn, _ = batches(Minibatch(batch), task(rows, capacity=64), 60)
        assert 0 not in drawn
        epochs = drawn.reshape(-1, 24 // batch * batch)[:10] if batch == 8 else []
        for epoch in epochs:
            assert sorted(epoch) == sorted(rows)

    @pytest.mark.parametrize(("rows", "batch"), [(3, 8), (1, 4), (5, 7)])
    def test_fewer_rows_than_a_batch_repeat(self, rows, batch):
        drawn, _ = batches(Minibatch(batch), task(np.arange(10, 10 + rows), capacity=16), 6)
        for batch_of in drawn:
            counts = np.bincount(batch_of, minlength=10 + rows)[10:]
            assert counts.sum() == batch
            assert counts.max() - counts.min() <= 1

    def test_orders_are_uniform(self):
        """Every row comes first equally often: 24 rows, 2,400 epochs, mean 100 and standard deviation 9.8."""
        drawn, _ = batches(Minibatch(24), task(CHOSEN), 2_400)
        first = np.bincount(drawn[:, 0], minlength=ROWS)[CHOSEN]
        assert first.sum() == 2_400
        assert np.abs(first - 100).max() < 5 * 9.8


class TestKeys:
    def test_the_same_key_gives_the_same_order_and_another_another(self):
        source, rows = Minibatch(8), task(CHOSEN)
        np.testing.assert_array_equal(batches(source, rows, 9, key=3)[0], batches(source, rows, 9, key=3)[0])
        assert (batches(source, rows, 9, key=3)[0] != batches(source, rows, 9, key=4)[0]).any()

    def test_the_order_is_of_the_key_not_of_the_draw_or_what_came_before(self):
        source, rows = Minibatch(8), task(CHOSEN)
        drawn, inputs = batches(source, rows, 9)
        permuted, _ = batches(source, rows, 9, transform=PermutedPixels())
        np.testing.assert_array_equal(drawn, permuted)
        relabelled, same = batches(source, rows, 9, transform=RandomLabels(5))
        np.testing.assert_array_equal(inputs, same)
        assert relabelled.max() < 5
        # An epoch begun at update 3 is the one that key gives, whatever the state was.
        state = source.init(rows, Unchanged(), jax.random.key(0))
        key = jax.random.fold_in(jax.random.key(0), 3)
        _, batch = source.next(state, rows, Unchanged(), jnp.int32(3), key)
        np.testing.assert_array_equal(batch.targets, drawn[3])

    def test_padding_changes_no_row_of_an_epoch(self):
        drawn, _ = batches(Minibatch(8), task(CHOSEN, capacity=40), 3)
        assert sorted(drawn.ravel()) == sorted(CHOSEN)

    def test_alone_and_in_company(self):
        source, rows, transform = Minibatch(8), task(CHOSEN), RandomLabels(5)

        def run(key):
            def body(state, update):
                state, batch = source.next(state, rows, transform, update, jax.random.fold_in(key, update))
                return state, batch

            return jax.lax.scan(body, source.init(rows, transform, key), jnp.arange(7))[1]

        keys = jax.random.split(jax.random.key(1), 4)
        together = jax.jit(jax.vmap(run))(keys)
        for lane in range(4):
            alone = jax.jit(run)(keys[lane])
            np.testing.assert_array_equal(together.inputs[lane], alone.inputs)
            np.testing.assert_array_equal(together.targets[lane], alone.targets)
        assert len({tuple(lane.ravel().tolist()) for lane in np.asarray(together.inputs)}) == 4


def test_inputs_and_targets_belong_together():
    targets, inputs = batches(Minibatch(8), task(CHOSEN), 6)
    np.testing.assert_array_equal(inputs[..., 0], targets)
    np.testing.assert_array_equal(inputs[..., 1], -targets)


def test_floats_stay_as_they_are():
    stored = jnp.array([[3.5, -2.0]])
    assert as_inputs(stored) is stored


@pytest.mark.parametrize("size", [0, -3])
def test_batches_have_rows(size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, not {size}"):
        Minibatch(size)
