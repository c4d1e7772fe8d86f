"""Streams of tasks: lazy and without end, draws shared and kept apart, transforms that do what their names say."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.tasks.images import from_arrays
from neoteny.tasks.sources import DataArrays, take_batch
from neoteny.tasks.streams import (
    PermutedPixels,
    RandomLabels,
    Stream,
    Task,
    Unchanged,
    class_incremental,
    domains,
    permuted,
    random_labels,
    single,
)


def images(rows=60, classes=10, shape=(4, 4, 1), **options):
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (rows, *shape), dtype=np.uint8)
    return from_arrays(inputs, np.arange(rows) % classes, **options)


def names(stream):
    return [task.name for task in stream]


def counted(length=None):
    """A stream that notes which tasks were made."""
    data, made = images(), []

    def make(index):
        made.append(index)
        return Task(f"t{index}", data, data.splits, Unchanged(), draw=index)

    return Stream(make, length), made


class TestStream:
    def test_makes_no_task_before_it_is_asked_for(self):
        stream, made = counted()
        cut = stream.take(5)
        assert made == []
        assert cut[3].name == "t3"
        assert made == [3]
        assert names(itertools.islice(stream, 2)) == ["t0", "t1"]
        assert made == [3, 0, 1]

    def test_composition_makes_none_either(self):
        stream, made = counted(4)
        composed = stream.repeated(2).shuffled(3).then(stream).take(5)
        assert made == []
        assert len(list(composed)) == 5
        assert len(made) == 5

    def test_without_end(self):
        stream, _ = counted()
        assert stream.length is None
        assert stream[10**6].name == "t1000000"
        for use in (len, lambda s: s.repeated(2), lambda s: s.shuffled(1), lambda s: s.then(s)):
            with pytest.raises(ValueError, match=r"needs a stream with an end; cut it first with take\(n\)"):
                use(stream)

    def test_take(self):
        stream, _ = counted(4)
        assert names(stream.take(2)) == ["t0", "t1"]
        assert len(stream.take(4)) == 4
        with pytest.raises(ValueError, match=r"take\(5\): the stream has only 4 tasks"):
            stream.take(5)
        with pytest.raises(ValueError, match=r"take\(0\): a stream needs at least one task"):
            stream.take(0)

    def test_indices_are_positions(self):
        stream, _ = counted(3)
        for composed in (stream, stream.repeated(2), stream.shuffled(5), stream.then(stream), stream.take(2)):
            assert [task.index for task in composed] == list(range(len(composed)))
        for index in (-1, 3):
            with pytest.raises(IndexError, match=f"task {index} of a stream of 3"):
                stream[index]

    def test_repeated_visits_share_their_draw(self):
        tasks = list(counted(3)[0].repeated(2))
        assert [task.name for task in tasks] == ["t0", "t1", "t2", "t0", "t1", "t2"]
        assert [task.draw for task in tasks] == [0, 1, 2, 0, 1, 2]
        assert [task.visit for task in tasks] == [0, 0, 0, 1, 1, 1]
        with pytest.raises(ValueError, match=r"repeated\(0\): at least one visit"):
            counted(3)[0].repeated(0)

    def test_orders_are_permutations_and_order_0_is_the_one_given(self):
        stream, _ = counted(8)
        assert names(stream.shuffled(0)) == names(stream)
        orders = [tuple(names(stream.shuffled(order))) for order in range(6)]
        assert all(sorted(order) == sorted(names(stream)) for order in orders)
        assert len(set(orders)) == 6
        assert names(stream.shuffled(4)) == names(stream.shuffled(4))
        for task in stream.shuffled(4):
            assert task.name == f"t{task.draw}", "a task keeps its draw wherever it comes"

    def test_then_keeps_draws_apart(self):
        first, second = counted(3)[0], counted(2)[0]
        assert [task.draw for task in first.then(second)] == [0, 1, 2, 3, 4]
        endless = first.then(counted()[0])
        assert endless.length is None
        assert (endless[2].draw, endless[3].draw, endless[9].name) == (2, 3, "t6")

    @pytest.mark.parametrize("part", ["repeated", "shuffled", "then"])
    def test_then_keeps_draws_apart_whatever_comes_first(self, part):
        stream = counted(3)[0]
        first = {
            "repeated": stream.repeated(2),
            "shuffled": stream.shuffled(1),
            "then": stream.then(counted(2)[0]),
        }[part]
        joined = list(first.then(counted(2)[0]))
        before, after = joined[:-2], joined[-2:]
        assert not {task.draw for task in before} & {task.draw for task in after}

    def test_rows_of_a_split_that_is_not_there(self):
        with pytest.raises(KeyError, match=r"task 't0' has no split 'exam'; its splits are train"):
            counted(1)[0][0].rows("exam")


class TestKinds:
    def test_single(self):
        data = images(name="mine")
        (task,) = single(data)
        assert (task.name, task.transform, task.data) == ("mine", Unchanged(), data)
        assert len(single(data.inputs, data.targets)) == 1

    def test_arrays_need_their_targets_and_data_sets_none(self):
        data = images()
        with pytest.raises(TypeError, match="inputs given as an array need their targets"):
            permuted(data.inputs)
        with pytest.raises(TypeError, match="either an Arrays data set or inputs with targets"):
            permuted(data, data.targets)

    def test_endless_unless_cut(self):
        assert random_labels(images()).length is permuted(images()).length is None
        assert len(random_labels(images(), tasks=3)) == len(permuted(images(), tasks=3)) == 3

    def test_random_labels_take_the_classes_of_the_data(self):
        assert random_labels(images())[0].transform == RandomLabels(10)
        assert random_labels(images(), classes=4)[0].transform == RandomLabels(4)
        regression = from_arrays(np.zeros((6, 2), np.float32), np.linspace(0, 1, 6), dev=0, test=0)
        with pytest.raises(ValueError, match="random_labels needs at least two classes, and arrays has None"):
            random_labels(regression)

    def test_equal_transforms_share_one_program(self):
        stream = random_labels(images(), tasks=3)
        assert len({hash(task.transform) for task in stream}) == 1
        assert stream[0].transform == stream[2].transform
        assert {task.draw for task in stream} == {0, 1, 2}

    def test_the_first_task_may_be_unchanged(self):
        transforms = [task.transform for task in permuted(images(), tasks=3, first_unchanged=True)]
        assert transforms == [Unchanged(), PermutedPixels(), PermutedPixels()]
        assert permuted(images(), tasks=1)[0].transform == PermutedPixels()

    @pytest.mark.parametrize(("tasks", "groups"), [(5, [2] * 5), (10, [1] * 10), (1, [10]), (3, [4, 3, 3])])
    def test_class_incremental_divides_rows_and_classes(self, tasks, groups):
        data = images(rows=100)
        stream = class_incremental(data, tasks=tasks)
        for split, rows in data.splits.items():
            parts = [task.rows(split) for task in stream]
            assert sorted(np.concatenate(parts).tolist()) == sorted(rows.tolist())
        members = [set(data.targets[task.rows("train")].tolist()) for task in stream]
        assert [len(classes) for classes in members] == groups
        assert [label for classes in members for label in sorted(classes)] == list(range(10)), "in order, each once"
        assert stream[0].name == "classes-" + "-".join(map(str, range(groups[0])))

    @pytest.mark.parametrize("tasks", [0, 11])
    def test_class_incremental_cannot_divide_further(self, tasks):
        with pytest.raises(ValueError, match=f"tasks must be between 1 and the 10 classes of arrays, not {tasks}"):
            class_incremental(images(), tasks=tasks)

    def test_class_incremental_needs_classes(self):
        regression = from_arrays(np.zeros((6, 2), np.float32), np.linspace(0, 1, 6), dev=0, test=0)
        with pytest.raises(ValueError, match="class_incremental needs class labels, and arrays has none"):
            class_incremental(regression, tasks=1)

    def test_domains(self):
        first, second = images(name="a"), images(rows=30, name="b")
        stream = domains([first, second])
        assert [(task.name, task.data, task.draw) for task in stream] == [("a", first, 0), ("b", second, 1)]
        with pytest.raises(ValueError, match=r"must have one input shape, not \[\(2, 2, 1\), \(4, 4, 1\)\]"):
            domains([first, images(shape=(2, 2, 1))])
        with pytest.raises(ValueError, match="at least one data set"):
            domains([])


KEYS = jax.random.split(jax.random.key(7), 12)


ROWS, CLASSES = 5_000, 10


@pytest.fixture(scope="module")
def drawn():
    """Labels (draws, rows), and the data's own (rows,)."""
    targets = jnp.arange(ROWS) % CLASSES
    return np.asarray(jax.vmap(lambda key: RandomLabels(CLASSES).draw(key, targets, 16))(KEYS)), targets


class TestRandomLabels:
    def test_uniform(self, drawn):
        counts = np.stack([np.bincount(labels, minlength=CLASSES) for labels in drawn[0]])
        assert counts.shape == (12, CLASSES)
        expected = ROWS / CLASSES
        chi_squared = ((counts - expected) ** 2 / expected).sum(axis=1)
        # 9 degrees of freedom: a sum over 12 draws has mean 108 and standard deviation 14.7.
        assert 50 < chi_squared.sum() < 170

    def test_successive_draws_agree_by_chance_only(self, drawn):
        agreement = (drawn[0][1:] == drawn[0][:-1]).mean(axis=1)
        np.testing.assert_allclose(agreement, 1 / CLASSES, atol=5 * np.sqrt(0.09 / ROWS))

    def test_independent_of_what_the_images_show(self, drawn):
        labels, targets = drawn
        agreement = (labels == np.asarray(targets)).mean(axis=1)
        np.testing.assert_allclose(agreement, 1 / CLASSES, atol=5 * np.sqrt(0.09 / ROWS))
        other = jax.vmap(lambda key: RandomLabels(CLASSES).draw(key, targets[::-1], 16))(KEYS)
        np.testing.assert_array_equal(labels, other)

    def test_images_stay_and_labels_are_those_of_their_rows(self):
        transform, rows = RandomLabels(3), jnp.array([4, 0, 4])
        drawn = jnp.array([0, 1, 2, 0, 1])
        inputs, labels = transform(drawn, jnp.ones((3, 2)), jnp.full(3, 9), rows)
        np.testing.assert_array_equal(labels, [1, 0, 1])
        np.testing.assert_array_equal(inputs, np.ones((3, 2)))
        assert transform.draw(KEYS[0], jnp.arange(5), 2).dtype == jnp.int32


class TestPermutedPixels:
    def test_a_permutation_in_every_lane_and_another_in_each(self):
        drawn = np.asarray(jax.vmap(lambda key: PermutedPixels().draw(key, jnp.zeros(5), 48))(KEYS))
        np.testing.assert_array_equal(np.sort(drawn, axis=1), np.tile(np.arange(48), (12, 1)))
        assert len({tuple(row) for row in drawn.tolist()}) == 12
        assert (drawn == np.arange(48)).mean() < 0.2

    def test_moves_all_images_alike_channels_too(self):
        rng = np.random.default_rng(0)
        inputs = rng.standard_normal((6, 3, 3, 2)).astype(np.float32)
        order = rng.permutation(18)
        moved, targets = PermutedPixels()(jnp.asarray(order), jnp.asarray(inputs), jnp.arange(6), None)
        assert moved.shape == inputs.shape
        np.testing.assert_array_equal(np.asarray(moved).reshape(6, 18), inputs.reshape(6, 18)[:, order])
        np.testing.assert_array_equal(targets, np.arange(6))


def test_unchanged_is_the_data_as_they_are():
    inputs, targets = jnp.ones((2, 3)), jnp.array([1, 2])
    assert Unchanged().draw(KEYS[0], targets, 3) == ()
    assert Unchanged()((), inputs, targets, None) == (inputs, targets)


def test_bytes_become_numbers_from_0_to_1():
    data = from_arrays(np.array([[0, 51, 255]], np.uint8), np.array([0]), classes=2, dev=0, test=0)
    held = DataArrays(jnp.asarray(data.inputs), jnp.asarray(data.targets))
    batch = take_batch(held, Unchanged(), (), jnp.array([0]))
    np.testing.assert_allclose(batch.inputs, [[0, 0.2, 1]], rtol=1e-6)
    assert batch.inputs.dtype == jnp.float32
