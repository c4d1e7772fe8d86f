"""The store: a directory of records and states, where a commit makes both visible together.

A pack's manifest names every file of its last commit with size and checksum; it is replaced by one atomic
rename. Files that no manifest names are leftovers of a commit that did not happen, and are removed at the
next one. Nothing is pickled.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from neoteny.errors import UsageError
from neoteny.lab.records import SCHEMA, TIMING_SCHEMA, Record, Timing, to_table

PLAN = "plan.json"
MANIFEST = "manifest.json"


class StoreError(UsageError):
    """A file of a result directory is damaged, missing, or could not be written; the message names it."""


def _write_error(path: Path, error: OSError) -> StoreError:
    if error.errno == errno.ENOSPC:
        return StoreError(
            f"the disk is full: could not write {path}; free some space and resume, the last commit is intact"
        )
    return StoreError(f"could not write {path}: {error.strerror or error}; the last commit is intact")


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, even if the machine stops."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _write_error(path, error) from error


def read_json(path: Path) -> Any:
    """A JSON file; StoreError naming it if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise StoreError(f"{path} is not there; is this a result directory of neoteny?") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{path} is damaged ({error}); restore it, or start again in another directory"
        ) from error
    except OSError as error:
        raise StoreError(f"could not read {path}: {error.strerror}") from error


def to_json_bytes(content: Any) -> bytes:
    """Readable JSON, ending in a newline."""
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


@dataclass(frozen=True)
class FileEntry:
    """A file of a commit: its path below the pack, bytes and SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The last commit of a pack.

    status: running, finished or failed. cursor: (event, updates into it). machine: what the bits depend on.
    code: file -> fingerprint of the sources. data: data set -> digest. accepted: differences a person
    accepted when resuming.
    """

    pack: str
    commit: int
    status: str
    cursor: tuple[int, int]
    records: tuple[FileEntry, ...] = ()
    timings: tuple[FileEntry, ...] = ()
    arrays: tuple[FileEntry, ...] = ()
    state: FileEntry | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    accepted: tuple[str, ...] = ()
    traceback: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The content of manifest.json."""
        entry = vars
        return {
            **{name: getattr(self, name) for name in ("pack", "commit", "status", "traceback")},
            "cursor": list(self.cursor),
            "records": [entry(e) for e in self.records],
            "timings": [entry(e) for e in self.timings],
            "arrays": [entry(e) for e in self.arrays],
            "state": None if self.state is None else entry(self.state),
            "machine": dict(self.machine),
            "code": dict(self.code),
            "data": dict(self.data),
            "accepted": list(self.accepted),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Manifest:
        """The manifest that `to_json` wrote."""

        def entries(name: str) -> tuple[FileEntry, ...]:
            return tuple(FileEntry(**entry) for entry in content[name])

        return cls(
            pack=content["pack"],
            commit=content["commit"],
            status=content["status"],
            cursor=(content["cursor"][0], content["cursor"][1]),
            records=entries("records"),
            timings=entries("timings"),
            arrays=entries("arrays"),
            state=None if content["state"] is None else FileEntry(**content["state"]),
            machine=content["machine"],
            code=content["code"],
            data=content["data"],
            accepted=tuple(content["accepted"]),
            traceback=content["traceback"],
        )


def _npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        **{"names": np.array(list(arrays)), **{f"a{i}": array for i, array in enumerate(arrays.values())}},
    )
    return buffer.getvalue()


def _npz_arrays(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {str(name): file[f"a{i}"] for i, name in enumerate(file["names"])}


class PackStore:
    """The directory of one pack."""

    def __init__(self, directory: Path):
        self.directory = directory

    @property
    def manifest_path(self) -> Path:
        """Where the manifest lies."""
        return self.directory / MANIFEST

    def manifest(self) -> Manifest | None:
        """The last commit, None before the first."""
        if not self.manifest_path.exists():
            return None
        try:
            return Manifest.from_json(read_json(self.manifest_path))
        except (KeyError, TypeError, IndexError) as error:
            raise StoreError(
                f"{self.manifest_path} is damaged (no valid {error}); {_discard(self.directory)}"
            ) from error

    def read(self, entry: FileEntry) -> bytes:
        """A file of the last commit, its checksum checked; StoreError naming it if it is damaged or gone."""
        path = self.directory / entry.path
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StoreError(
                f"{path} is missing or unreadable ({error.strerror}); {_discard(self.directory)}"
            ) from error
        if len(content) != entry.bytes or hashlib.sha256(content).hexdigest() != entry.sha256:
            raise StoreError(f"{path} is damaged (its checksum does not match); {_discard(self.directory)}")
        return content

    def state(self, manifest: Manifest) -> dict[str, np.ndarray]:
        """The state of the last commit, by path."""
        if manifest.state is None:
            raise StoreError(f"{self.manifest_path} names no state; {_discard(self.directory)}")
        return _npz_arrays(self.read(manifest.state))

    def records(self, manifest: Manifest) -> pa.Table:
        """All records of the last commit."""
        return self._tables(manifest.records, SCHEMA)

    def timings(self, manifest: Manifest) -> pa.Table:
        """All timings of the last commit."""
        return self._tables(manifest.timings, TIMING_SCHEMA)

    def _tables(self, entries: Sequence[FileEntry], schema: pa.Schema) -> pa.Table:
        tables = [parquet.read_table(pa.BufferReader(self.read(entry))) for entry in entries]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def arrays(self, manifest: Manifest, save: str) -> dict[str, np.ndarray]:
        """What `Save(save)` kept: path -> array (lanes, ...)."""
        for entry in manifest.arrays:
            if entry.path == f"arrays/{save}.npz":
                return _npz_arrays(self.read(entry))
        saves = ", ".join(Path(entry.path).stem for entry in manifest.arrays) or "none"
        raise StoreError(f"{self.directory} has no save {save!r}; it has {saves}")

    def _write(self, path: str, content: bytes) -> FileEntry:
        target = self.directory / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            target.unlink(missing_ok=True)
            raise _write_error(target, error) from error
        return FileEntry(path, len(content), hashlib.sha256(content).hexdigest())

    def commit(
        self,
        previous: Manifest,
        *,
        status: str,
        cursor: tuple[int, int],
        state: Mapping[str, np.ndarray] | None,
        records: Sequence[Record],
        timings: Sequence[Timing],
        saves: Mapping[str, Mapping[str, np.ndarray]],
        traceback: str | None = None,
    ) -> Manifest:
        """Make records and state visible together. A failed pack keeps the state of its last commit (`state`
        None).
        """
        number = previous.commit + 1
        new_records, new_timings, new_arrays, new_state = (
            previous.records,
            previous.timings,
            previous.arrays,
            previous.state,
        )
        if records:
            new_records += (
                self._write(f"records/{number:06d}.parquet", _parquet_bytes(to_table(records, SCHEMA))),
            )
        if timings:
            table = to_table(timings, TIMING_SCHEMA)
            new_timings += (self._write(f"timings/{number:06d}.parquet", _parquet_bytes(table)),)
        for name, arrays in saves.items():
            new_arrays += (self._write(f"arrays/{name}.npz", _npz_bytes(arrays)),)
        if state is not None:
            new_state = self._write(f"state/{number:06d}.npz", _npz_bytes(state))
        manifest = Manifest(
            pack=previous.pack,
            commit=number,
            status=status,
            cursor=cursor,
            records=new_records,
            timings=new_timings,
            arrays=new_arrays,
            state=new_state,
            machine=previous.machine,
            code=previous.code,
            data=previous.data,
            accepted=previous.accepted,
            traceback=traceback,
        )
        write_atomic(self.manifest_path, to_json_bytes(manifest.to_json()))
        self._clean(manifest)
        return manifest

    def _clean(self, manifest: Manifest) -> None:
        """Remove files no manifest names: earlier states, and what an interrupted commit left."""
        entries = (
            *manifest.records,
            *manifest.timings,
            *manifest.arrays,
            *([manifest.state] if manifest.state else []),
        )
        kept = {entry.path for entry in entries} | {MANIFEST}
        for path in self.directory.rglob("*"):
            if path.is_file() and str(path.relative_to(self.directory)) not in kept:
                path.unlink(missing_ok=True)


def _parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _discard(directory: Path) -> str:
    return f"remove {directory} to compute this pack again (other packs are kept), or restore the file"


class Store:
    """A result directory."""

    def __init__(self, directory: Path):
        self.directory = Path(directory)

    @property
    def plan_path(self) -> Path:
        """Where the plan lies."""
        return self.directory / PLAN

    def plan(self) -> dict[str, Any]:
        """The content of plan.json."""
        return read_json(self.plan_path)

    def write_plan(self, content: Mapping[str, Any]) -> None:
        """Write plan.json atomically."""
        write_atomic(self.plan_path, to_json_bytes(content))

    def pack(self, name: str) -> PackStore:
        """The store of one pack."""
        return PackStore(self.directory / "packs" / name)

    def free_bytes(self) -> int:
        """Free space on the disk the directory is on, or will be."""
        existing = next(
            p for p in (self.directory.absolute(), *self.directory.absolute().parents) if p.exists()
        )
        return shutil.disk_usage(existing).free
