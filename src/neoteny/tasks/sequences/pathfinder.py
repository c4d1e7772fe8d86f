"""Pathfinder: are the two marked ends those of one dashed path? (Linsley et al. 2018; Tay et al. 2021, Path-X).

Two long smooth paths of dashes that never touch, shorter distractors, and two discs: at both ends of one path (label 1)
or at one end of each (label 0). The generator follows the published construction (dashes laid end to end with a bounded
turn, a margin between paths, distractors a third as long) and grows all images of a round together. Its pictures are
not the archive's: for published numbers read the archive with `pathfinder_archive`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neoteny.errors import UsageError
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.images import Size
from neoteny.tasks.sequences.pixels import pixels
from neoteny.tasks.sequences.rows import from_parts, positive

SOURCE = "Pathfinder; Linsley et al. 2018, Tay et al. 2021 (Long Range Arena)"
ANSWERS = ("two paths", "one path")

_ROUND = 256
"""Images begun at once; it is part of what a seed means."""

_CANDIDATES = 12
"""Directions tried for every dash, the later ones turning more; where none is free, the attempt has failed."""

_SHARPEST = 3.0
"""How many times `turn` the last candidates turn by."""

_ATTEMPTS = 12
"""Attempts at every path before it is given up."""

_BARREN = 3
"""Rounds without any image after which the paths are taken not to fit."""


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn. Lengths are in pixels of a 32x32 picture and grow with the side.

    dashes: of a long path (6, 9 and 14 are the published difficulties). distractors: short paths of dashes // 3, as
    many as find room. dash, gap: their lengths. turn: standard deviation of the change of direction, in radians.
    margin: least distance between paths. thickness, marker: of a dash, and the radius of a disc.
    """

    dashes: int = 14
    distractors: int = 4
    dash: float = 1.8
    gap: float = 0.9
    turn: float = 0.35
    margin: float = 2.4
    thickness: float = 0.9
    marker: float = 1.5


def pathfinder(
    examples: int = 10_000,
    *,
    side: int = 32,
    drawing: Drawing = Drawing(),
    dev: int = 1_000,
    test: int = 1_000,
    seed: int = 0,
) -> Arrays:
    """Generated pictures as sequences of pixels: inputs (n, side * side, 1) uint8, labels 1 for one path.

    side 32 is Pathfinder (1,024 steps), side 128 is Path-X (16,384 steps). Labels are balanced. UsageError where the
    paths are too long for the picture.
    """
    return pixels(pathfinder_images(examples, side=side, drawing=drawing, dev=dev, test=test, seed=seed))


def pathfinder_images(
    examples: int = 10_000,
    *,
    side: int = 32,
    drawing: Drawing = Drawing(),
    dev: int = 1_000,
    test: int = 1_000,
    seed: int = 0,
) -> Arrays:
    """The pictures of `pathfinder` as images (n, side, side, 1) uint8."""
    return _images(positive(examples, "examples"), positive(side, "side", 8), drawing, dev, test, seed)


@functools.lru_cache(maxsize=4)
def _images(examples: int, side: int, drawing: Drawing, dev: int, test: int, seed: int) -> Arrays:
    rng, wanted = np.random.default_rng([seed, 2]), examples + dev + test
    pictures, barren = np.zeros((0, side, side), np.uint8), 0
    labels = np.zeros(0, np.int32)
    while len(pictures) < wanted:
        more, answers = pictures_of(rng, _ROUND, side, drawing)
        barren = 0 if len(more) else barren + 1
        if barren == _BARREN:
            raise UsageError(
                f"two paths of {drawing.dashes} dashes do not fit into {side}x{side}; ask for shorter ones"
            )
        pictures, labels = np.concatenate([pictures, more]), np.concatenate([labels, answers])
    parts, start = {}, 0
    for split, size in (("train", examples), ("dev", dev), ("test", test)):
        if size:
            parts[split] = pictures[start : start + size, ..., None], labels[start : start + size]
        start += size
    name = f"pathfinder-{side}-{examples}-{drawing.dashes}-{seed}"
    return from_parts(
        name, parts, classes=2, source=f"generated, seed {seed}, {drawing}; {SOURCE}", class_names=ANSWERS
    )


def pictures_of(rng: np.random.Generator, count: int, side: int, drawing: Drawing) -> tuple[np.ndarray, np.ndarray]:
    """Of `count` pictures begun, those whose paths found room: (m, side, side) uint8 and labels (m,) int32."""
    scale = side / 32
    taken = np.full((count, 0, 2), np.inf)
    paths, whole = [], np.ones(count, bool)
    short = max(drawing.dashes // 3, 1)
    for index in range(2 + drawing.distractors):
        length = drawing.dashes if index < 2 else short
        ends, grown = _grow_some(rng, taken, length, side, drawing, _ATTEMPTS if index < 2 else 2)
        if index < 2:
            whole &= grown
            if not whole.any():
                return np.zeros((0, side, side), np.uint8), np.zeros(0, np.int32)
        # a path that found no room is not drawn and takes none
        ends = np.where(grown[:, None, None, None], ends, np.inf)
        paths.append(ends)
        taken = np.concatenate([taken, ends[:, :, 0], ends.mean(2), ends[:, :, 1]], axis=1)
    first, second = paths[0][whole], paths[1][whole]
    labels = rng.integers(0, 2, len(first)).astype(np.int32)
    other = np.where(rng.random(len(first))[:, None] < 0.5, second[:, 0, 0], second[:, -1, 1])
    markers = np.stack([first[:, 0, 0], np.where(labels[:, None] == 1, first[:, -1, 1], other)], axis=1)
    dashes = np.concatenate(paths, axis=1)[whole]
    return draw(dashes, markers, side, drawing.thickness * scale / 2, drawing.marker * scale), labels


def _grow_some(
    rng: np.random.Generator, taken: np.ndarray, length: int, side: int, drawing: Drawing, attempts: int
) -> tuple[np.ndarray, np.ndarray]:
    """`grow`, tried again in the pictures where it failed."""
    ends, grown = np.zeros((len(taken), length, 2, 2)), np.zeros(len(taken), bool)
    for _ in range(attempts):
        left = np.flatnonzero(~grown)
        if not len(left):
            break
        ends[left], grown[left] = grow(rng, taken[left], length, side, drawing)
    return ends, grown


def grow(
    rng: np.random.Generator, taken: np.ndarray, length: int, side: int, drawing: Drawing
) -> tuple[np.ndarray, np.ndarray]:
    """One path in every picture: ends of its dashes (pictures, length, 2 ends, 2), whether it found room (pictures,).

    taken: (pictures, points, 2), what to keep away from; points at infinity are none.
    """
    count, scale = len(taken), side / 32
    dash, gap, margin = drawing.dash * scale, drawing.gap * scale, drawing.margin * scale
    border = drawing.marker * scale
    own = np.full((count, 2 * length, 2), np.inf)
    starts = rng.uniform(border, side - border, (count, _CANDIDATES, 2))
    free = _distance(starts, taken) >= margin
    chosen = free.argmax(1)
    every = np.arange(count)
    tip, alive = starts[every, chosen], free[every, chosen]
    angle = rng.uniform(0, 2 * math.pi, count)
    ends = np.zeros((count, length, 2, 2))
    spread = drawing.turn * np.linspace(1, _SHARPEST, _CANDIDATES)
    for step in range(length):
        angles = angle[:, None] + spread * rng.standard_normal((count, _CANDIDATES))
        if step == 0:
            angles = rng.uniform(0, 2 * math.pi, (count, _CANDIDATES))
        ahead = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        reach = tip[:, None] + dash * ahead
        inside = ((reach >= border) & (reach <= side - border)).all(-1)
        # away from other paths all along the dash, and from the path's own past but for the last two dashes
        clear = (_distance(reach, taken) >= margin) & (_distance(tip[:, None] + dash / 2 * ahead, taken) >= margin)
        clear &= _distance(reach, own[:, : max(2 * step - 4, 0)]) >= margin
        free = inside & clear
        # of the free directions the first that has room for another dash behind it
        beyond = tip[:, None] + (2 * dash + gap) * ahead
        roomy = ((beyond >= border) & (beyond <= side - border)).all(-1) & (_distance(beyond, taken) >= margin)
        chosen = (free * (1 + roomy)).argmax(1)
        alive &= free[every, chosen]
        angle = angles[every, chosen]
        towards = ahead[every, chosen]
        ends[:, step, 0], ends[:, step, 1] = tip, tip + dash * towards
        own[:, 2 * step], own[:, 2 * step + 1] = tip + dash / 2 * towards, tip + dash * towards
        tip = tip + (dash + gap) * towards
        if not alive.any():
            break
    return ends, alive


def _distance(points: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Least distance (pictures, points) from each point to the points taken; infinite where there are none."""
    if taken.shape[1] == 0:
        return np.full(points.shape[:2], np.inf)
    apart = points[:, :, None].astype(np.float32) - taken[:, None].astype(np.float32)
    return np.sqrt(np.square(apart).sum(-1).min(-1))


def draw(dashes: np.ndarray, markers: np.ndarray, side: int, half: float, radius: float) -> np.ndarray:
    """Pictures (n, side, side) uint8 of dashes (n, dashes, 2 ends, 2) and discs (n, discs, 2), edges one pixel soft.

    half: half a dash's thickness; radius: of a disc. A dash with an infinite end is not drawn.
    """
    n = len(dashes)
    picture = np.zeros((n, side, side), np.float32)
    discs = np.stack([markers, markers], axis=2)
    for ends, thick in ((dashes, half), (discs, radius)):
        which, index = np.nonzero(np.isfinite(ends).all((2, 3)))
        a, b = ends[which, index, 0].astype(np.float32), ends[which, index, 1].astype(np.float32)
        middle, along = (a + b) / 2, b - a
        reach = math.ceil(float(np.sqrt(np.square(along).sum(-1)).max(initial=0)) / 2 + thick + 1)
        offsets = np.arange(-reach, reach + 1)
        rows = np.floor(middle[:, 0]).astype(np.int64)[:, None, None] + offsets[:, None]
        columns = np.floor(middle[:, 1]).astype(np.int64)[:, None, None] + offsets
        rows, columns = np.broadcast_arrays(rows, columns)
        centres = np.stack([rows, columns], axis=-1).astype(np.float32) + 0.5
        from_a = centres - a[:, None, None]
        length = np.maximum(np.square(along).sum(-1), 1e-9)
        share = np.clip(np.einsum("kijd,kd->kij", from_a, along) / length[:, None, None], 0, 1)
        distance = np.sqrt(np.square(from_a - share[..., None] * along[:, None, None]).sum(-1))
        shade = np.clip(thick + 0.5 - distance, 0, 1)
        inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side) & (shade > 0)
        picture_of = np.broadcast_to(which[:, None, None], rows.shape)
        np.maximum.at(picture, (picture_of[inside], rows[inside], columns[inside]), shade[inside])
    return np.rint(picture * 255).astype(np.uint8)


def pathfinder_archive(folder: str | Path, *, dev: Size = 0.1, test: Size = 0.1) -> Arrays:
    """The archive's pictures of one difficulty, such as pathfinder32/curv_contour_length_14, as sequences of pixels.

    folder: holds metadata/*.npy, text files whose lines are folder, file, number, label, ..., and the pictures they
    name. Empty picture files are left out (the archive has one). dev and test are cut, as the archive has no parts.
    """
    folder = Path(folder).expanduser()
    listings = sorted((folder / "metadata").glob("*.npy"), key=lambda path: (len(path.name), path.name))
    if not listings:
        raise UsageError(f"{folder}: no metadata/*.npy; give one difficulty's folder, such as curv_contour_length_14")
    from neoteny.tasks import formats

    try:
        from PIL import Image
    except ImportError as error:
        raise formats.missing_extra("pillow", "Pathfinder's pictures") from error
    pictures, labels = [], []
    for listing in listings:
        for line, text in enumerate(listing.read_text().splitlines(), 1):
            fields = text.split()
            try:
                path, label = folder / fields[0] / fields[1], int(fields[3])
            except (IndexError, ValueError) as error:
                raise UsageError(f"{listing}, line {line}: not folder, file, number and label") from error
            if not path.is_file():
                raise UsageError(f"{listing}, line {line}: there is no picture {path}")
            if path.stat().st_size:
                with Image.open(path) as image:
                    pictures.append(np.asarray(image.convert("L")))
                labels.append(label)
    shapes = {picture.shape for picture in pictures}
    if len(shapes) != 1:
        raise UsageError(f"{folder}: pictures of {len(shapes)} shapes; they must be of one")
    parts = {"train": (np.stack(pictures)[..., None], np.asarray(labels))}
    data = from_parts(
        f"pathfinder/{folder.name}", parts, classes=2, dev=dev, test=test, source=f"{folder}; {SOURCE}",
        class_names=ANSWERS,
    )  # fmt: skip
    return pixels(data)
