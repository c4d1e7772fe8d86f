"""Sequence tasks against slow references: expressions evaluated by recursion, paths counted, texts read back."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from neoteny.errors import UsageError
from neoteny.tasks import load
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.images import from_arrays
from neoteny.tasks.sequences import (
    Between,
    Drawing,
    Recall,
    aan,
    filtered_waves,
    imdb,
    listops,
    listops_tsv,
    pathfinder,
    pathfinder_archive,
    pathfinder_images,
    patterns,
    pixels,
    recall,
    sequential_digits,
)
from neoteny.tasks.sequences.listops import SYMBOLS, expressions, tokenize


def value_of(symbols: list[str]) -> tuple[int, int, int]:
    """(value, symbols read, depth) of an expression by recursion: the slow reference."""
    if symbols[0].isdigit():
        return int(symbols[0]), 1, 1
    place, values, depth = 1, [], 0
    while symbols[place] != "]":
        value, read, below = value_of(symbols[place:])
        values.append(value)
        place += read
        depth = max(depth, below)
    assert len(values) >= 2
    rule = {"[MIN": min, "[MAX": max, "[MED": lambda v: int(np.median(v)), "[SM": lambda v: sum(v) % 10}
    return rule[symbols[0]](values), place + 1, depth + 1


def words(row: np.ndarray) -> list[str]:
    return [SYMBOLS[token - 1] for token in row[row > 0]]


def test_expressions_are_well_formed_and_their_values_right():
    rows, values = expressions(np.random.default_rng(0), 3_000, 5, 60, 4, 5)
    assert len(rows) > 300
    deepest, most = 0, 0
    for row, value in zip(rows, values, strict=True):
        symbols = words(row)
        assert 5 < len(symbols) < 60
        assert (row[len(symbols) :] == 0).all()
        found, read, depth = value_of(symbols)
        assert (found, read) == (value, len(symbols))
        deepest = max(deepest, depth)
        most = max(most, sum(s.startswith("[") for s in symbols))
    assert deepest == 4
    assert most > 3


def test_expressions_are_distributed_as_the_recursive_generator_makes_them():
    rng = np.random.default_rng(1)

    def tree(depth):
        if depth == 3 or rng.random() > 0.25:
            return 1
        return 2 + sum(tree(depth + 1) for _ in range(rng.integers(2, 5)))

    slow = [
        size for size in (2 + sum(tree(2) for _ in range(rng.integers(2, 5))) for _ in range(20_000)) if 3 < size < 30
    ]
    rows, _ = expressions(np.random.default_rng(2), 20_000, 3, 30, 3, 4)
    fast = (rows > 0).sum(1)
    bins = [4, 5, 6, 7, 9, 12, 30]
    shares = [np.histogram(sizes, bins)[0] / len(sizes) for sizes in (slow, fast)]
    np.testing.assert_allclose(*shares, atol=0.015)
    operators = np.bincount(rows[rows > 10], minlength=16)[11:15]
    np.testing.assert_allclose(operators / operators.sum(), 0.25, atol=0.01)


def test_listops_examples_differ_and_repeat_by_seed():
    sizes = dict(min_length=5, max_length=40, max_depth=3, dev=50, test=50)
    data = listops(300, **sizes)
    assert data.inputs.shape == (400, 40)
    assert data.tokens == len(SYMBOLS) + 1
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 300, "dev": 50, "test": 50}
    assert len({row.tobytes() for row in data.inputs}) == 400, "no expression twice, so none of test in train"
    listops.__globals__["_listops"].cache_clear()
    assert listops(300, **sizes).digest == data.digest
    assert listops(300, **sizes, seed=1).digest != data.digest
    with pytest.raises(UsageError, match="different expressions"):
        listops(10_000, min_length=0, max_length=5, max_depth=2, max_args=2)
    with pytest.raises(UsageError, match="no length"):
        listops(10, min_length=9, max_length=10)


def test_the_archives_listops_files_are_read(tmp_path):
    text = "( ( ( ( [MAX 2 ) 9 ) ( ( ( [MIN 4 ) 7 ) ] ) ) ] )"
    (tmp_path / "basic_train.tsv").write_text(f"Source\tTarget\n{text}\t9\n5\t5\n")
    (tmp_path / "basic_test.tsv").write_text("Source\tTarget\n( ( ( [SM 8 ) 7 ) ] )\t5\n")
    data = listops_tsv(tmp_path, length=8)
    assert words(data.inputs[0]) == ["[MAX", "2", "9", "[MIN", "4", "7", "]", "]"]
    assert data.targets.tolist() == [9, 5, 5]
    assert set(data.splits) == {"train", "test"}
    (tmp_path / "basic_val.tsv").write_text("Source\tTarget\n[MAX 1 x ]\t1\n")
    with pytest.raises(UsageError, match="line 2"):
        listops_tsv(tmp_path)
    with pytest.raises(UsageError, match="basic_train"):
        listops_tsv(tmp_path / "no")
    assert tokenize("( [MED 0 9 ] )") == [13, 1, 10, 15]


def reviews(folder):
    for split, count in (("train", 4), ("test", 2)):
        for index, name in enumerate(("neg", "pos")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count // 2):
                (folder / split / name / f"{number}_1.txt").write_bytes(
                    f"{split} {name} {number} é".encode() * (index + 1)
                )
    return folder


def test_reviews_from_the_published_folder_and_from_an_archive_are_the_same(tmp_path):
    folder = reviews(tmp_path / "aclImdb")
    data = imdb(20, path=folder, dev=0)
    assert data.inputs.shape == (6, 20)
    assert data.inputs.dtype == np.int16
    texts = {
        bytes((row[row > 0] - 1).astype(np.uint8)): label for row, label in zip(data.inputs, data.targets, strict=True)
    }
    assert texts["train neg 0 é".encode()] == 0
    assert texts[("train pos 1 é" * 2).encode()[:20]] == 1
    arrays = {}
    for split in ("train", "test"):
        read = [
            (f.read_bytes(), label)
            for label, n in enumerate(("neg", "pos"))
            for f in sorted((folder / split / n).iterdir())
        ]
        arrays[f"x_{split}"] = np.frombuffer(b"".join(text for text, _ in read), np.uint8)
        arrays[f"off_{split}"] = np.r_[0, np.cumsum([len(text) for text, _ in read])]
        arrays[f"y_{split}"] = np.array([label for _, label in read])
    np.savez(tmp_path / "imdb_bytes.npz", **arrays)
    assert imdb(20, path=tmp_path / "imdb_bytes.npz", dev=0).digest == data.digest
    few = imdb(20, path=folder, examples=2, dev=0)
    assert {split: len(rows) for split, rows in few.splits.items()} == {"train": 2, "test": 2}
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(UsageError, match="off_train"):
        imdb(20, path=tmp_path / "other.npz")


def test_pairs_of_articles(tmp_path):
    (tmp_path / "new_aan_pairs.train.tsv").write_text('1.0\tA\tB\tone "quoted\ttwo\n0.0\tA\tC\tone\tthree\n')
    data = aan(tmp_path, 12)
    assert data.inputs.shape == (2, 2, 12)
    assert data.targets.tolist() == [1, 0]
    assert bytes((data.inputs[0, 0] - 1).clip(0).astype(np.uint8)).rstrip(b"\0") == b'one "quoted'
    (tmp_path / "new_aan_pairs.eval.tsv").write_text("1.0\tA\tB\tone\n")
    with pytest.raises(UsageError, match="line 1: 4 columns"):
        aan(tmp_path)


def test_pixels_in_raster_order_and_in_one_fixed_order():
    images = from_arrays(
        np.arange(4 * 2 * 3 * 2, dtype=np.uint8).reshape(4, 2, 3, 2), np.array([0, 1, 0, 1]), dev=0, test=0
    )
    data = pixels(images)
    assert data.inputs.shape == (4, 6, 2)
    assert np.array_equal(data.inputs[1, 4], images.inputs[1, 1, 1])
    once, again, other = (pixels(images, permutation=seed) for seed in (3, 3, 4))
    assert np.array_equal(once.inputs, again.inputs)
    assert once.name != data.name != other.name
    assert not np.array_equal(once.inputs, other.inputs)
    assert np.array_equal(np.sort(once.inputs, axis=1), np.sort(data.inputs, axis=1))
    with pytest.raises(UsageError, match="not images"):
        pixels(data)


def test_digits_are_pooled_with_a_margin():
    data = sequential_digits(16)
    assert data.inputs.shape == (5_000, 256, 1)
    whole = sequential_digits(28)
    image = np.pad(whole.inputs[7].reshape(28, 28) / 255, 2)
    np.testing.assert_allclose(data.inputs[7].reshape(16, 16)[5, 9], image[10:12, 18:20].mean(), rtol=1e-6)
    assert load("mnist_digits").splits["test"].tolist() == data.splits["test"].tolist()
    with pytest.raises(UsageError, match="divide 32"):
        sequential_digits(12)


def test_patterns_are_laid_out_in_time():
    data = patterns(20, steps=3, bits=2, test=5)
    (task,) = recall(data, 4)
    transform = task.transform
    shown, targets = transform((), data.inputs[:6] / np.float32(255), data.targets[:6], np.arange(6))
    assert shown.shape == (6, 10, 4)
    assert np.array_equal(shown[:, :3, :2], data.targets[:6])
    assert np.array_equal(targets, data.targets[:6])
    assert np.array_equal(shown[0, :, 2], [1] * 3 + [0] * 7)
    assert np.array_equal(shown[0, :, 3], [0] * 7 + [1] * 3)
    assert not np.any(shown[:, 3:, :2])
    noisy = Recall(4, Between.DISTRACTORS)
    drawn = noisy.draw(jax.random.key(0), data.targets, 6)
    rows = np.arange(6)
    one, _ = noisy(drawn, data.inputs[:6] / np.float32(255), data.targets[:6], rows)
    other, _ = noisy(drawn, data.inputs[:6] / np.float32(255), data.targets[:6], rows[::-1])
    assert np.array_equal(one[0, 3:7], other[5, 3:7]), "distractors belong to the row"
    assert set(np.unique(one[:, 3:7, :2])) == {0.0, 1.0}
    assert not np.any(one[:, 7:, :2])


def test_waves_are_filtered_causally():
    data = filtered_waves(4, length=30)
    k = np.arange(30)
    kernel = 0.1 * np.exp(-0.015 * k) * np.cos(0.04 * k) ** 2
    u = data.inputs[2, :, 0].astype(np.float64)
    slow = [sum(kernel[j] * u[t - j] for j in range(t + 1)) for t in range(30)]
    np.testing.assert_allclose(data.targets[2], slow, atol=1e-6)


def test_marked_ends_are_joined_exactly_where_the_label_says_so():
    from scipy import ndimage

    # no distractors and no gaps, so that a path is one connected region; only a disc holds a cross of five lit pixels
    # nor do two discs touch: twice 2.0 + 0.26 lit, and a diagonal neighbour 1.41 away, are less than the margin
    drawing = Drawing(dashes=5, distractors=0, gap=0.0, dash=2.5, margin=6.0, marker=2.0)
    data = pathfinder_images(150, drawing=drawing, dev=10, test=10)
    for picture, label in zip(data.inputs[..., 0], data.targets, strict=True):
        regions, count = ndimage.label(picture > 60, np.ones((3, 3)))
        discs = ndimage.binary_erosion(picture > 200)
        assert count == 2
        assert len(np.unique(regions[discs])) == 2 - label
    assert 0.35 < data.targets.mean() < 0.65


def test_pictures_repeat_by_seed_and_become_sequences():
    small = dict(drawing=Drawing(dashes=4), dev=4, test=4)
    data = pathfinder(20, side=16, **small)
    assert data.inputs.shape == (28, 256, 1)
    assert data.inputs.dtype == np.uint8
    pathfinder_images.__globals__["_images"].cache_clear()
    assert pathfinder(20, side=16, **small).digest == data.digest
    assert pathfinder(20, side=16, seed=1, **small).digest != data.digest
    with pytest.raises(UsageError, match="do not fit"):
        pathfinder(4, side=8, drawing=Drawing(dashes=30, dash=8.0))


def test_the_archives_pictures_are_read(tmp_path):
    from PIL import Image

    (tmp_path / "metadata").mkdir()
    (tmp_path / "imgs" / "0").mkdir(parents=True)
    rng, lines = np.random.default_rng(0), []
    for index in range(20):
        file = tmp_path / "imgs" / "0" / f"sample_{index}.png"
        Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).save(file)
        lines.append(f"imgs/0 {file.name} {index} {index % 2} 1.8 6 4 2 10")
    (tmp_path / "imgs" / "0" / "sample_3.png").write_bytes(b"")
    (tmp_path / "metadata" / "0.npy").write_text("\n".join(lines))
    data = pathfinder_archive(tmp_path)
    assert data.inputs.shape == (19, 16, 1), "the empty picture is left out"
    assert data.targets.sum() == 9
    with pytest.raises(UsageError, match="metadata"):
        pathfinder_archive(tmp_path / "imgs")


def test_tokens_default_to_none():
    assert (
        Arrays("x", np.zeros((1, 1), np.float32), np.zeros(1, np.int32), {"train": np.zeros(1, np.int32)}, 1).tokens
        == 0
    )


def test_sequences_by_name(tmp_path):
    data = load("pixels:mnist_digits")
    assert data.inputs.shape == (5_000, 784, 1)
    assert load("permuted_pixels:mnist_digits").digest != data.digest
    with pytest.raises(UsageError, match="no number of bytes"):
        load("imdb:long")
    with pytest.raises(UsageError, match="basic_train"):
        load(f"listops:{tmp_path}")
