"""Data sets by name: what the command line accepts, and what `neoteny doctor` finds on this machine."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from neoteny.errors import UsageError
from neoteny.tasks import images, places, sequences
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.places import DataSet


@dataclass(frozen=True)
class Entry:
    """A known data set and the function that loads it."""

    data: DataSet
    load: Callable[[], Arrays]


@dataclass(frozen=True)
class Finding:
    """Whether a known data set is on this machine. where: the file, folder or cache; empty if missing.

    get: what to do to have it; terms: licence and whom to cite.
    """

    name: str
    title: str
    found: bool
    where: str
    get: str
    terms: str


KNOWN: dict[str, Entry] = {
    entry.data.name: entry
    for entry in (
        Entry(places.MNIST_DIGITS, images.mnist_digits),
        Entry(places.DIGITS, images.digits),
        Entry(places.FASHION_MNIST, images.fashion_mnist),
        Entry(places.MNIST, images.mnist),
        Entry(places.CIFAR10, images.cifar10),
        Entry(places.CIFAR100, images.cifar100),
        Entry(places.CINIC10, images.cinic10),
    )
}


def _load_hub(text: str) -> Arrays:
    name, _, config = text.partition(":")
    return images.hub(name, config or None)


def _load_pixels(name: str) -> Arrays:
    return sequences.pixels(load(name))


def _load_permuted_pixels(name: str) -> Arrays:
    return sequences.pixels(load(name), permutation=1)


def _load_imdb(length: str) -> Arrays:
    if not length.isdecimal():
        raise UsageError(f"imdb:{length}: {length!r} is no number of bytes; write imdb:4096 for instance")
    return sequences.imdb(int(length))


# "prefix:ARGUMENT" -> the loader, and how the argument is written in messages
_PREFIXES: dict[str, tuple[Callable[[str], Arrays], str]] = {
    "npz": (images.npz, "PATH"),
    "parquet": (images.parquet, "PATH"),
    "folder": (images.image_folder, "PATH"),
    "hub": (_load_hub, "NAME[:CONFIG]"),
    "pixels": (_load_pixels, "DATA"),
    "permuted_pixels": (_load_permuted_pixels, "DATA"),
    "imdb": (_load_imdb, "BYTES"),
    "listops": (sequences.listops_tsv, "FOLDER"),
    "aan": (sequences.aan, "FOLDER"),
    "pathfinder": (sequences.pathfinder_archive, "FOLDER"),
}


def names() -> tuple[str, ...]:
    """Everything `load` accepts, for help texts: the known names, npz:PATH, ..., hub:NAME[:CONFIG]."""
    return (*KNOWN, *(f"{prefix}:{argument}" for prefix, (_, argument) in _PREFIXES.items()))


def find(name: str) -> Finding:
    """Where a known data set is on this machine, by names alone; nothing is read, imported or downloaded."""
    if name not in KNOWN:
        raise _unknown(name)
    data = KNOWN[name].data
    where = ""
    if (place := places.locate(data)) is not None:
        where = f"{place.path} ({place.format.title})"
    elif data.packaged is not None and (folder := data.packaged.folder()) is not None:
        where = str(folder)
    elif data.hub is not None and (cached := data.hub.cached()) is not None:
        where = f"{cached} (hub:{data.hub.name})"
    return Finding(name, data.title, bool(where), where, data.get, f"{data.terms}: {data.citation}")


def load(name: str) -> Arrays:
    """The data set with this name and its default splits: a known name, or one of the forms with a path.

    Raises `UsageError` for an unknown name, naming the known ones and the nearest.
    """
    if name in KNOWN:
        return KNOWN[name].load()
    prefix, colon, argument = name.partition(":")
    if not colon or prefix not in _PREFIXES:
        raise _unknown(name)
    if not argument:
        raise UsageError(f"{name!r}: nothing after the colon; write {prefix}:{_PREFIXES[prefix][1]}")
    return _PREFIXES[prefix][0](argument)


def _unknown(name: str) -> UsageError:
    if name and Path(name).exists():
        forms = " or ".join(f"{prefix}:{name}" for prefix in ("npz", "parquet", "folder"))
        return UsageError(f"{name} is a path; say what it holds: {forms}")
    near = difflib.get_close_matches(name.lower(), [*KNOWN, *_PREFIXES], n=1, cutoff=0.5)
    nearest = [each for each in names() if near and each.partition(":")[0] == near[0]]
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return UsageError(f"no data set called {name!r}; {hint}Known: {', '.join(names())}")
