"""Parts of a data set: some of its classes, fewer rows of each, another size of image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neoteny.errors import UsageError
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.images import average_pool


def class_numbers(data: Arrays, names: Sequence[str]) -> tuple[int, ...]:
    """The numbers of the classes with these names; UsageError naming those there are."""
    for name in names:
        if name not in data.class_names:
            raise UsageError(f"{data.name}: no class {name!r}; the classes are {', '.join(data.class_names)}")
    return tuple(data.class_names.index(name) for name in names)


def subset(
    data: Arrays, *, classes: Sequence[int] | None = None, train: int | None = None, test: int | None = None
) -> Arrays:
    """Some classes of a data set, renumbered 0 to k-1 in the order given, and at most so many rows of each split.

    classes: class numbers (None: all). train, test: rows of these splits in all, the same number of each class, the
    first of each class in the split's own (random) order; None keeps all rows. Other splits keep theirs. The arrays are
    copies that hold the chosen rows alone. UsageError if a class has too few rows, or the rows cannot be shared out
    evenly.
    """
    if data.classes is None:
        raise UsageError(
            f"{data.name}: classes can only be chosen where there are classes, and its targets are numbers"
        )
    chosen = tuple(range(data.classes)) if classes is None else tuple(int(each) for each in classes)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(data.classes)):
        raise UsageError(f"{data.name}: classes must be different numbers from 0 to {data.classes - 1}, not {chosen}")
    asked = {"train": train, "test": test}
    rows = {name: _balanced(data, name, held, chosen, asked.get(name)) for name, held in data.splits.items()}
    kept = np.concatenate(list(rows.values()))
    starts = np.cumsum([0, *(len(each) for each in rows.values())])
    splits = {
        name: np.arange(start, start + len(held), dtype=np.int32)
        for (name, held), start in zip(rows.items(), starts, strict=False)
    }
    renumbered = np.full(data.classes, -1, np.int32)
    renumbered[list(chosen)] = np.arange(len(chosen), dtype=np.int32)
    return Arrays(
        _name(data, chosen, asked),
        data.inputs[kept],
        renumbered[data.targets[kept]],
        splits,
        len(chosen),
        data.source,
        tuple(data.class_names[each] for each in chosen) if data.class_names else (),
    )


def _balanced(data: Arrays, split: str, rows: np.ndarray, chosen: tuple[int, ...], count: int | None) -> np.ndarray:
    """The rows of the chosen classes in their order, the first `count` / k of each class."""
    labels = data.targets[rows]
    of_class = np.isin(labels, chosen)
    if count is None:
        return rows[of_class]
    each, left = divmod(count, len(chosen))
    if left or each < 1:
        raise UsageError(f"{data.name}: {count} {split} rows cannot be shared evenly by {len(chosen)} classes")
    kept = np.zeros(len(rows), bool)
    for one in chosen:
        places = np.flatnonzero(labels == one)
        if len(places) < each:
            raise UsageError(
                f"{data.name}: {count} {split} rows of {len(chosen)} classes take {each} of each, and class {one} has "
                f"{len(places)}; ask for at most {len(places) * len(chosen)}"
            )
        kept[places[:each]] = True
    return rows[kept]


def _name(data: Arrays, chosen: tuple[int, ...], asked: dict[str, int | None]) -> str:
    """A name of its own for every choice: runs know their data sets by name and digest."""
    parts = [data.name]
    if chosen != tuple(range(data.classes or 0)):
        parts.append("classes " + " ".join(map(str, chosen)))
    parts += [f"{count} {split}" for split, count in asked.items() if count is not None]
    return "/".join(parts)


def as_shape(data: Arrays, shape: Sequence[int]) -> Arrays:
    """The same images at another height, width and number of channels: for one network on several data sets.

    Larger images are cropped to a multiple of the size asked for, about their centre, and averaged over squares;
    smaller ones are padded with zeros. One channel is repeated; several cannot become fewer. Unchanged if the shape is
    the same.
    """
    if tuple(data.input_shape) == tuple(shape):
        return data
    if len(data.input_shape) != 3 or len(shape) != 3:
        raise UsageError(f"{data.name}: inputs of shape {data.input_shape} cannot be made {tuple(shape)}")
    height, width, channels = shape
    side = min(data.input_shape[0] // height, data.input_shape[1] // width)
    if side > 1:
        cropped = _centred(data.inputs, height * side, width * side)
        data = average_pool(_with(data, data.name, cropped), side)
    images = _centred(data.inputs, height, width)
    if images.shape[-1] != channels:
        if images.shape[-1] != 1:
            raise UsageError(f"{data.name}: images with {images.shape[-1]} channels cannot be given {channels}")
        images = np.repeat(images, channels, axis=-1)
    return _with(data, f"{data.name}/as {height}x{width}x{channels}", np.ascontiguousarray(images))


def _centred(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Images (n, h, w, channels) cropped, or padded with zeros, about their centre."""
    for axis, size in ((1, height), (2, width)):
        have = images.shape[axis]
        if have > size:
            start = (have - size) // 2
            images = np.take(images, range(start, start + size), axis=axis)
        elif have < size:
            pads = [(0, 0)] * images.ndim
            pads[axis] = ((size - have) // 2, size - have - (size - have) // 2)
            images = np.pad(images, pads)
    return images


def _with(data: Arrays, name: str, inputs: np.ndarray) -> Arrays:
    return Arrays(name, inputs, data.targets, data.splits, data.classes, data.source, data.class_names)
