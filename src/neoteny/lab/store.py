"""The store: a directory of records and states, where a commit makes both visible together.

A pack's manifest names every file of its last commit with size and checksum; it is replaced by one atomic
rename. Files that no manifest names are leftovers of a commit that did not happen, and are removed at the
next one. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from neoteny.errors import UsageError
from neoteny.lab.configs import digest
from neoteny.lab.plan import FORMAT
from neoteny.lab.records import SCHEMA, TIMING_SCHEMA, Record, Timing, to_table
from neoteny.lab.rings import RingRows

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two processes out of one directory
    fcntl = None

PLAN = "plan.json"
MANIFEST = "manifest.json"
LOCK = ".lock"
_SEAL = "digest"
"""Key of plan.json and manifest.json that holds the checksum of all the rest."""


class StoreError(UsageError):
    """A file of a result directory is damaged, missing, or could not be written; the message names it."""


def _write_error(path: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"the disk is full: could not write {path}; free some space and go on with `neoteny resume`")
    return StoreError(f"could not write {path}: {error.strerror or error}")


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power, as `os.fsync` does for the content of a file."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _write_through(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    """Remove a file if that can be done; one that stays behind is named by nothing and does no harm."""
    with contextlib.suppress(OSError):
        path.unlink()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, even if the machine stops."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write_through(temporary, content)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        _remove(temporary)
        raise _write_error(path, error) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other neoteny processes out of this folder, which is made if it is not there.

    The lock lies on FOLDER/.lock and goes when this process ends, however it ends. StoreError if it is taken.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 (closed below, after the block that holds the lock)
    except OSError as error:
        raise _write_error(path, error) from error
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise StoreError(
                    f"{folder} is in use by another neoteny process ({holder}); wait for it, or stop it"
                ) from error
            except OSError as error:
                # A file system without locks (some network ones): two processes cannot be told apart there.
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise _write_error(path, error) from error
        with contextlib.suppress(OSError):
            # Who holds it, for the message above; a full disk must not stop a run for that. Not through the file's
            # buffer, which would be written once more, and fail once more, when the file is closed.
            file.truncate(0)
            os.write(file.fileno(), f"pid {os.getpid()}\n".encode())
        yield


def _sealed(content: Mapping[str, Any]) -> bytes:
    """A JSON object that carries the checksum of all the rest, so that damage is seen when it is read."""
    return to_json_bytes({**content, _SEAL: digest(content)})


def _unsealed(path: Path) -> dict[str, Any]:
    """What `_sealed` wrote; FileNotFoundError, or ValueError saying what is wrong with it."""
    content = json.loads(path.read_bytes())
    seal = content.pop(_SEAL, None) if isinstance(content, dict) else None
    if seal is None or seal != digest(content):
        raise ValueError("its checksum does not match")
    return content


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
class Block:
    """Rows [start, stop) of a ring, in a file; see `RingRows`."""

    ring: str
    since: int
    capacity: int
    start: int
    stop: int
    file: FileEntry


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
    blocks: tuple[Block, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    accepted: tuple[str, ...] = ()
    traceback: str | None = None

    @property
    def entries(self) -> tuple[FileEntry, ...]:
        """Every file of the commit."""
        blocks = [block.file for block in self.blocks]
        return (*self.records, *self.timings, *self.arrays, *blocks, *([] if self.state is None else [self.state]))

    def to_json(self) -> dict[str, Any]:
        """The content of manifest.json."""
        entry = vars
        blocks = [{**entry(block), "file": entry(block.file)} for block in self.blocks]
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
            **({"blocks": blocks} if blocks else {}),
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
            blocks=tuple(Block(**{**block, "file": FileEntry(**block["file"])}) for block in content.get("blocks", ())),
            machine=content["machine"],
            code=content["code"],
            data=content["data"],
            accepted=tuple(content["accepted"]),
            traceback=content["traceback"],
        )


def _npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays by name as an npz file: members a0, a1, ... and an index of their names and types.

    The index is JSON: NumPy's text arrays drop trailing NULs, and not every name can be a member's. Types
    that are not NumPy's own (bfloat16) are stored as unsigned integers; np.load would give back raw bytes.
    """
    members: dict[str, np.ndarray] = {}
    for i, (name, array) in enumerate(arrays.items()):
        if array.dtype.hasobject:
            raise TypeError(f"{name} holds Python objects; only numbers can be stored")
        foreign = array.dtype.isbuiltin == 2
        members[f"a{i}"] = array.view(f"u{array.dtype.itemsize}") if foreign else array
    index = json.dumps({"names": list(arrays), "types": [array.dtype.name for array in arrays.values()]})
    buffer = io.BytesIO()
    members["index"] = np.frombuffer(index.encode(), np.uint8)
    np.savez(buffer, **members)  # pyright: ignore[reportArgumentType] (no member is called allow_pickle)
    return buffer.getvalue()


def _npz_arrays(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        index = json.loads(file["index"].tobytes())
        return {
            name: _typed(file[f"a{i}"], kind)
            for i, (name, kind) in enumerate(zip(index["names"], index["types"], strict=True))
        }


def _typed(array: np.ndarray, kind: str) -> np.ndarray:
    if array.dtype.name == kind:
        return array
    import ml_dtypes  # registers bfloat16 and its kin with NumPy

    return array.view(np.dtype(getattr(ml_dtypes, kind)))


def _save_path(name: str) -> str:
    """Where `Save(name)` lies below its pack, whatever characters the name has."""
    return f"arrays/{urllib.parse.quote(name, safe=' =,+@()[]')}.npz"


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
        try:
            return Manifest.from_json(_unsealed(self.manifest_path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(f"could not read {self.manifest_path}: {error.strerror}") from error
        except ValueError as error:
            raise StoreError(f"{self.manifest_path} is damaged ({error}); {discard(self.directory)}") from error

    def verify(self, manifest: Manifest) -> None:
        """StoreError naming the first file that is damaged or gone and still needed.

        A finished pack needs its records and timings; one that is to go on needs everything.
        """
        needed = (*manifest.records, *manifest.timings)
        for entry in needed if manifest.status == "finished" else manifest.entries:
            self.read(entry)

    def read(self, entry: FileEntry) -> bytes:
        """A file of the last commit, its checksum checked; StoreError naming it if it is damaged or gone."""
        path = self.directory / entry.path
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StoreError(
                f"{path} is missing or unreadable ({error.strerror}); {discard(self.directory)}"
            ) from error
        if len(content) != entry.bytes or hashlib.sha256(content).hexdigest() != entry.sha256:
            raise StoreError(f"{path} is damaged (its checksum does not match); {discard(self.directory)}")
        return content

    def state(self, manifest: Manifest) -> dict[str, np.ndarray]:
        """The state of the last commit, by path, the rows of rings among it."""
        if manifest.state is None:
            raise StoreError(f"{self.manifest_path} names no state; {discard(self.directory)}")
        state = _npz_arrays(self.read(manifest.state))
        for block in manifest.blocks:
            # In the order they were written: newer rows lie over older ones.
            places = np.arange(block.start, block.stop) % block.capacity
            for path, rows in _npz_arrays(self.read(block.file)).items():
                name = f"{block.ring}{path}"
                if name not in state:
                    state[name] = np.zeros((rows.shape[0], block.capacity, *rows.shape[2:]), rows.dtype)
                state[name][:, places] = rows
        return state

    def records(self, manifest: Manifest) -> pa.Table:
        """All records of the last commit."""
        return self._tables(manifest.records, SCHEMA)

    def timings(self, manifest: Manifest) -> pa.Table:
        """All timings of the last commit."""
        return self._tables(manifest.timings, TIMING_SCHEMA)

    def _tables(self, entries: Sequence[FileEntry], schema: pa.Schema) -> pa.Table:
        tables = [parquet.read_table(pa.BufferReader(self.read(entry))) for entry in entries]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def saves(self, manifest: Manifest) -> tuple[str, ...]:
        """The names under which `Save` kept something."""
        return tuple(urllib.parse.unquote(PurePosixPath(entry.path).stem) for entry in manifest.arrays)

    def entry(self, manifest: Manifest, save: str) -> FileEntry:
        """The file that holds what `Save(save)` kept; StoreError naming the saves if there is none."""
        for entry in manifest.arrays:
            if entry.path == _save_path(save):
                return entry
        saves = ", ".join(self.saves(manifest)) or "none"
        raise StoreError(f"{self.directory} has no save {save!r}; it has {saves}")

    def arrays(self, manifest: Manifest, save: str) -> dict[str, np.ndarray]:
        """What `Save(save)` kept: path -> array (lanes, ...)."""
        return _npz_arrays(self.read(self.entry(manifest, save)))

    def _write(self, path: str, content: bytes) -> FileEntry:
        target = self.directory / path
        try:
            _write_through(target, content)
            _sync_folder(target.parent)
        except OSError as error:
            _remove(target)
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
        rings: Sequence[RingRows] = (),
        traceback: str | None = None,
    ) -> Manifest:
        """Make records and state visible together; without `state`, the last commit's stays, with its rings."""
        number = previous.commit + 1
        new_records, new_timings, new_arrays = previous.records, previous.timings, previous.arrays
        new_state, new_blocks = previous.state, previous.blocks
        try:
            if records:
                content = _parquet_bytes(to_table(records, SCHEMA))
                new_records += (self._write(f"records/{number:06d}.parquet", content),)
            if timings:
                content = _parquet_bytes(to_table(timings, TIMING_SCHEMA))
                new_timings += (self._write(f"timings/{number:06d}.parquet", content),)
            for name, arrays in saves.items():
                new_arrays += (self._write(_save_path(name), _npz_bytes(arrays)),)
            if state is not None:
                new_blocks = tuple(
                    block for place, ring in enumerate(rings) for block in self._blocks(previous, ring, number, place)
                )
                new_state = self._write(f"state/{number:06d}.npz", _npz_bytes(state))
        except StoreError:
            self._clean(previous)  # gives back the space; the next commit would remove it too
            raise
        manifest = Manifest(
            pack=previous.pack,
            commit=number,
            status=status,
            cursor=cursor,
            records=new_records,
            timings=new_timings,
            arrays=new_arrays,
            state=new_state,
            blocks=new_blocks,
            machine=previous.machine,
            code=previous.code,
            data=previous.data,
            accepted=previous.accepted,
            traceback=traceback,
        )
        write_atomic(self.manifest_path, _sealed(manifest.to_json()))
        self._clean(manifest)
        return manifest

    def _blocks(self, previous: Manifest, ring: RingRows, number: int, place: int) -> list[Block]:
        """The blocks of a ring: those of the commit before that hold rows still there, and one of the new rows."""
        kept = [
            block
            for block in previous.blocks
            if (block.ring, block.since) == (ring.name, ring.since) and block.stop > ring.oldest
        ]
        start, stop = max([ring.oldest, *(block.stop for block in kept)]), ring.written
        if kept and start == stop:
            return kept
        file = self._write(f"blocks/{number:06d}-{place}.npz", _npz_bytes(ring.read(start, stop)))
        return [*kept, Block(ring.name, ring.since, ring.capacity, start, stop, file)]

    def _clean(self, manifest: Manifest) -> None:
        """Remove files no manifest names: earlier states, and what an interrupted commit left."""
        kept = {entry.path for entry in manifest.entries} | {MANIFEST, LOCK}
        for path in self.directory.rglob("*"):
            if path.is_file() and path.relative_to(self.directory).as_posix() not in kept:
                _remove(path)


def _parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def discard(directory: Path) -> str:
    """What to do about a pack whose files are damaged, as the end of a message."""
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
        """The content of plan.json; StoreError if it is missing, damaged or of another format."""
        try:
            content = _unsealed(self.plan_path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreError(f"{self.plan_path} is not there; is this a result directory of neoteny?") from error
        except OSError as error:
            raise StoreError(f"could not read {self.plan_path}: {error.strerror}") from error
        except ValueError as error:
            raise StoreError(
                f"{self.plan_path} is damaged ({error}); restore it, or start again in another directory"
            ) from error
        if content["format"] != FORMAT:
            raise StoreError(
                f"{self.plan_path} has format {content['format']}; this version of neoteny reads format "
                f"{FORMAT}, so start again in another directory"
            )
        return content

    def is_foreign(self) -> bool:
        """Whether there is something that no neoteny run put there; results must not be mixed with it."""
        if not self.directory.is_dir():
            return self.directory.exists()
        own = (PLAN, LOCK)
        return not self.plan_path.exists() and any(
            path.name not in own and not (path.name.startswith(f".{PLAN}.") and path.suffix == ".tmp")
            for path in self.directory.iterdir()
        )

    def write_plan(self, content: Mapping[str, Any]) -> None:
        """Write plan.json atomically."""
        write_atomic(self.plan_path, _sealed(content))

    def pack(self, name: str) -> PackStore:
        """The store of one pack."""
        return PackStore(self.directory / "packs" / name)
