"""Records in the style of RL Unplugged (arXiv:2006.13888): TFRecord files of single transitions, gzipped or not.

Every record is a `tf.train.Example` with o_t, a_t, r_t, d_t, o_tp1, a_tp1 and episode_id. The published files are
shuffled, so the transitions of a file are a sample of their episodes and no whole ones. Read here without TensorFlow.
"""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from neoteny.errors import UsageError
from neoteny.tasks.transitions.data import NO_ACTION, TransitionSet

FIELDS = ("o_t", "a_t", "r_t", "d_t", "o_tp1", "a_tp1", "episode_id")
"""What every record holds; d_t is the discount after the action, 0 at termination."""

_PNG = b"\x89PNG"
_GZIP = b"\x1f\x8b"


def read_unplugged(
    files: Sequence[Path | str], name: str, actions: int, *, shape: tuple[int, ...] = (), limit: int | None = None
) -> TransitionSet:
    """A loose set of the transitions of these files, at most `limit` of each, sorted by episode.

    shape: of one observation, where it is stored as numbers; PNG images are stacked along the last axis. UsageError for
    files that are no such records.
    """
    records: list[dict[str, np.ndarray]] = []
    for file in files:
        if not Path(file).is_file():
            raise UsageError(f"there is no file {file}")
        for position, record in enumerate(islice(_examples(Path(file)), limit)):
            missing = [field for field in FIELDS if field not in record]
            if missing:
                raise UsageError(f"{file}: record {position} lacks {', '.join(missing)}")
            records.append({field: _value(record[field], shape if field.startswith("o_") else ()) for field in FIELDS})
    if not records:
        raise UsageError(f"{name}: the files hold no records")
    found = {field: np.stack([record[field] for record in records]) for field in FIELDS}
    order = np.argsort(found["episode_id"], kind="stable")
    found = {field: values[order] for field, values in found.items()}
    _, episode = np.unique(found["episode_id"], return_inverse=True)
    starts = np.concatenate([[True], episode[1:] != episode[:-1]])
    step = np.arange(len(episode)) - np.maximum.accumulate(np.where(starts, np.arange(len(episode)), 0))
    terminated = found["d_t"] == 0
    action, following = found["a_t"].astype(np.int32), found["a_tp1"].astype(np.int32)
    following = np.where(terminated, NO_ACTION, following).astype(np.int32)
    return TransitionSet(
        name,
        obs=found["o_t"],
        chosen_action=action,
        executed_action=action,
        reward=found["r_t"].astype(np.float32),
        next_obs=found["o_tp1"],
        terminated=terminated,
        truncated=np.zeros(len(episode), bool),
        next_chosen_action=following,
        next_executed_action=following,
        episode=episode.astype(np.int32),
        step=step.astype(np.int32),
        actions=actions,
        about={"files": [str(file) for file in files]},
        loose=True,
    )


def _value(values: list[bytes] | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values.reshape(shape) if shape or values.size == 1 else values
    if not all(value.startswith(_PNG) for value in values):
        raise UsageError("an observation is stored as bytes that are no PNG image")
    try:
        from PIL import Image
    except ImportError:
        raise UsageError("records with images need pillow: pip install 'neoteny[vision]'") from None
    frames = [np.asarray(Image.open(io.BytesIO(value)).convert("L")) for value in values]
    return np.stack(frames, axis=-1)


def _examples(file: Path) -> Iterator[dict[str, list[bytes] | np.ndarray]]:
    """Every record of a TFRecord file as {feature: values}."""
    with open(file, "rb") as raw:
        zipped = raw.read(2) == _GZIP
    with gzip.open(file, "rb") if zipped else open(file, "rb") as stream:
        while header := stream.read(12):
            if len(header) < 12:
                raise UsageError(f"{file} ends within a record; it is damaged, or no TFRecord file")
            (length,) = struct.unpack("<Q", header[:8])
            if length > 2**31:
                raise UsageError(f"{file} is no TFRecord file: a record of {length:,} bytes")
            content = stream.read(length + 4)[:-4]
            if len(content) < length:
                raise UsageError(f"{file} ends within a record; it is damaged, or no TFRecord file")
            yield dict(_features(content))


def _features(example: bytes) -> Iterator[tuple[str, list[bytes] | np.ndarray]]:
    """The features of a serialised tf.train.Example."""
    for features in _messages(example).get(1, ()):
        for entry in _messages(features).get(1, ()):
            pair = _messages(entry)
            yield pair[1][0].decode(), _feature(pair[2][0])


def _feature(feature: bytes) -> list[bytes] | np.ndarray:
    kinds = _messages(feature)
    if 1 in kinds:
        return list(_messages(kinds[1][0]).get(1, ()))
    if 2 in kinds:
        packed = b"".join(_messages(kinds[2][0]).get(1, ()))
        return np.frombuffer(packed, "<f4").astype(np.float32)
    packed = b"".join(_messages(kinds[3][0]).get(1, ())) if 3 in kinds else b""
    numbers, place = [], 0
    while place < len(packed):
        number, place = _varint(packed, place)
        numbers.append(number - 2**64 if number >= 2**63 else number)
    return np.array(numbers, np.int64)


def _messages(data: bytes) -> Mapping[int, list[bytes]]:
    """Field number -> the raw contents of a protocol buffer message; numbers stay encoded."""
    found: dict[int, list[bytes]] = {}
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind, start = tag & 7, place
        if kind == 0:
            _, place = _varint(data, place)
        elif kind == 2:
            size, start = _varint(data, place)
            place = start + size
        elif kind in (1, 5):
            place = start + (8 if kind == 1 else 4)
        else:
            raise UsageError("a record is no protocol buffer; the file is damaged, or no TFRecord file")
        found.setdefault(tag >> 3, []).append(data[start:place])
    return found


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place after it."""
    number, shift = 0, 0
    while True:
        if place >= len(data):
            raise UsageError("a record ends within a number; the file is damaged, or no TFRecord file")
        byte = data[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place
