"""Byte-level text: IMDB reviews (Maas et al. 2011) and pairs of articles for retrieval (AAN; Radev et al. 2013).

As in the Long Range Arena (Tay et al. 2021): a symbol is a byte, texts are cut at `length` bytes and padded.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from neoteny.errors import UsageError
from neoteny.tasks import places
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.images import Size, shuffled
from neoteny.tasks.sequences.rows import BYTES, byte_rows, from_parts, padded_rows, positive

IMDB_SOURCE = "Large Movie Review Dataset; Maas et al. 2011; research use, cite"
IMDB_FILE = "imdb_bytes.npz"
IMDB_FOLDER = "aclImdb"
IMDB_HUB = "stanfordnlp/imdb"
AAN_SOURCE = "ACL Anthology Network; Radev et al. 2013, Tay et al. 2021 (Long Range Arena)"
SENTIMENTS = ("negative", "positive")


def imdb(
    length: int = 4_096, *, examples: int | None = None, dev: Size = 0.1, path: str | Path | None = None
) -> Arrays:
    """IMDB reviews as bytes: inputs (n, length) int16 tokens (byte + 1, 0 is padding), labels 0 negative, 1 positive.

    path: imdb_bytes.npz, or the published folder aclImdb. Without it: NEOTENY_DATA/imdb_bytes.npz, then
    NEOTENY_DATA/aclImdb, then stanfordnlp/imdb of the Hugging Face hub through `datasets`. examples: the first so many
    rows of each published part, in a fixed random order; None is all 25,000 + 25,000. dev is cut from train.
    """
    positive(length, "length")
    found = _locate() if path is None else Path(path).expanduser()
    return _imdb(found, length, None if examples is None else positive(examples, "examples"), dev)


def imdb_place() -> Path | None:
    """Where `imdb` finds the reviews on this machine; None if it would ask the hub."""
    return _locate()


def _locate() -> Path | None:
    root = places.data_folder()
    if root is None:
        return None
    return next((root / name for name in (IMDB_FILE, IMDB_FOLDER) if (root / name).exists()), None)


@functools.lru_cache(maxsize=4)
def _imdb(path: Path | None, length: int, examples: int | None, dev: Size) -> Arrays:
    if path is None:
        read, where = _from_hub(), f"hub:{IMDB_HUB}"
    elif path.is_dir():
        read, where = _from_folder(path), str(path)
    else:
        read, where = _from_npz(path), str(path)
    parts = {}
    for split, (flat, offsets, labels) in read.items():
        chosen = shuffled(np.arange(len(labels)))[:examples]
        starts = offsets[chosen]
        tokens = padded_rows(flat, starts, offsets[chosen + 1] - starts, length)
        # bytes first, then + 1 where there is one: the flat array is never widened
        real = np.arange(length) < np.minimum(offsets[chosen + 1] - starts, length)[:, None]
        parts[split] = (tokens.astype(np.int16) + real, labels[chosen])
    name = f"imdb-{length}" + ("" if examples is None else f"-{examples}")
    return from_parts(
        name, parts, classes=2, tokens=BYTES, dev=dev, source=f"{where}; {IMDB_SOURCE}", class_names=SENTIMENTS
    )


Texts = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
"""split -> (bytes of all texts, offsets (n + 1,), labels (n,))."""


def _from_npz(path: Path) -> Texts:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {
                split: (archive[f"x_{split}"], archive[f"off_{split}"], archive[f"y_{split}"])
                for split in ("train", "test")
            }
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{path}: not an archive of reviews ({error}); it needs x_train (bytes), off_train (offsets) and y_train, "
            "and the same for test"
        ) from error


def _from_folder(folder: Path) -> Texts:
    texts: Texts = {}
    for split in ("train", "test"):
        read, labels = [], []
        for label, name in enumerate(("neg", "pos")):
            files = sorted((folder / split / name).glob("*.txt"))
            if not files:
                raise UsageError(f"{folder / split / name}: no reviews (*.txt); give the published folder aclImdb")
            read += [file.read_bytes() for file in files]
            labels += [label] * len(files)
        texts[split] = _joined(read, np.asarray(labels))
    return texts


def _from_hub() -> Texts:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UsageError(
            f"imdb: no {IMDB_FILE} or {IMDB_FOLDER} in {places.VARIABLE}, and no package `datasets` to ask the hub "
            "with; set the variable, or pip install 'neoteny[vision]'"
        ) from error
    texts: Texts = {}
    for split in ("train", "test"):
        try:
            rows = load_dataset(IMDB_HUB, split=split)
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"imdb: not in {places.VARIABLE}, and the hub's {IMDB_HUB} cannot be had ({type(error).__name__}); "
                f"set {places.VARIABLE} to a folder with {IMDB_FILE} or {IMDB_FOLDER}"
            ) from error
        texts[split] = _joined([text.encode() for text in rows["text"]], np.asarray(rows["label"]))
    return texts


def _joined(texts: list[bytes], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    offsets = np.r_[0, np.cumsum([len(text) for text in texts])]
    return np.frombuffer(b"".join(texts), np.uint8), offsets, labels


AAN_FILES = {"train": "new_aan_pairs.train.tsv", "dev": "new_aan_pairs.eval.tsv", "test": "new_aan_pairs.test.tsv"}


def aan(folder: str | Path, length: int = 4_000) -> Arrays:
    """Pairs of articles, whether one cites the other: the archive's new_aan_pairs.{train,eval,test}.tsv.

    A line is label, two identifiers, two texts. inputs: (n, 2, length) int16 tokens; labels 0 and 1. UsageError names a
    file or line that does not fit.
    """
    folder, parts = Path(folder).expanduser(), {}
    for split, file in AAN_FILES.items():
        if (folder / file).is_file():
            parts[split] = _pairs(folder / file, positive(length, "length"))
    if "train" not in parts:
        raise UsageError(f"{folder}: no {AAN_FILES['train']}; give the folder with the archive's pairs")
    return from_parts("aan", parts, classes=2, tokens=BYTES, source=f"{folder}; {AAN_SOURCE}")


def _pairs(path: Path, length: int) -> tuple[np.ndarray, np.ndarray]:
    texts: list[bytes] = []
    labels = []
    with path.open(newline="\n", encoding="utf-8") as file:
        # texts hold quotation marks of their own: only tabs and ends of lines mean something
        for line, row in enumerate((text.rstrip("\n").split("\t") for text in file), 1):
            if len(row) != 5:
                raise UsageError(f"{path}, line {line}: {len(row)} columns; label, id, id, text, text are expected")
            try:
                labels.append(int(float(row[0])))
            except ValueError as error:
                raise UsageError(f"{path}, line {line}: {row[0]!r} is no label") from error
            texts += [row[3].encode()[:length], row[4].encode()[:length]]
    return byte_rows(texts, length).reshape(-1, 2, length), np.asarray(labels)
