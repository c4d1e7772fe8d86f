"""The store: commits are whole or did not happen, damage is seen and named, arrays come back as they went."""

import builtins
import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from neoteny.lab import store as store_module
from neoteny.lab.plan import FORMAT
from neoteny.lab.records import SCHEMA, TIMING_SCHEMA, Record, Timing, to_table
from neoteny.lab.store import Manifest, PackStore, Store, StoreError, locked, write_atomic


def record(step):
    return Record("run", "", 0, 0, 0, "train", 1, step, 0, "accuracy", "", step / 7, 1e9, 0.0, 0.0, 0.0)


TIMING = Timing("pack", 1, "train", 10, 0.5, 1, 0.25)


def commit(pack, previous, step, saves=None, status="running"):
    return pack.commit(
        previous,
        status=status,
        cursor=(step, 0),
        state={"state.weights": np.full(4, step, np.float32), "clock": np.int32(step)},
        records=[record(step)],
        timings=[TIMING],
        saves=saves or {},
    )


@pytest.fixture
def pack(tmp_path):
    return Store(tmp_path / "results").pack("pack")


@pytest.fixture
def second(pack):
    """The manifest of the second of two commits."""
    first = commit(pack, Manifest("pack", 0, "running", (0, 0)), 1, {"early": {"w": np.arange(3)}})
    return commit(pack, first, 2)


def named(pack):
    """Every file of the pack, below its directory."""
    return sorted(p.relative_to(pack.directory).as_posix() for p in pack.directory.rglob("*") if p.is_file())


class TestCommits:
    def test_records_accumulate_and_the_state_is_the_last(self, pack, second):
        manifest = pack.manifest()
        assert manifest == second
        assert (manifest.commit, manifest.cursor, manifest.status) == (2, (2, 0), "running")
        assert pack.records(manifest).equals(to_table([record(1), record(2)], SCHEMA))
        assert pack.timings(manifest).equals(to_table([TIMING, TIMING], TIMING_SCHEMA))
        assert pack.state(manifest)["clock"] == 2
        np.testing.assert_array_equal(pack.arrays(manifest, "early")["w"], [0, 1, 2])

    def test_earlier_states_and_leftovers_are_removed(self, pack, second):
        for path in ("records/000003.parquet", "state/000001.npz", ".manifest.json.77.tmp", "arrays/x.npz"):
            (pack.directory / path).write_bytes(b"left by a commit that did not happen")
        with locked(pack.directory):
            third = commit(pack, second, 3)
        assert named(pack) == [
            ".lock",
            "arrays/early.npz",
            "manifest.json",
            *(f"records/00000{i}.parquet" for i in (1, 2, 3)),
            "state/000003.npz",
            *(f"timings/00000{i}.parquet" for i in (1, 2, 3)),
        ]
        pack.verify(third)

    def test_failure_keeps_the_last_state_to_go_on_from(self, pack, second):
        pack.commit(
            second,
            status="failed",
            cursor=second.cursor,
            state=None,
            records=(),
            timings=(),
            saves={},
            traceback="Traceback: no",
        )
        manifest = pack.manifest()
        assert (manifest.status, manifest.traceback, manifest.state) == (
            "failed",
            "Traceback: no",
            second.state,
        )
        assert pack.state(manifest)["clock"] == 2

    def test_without_a_commit(self, pack):
        assert pack.manifest() is None

    def test_unknown_saves_are_named(self, pack, second):
        with pytest.raises(StoreError, match="has no save 'late'; it has early"):
            pack.arrays(second, "late")

    @pytest.mark.parametrize("name", ["task 1/net", "../../../up", "..", "ä", "a%2Fb", ".hidden", "a\\b", "x.npz"])
    def test_saves_may_have_any_name(self, pack, second, name):
        third = commit(pack, second, 3, {name: {"w": np.arange(2)}})
        assert pack.saves(third) == ("early", name)
        np.testing.assert_array_equal(pack.arrays(third, name)["w"], [0, 1])
        outside = [p for p in pack.directory.parents[2].rglob("*.npz") if pack.directory / "arrays" != p.parent]
        assert [p.name for p in outside] == ["000003.npz"]


class Failing:
    """Lets some calls through and raises an OSError at the next one."""

    def __init__(self, function, calls, number):
        self.function, self.left, self.number = function, calls, number
        self.reached = False

    def __call__(self, *arguments, **options):
        self.left -= 1
        if self.left < 0 and not self.reached:
            self.reached = True
            self.fail(*arguments, **options)
        return self.function(*arguments, **options)

    def fail(self, *arguments, **options):
        raise OSError(self.number, os.strerror(self.number))


class HalfWritten(Failing):
    """As `open`, but half the content of one file is written before the disk is full."""

    def fail(self, path, mode="r", *rest, **options):
        Path(path).write_bytes(b"half")
        super().fail()


class TestAtomicity:
    """A commit of records, timings, a save and a state makes, with the manifest, 5 files durable."""

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
    @pytest.mark.parametrize("function", ["fsync", "replace", "open"])
    def test_an_error_at_any_moment_leaves_the_last_commit(self, pack, second, monkeypatch, function, number):
        held = pack.directory.parent / "held"
        shutil.copytree(pack.directory, held)
        for calls in range(30):
            shutil.rmtree(pack.directory)
            shutil.copytree(held, pack.directory)
            with monkeypatch.context() as patch:
                if function == "open":
                    failing = HalfWritten(builtins.open, calls, number)
                    patch.setattr(store_module, "open", failing, raising=False)
                else:
                    failing = Failing(getattr(os, function), calls, number)
                    patch.setattr(os, function, failing)
                if not failing_commit(pack, second, failing):
                    break
            manifest = pack.manifest()
            assert manifest.commit in (2, 3)  # 3 where the folder could not be synced after the renaming
            pack.verify(manifest)
            assert pack.state(manifest)["clock"] == manifest.commit
            after = commit(pack, manifest, 4, {"late": {"w": np.arange(5)}} if manifest.commit == 2 else None)
            pack.verify(after)
            assert set(named(pack)) == {"manifest.json", *(entry.path for entry in after.entries)}
        assert calls == {"fsync": 10, "replace": 1, "open": 5}[function]

    def test_the_disk_being_full_is_said(self, pack, second, monkeypatch):
        monkeypatch.setattr(os, "fsync", Failing(os.fsync, 2, errno.ENOSPC))
        with pytest.raises(StoreError, match=r"the disk is full: could not write .*/timings/000003\.parquet; free"):
            commit(pack, second, 3)
        assert not any("000003" in name for name in named(pack))

    def test_a_killed_process_leaves_the_last_commit(self, pack, second):
        code = (
            "import os, sys\n"
            "from neoteny.lab.store import write_atomic\n"
            "from pathlib import Path\n"
            "os.replace = lambda *_: os._exit(9)\n"
            "write_atomic(Path(sys.argv[1]), b'new')"
        )
        path = pack.directory / "manifest.json"
        assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 9
        assert pack.manifest() == second
        commit(pack, second, 3)
        assert not [name for name in named(pack) if name.endswith(".tmp")]

    def test_a_parent_that_is_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match=r"could not write .*/file/x/y: Not a directory"):
            write_atomic(tmp_path / "file" / "x" / "y", b"")


def failing_commit(pack, previous, failing):
    """Try; whether it failed."""
    expected = contextlib.suppress(StoreError)
    with expected:
        commit(pack, previous, 3, {"late": {"w": np.arange(5)}})
        assert not failing.reached, "the error was swallowed"
    return failing.reached


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "one bit": lambda path: path.write_bytes(path.read_bytes()[:40] + b"\xff" + path.read_bytes()[41:]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES)
    @pytest.mark.parametrize(
        "file", ["state/000002.npz", "records/000001.parquet", "timings/000002.parquet", "arrays/early.npz"]
    )
    def test_of_any_file_is_named(self, pack, second, file, damage):
        others = {name: (pack.directory / name).read_bytes() for name in named(pack) if name != file}
        DAMAGES[damage](pack.directory / file)
        with pytest.raises(StoreError, match=f"{file} is (damaged|missing).*; remove .*/pack to compute this pack"):
            pack.verify(pack.manifest())
        readers = {
            "state": pack.state,
            "records": pack.records,
            "timings": pack.timings,
            "arrays": lambda m: pack.arrays(m, "early"),
        }
        for kind, reader in readers.items():
            if file.startswith(kind):
                with pytest.raises(StoreError, match=file):
                    reader(second)
            else:
                reader(second)
        assert others == {name: (pack.directory / name).read_bytes() for name in others}

    def test_a_finished_pack_needs_its_state_no_more(self, pack, second):
        finished = commit(pack, second, 3, status="finished")
        (pack.directory / finished.state.path).unlink()
        pack.verify(pack.manifest())
        (pack.directory / "records/000001.parquet").unlink()
        with pytest.raises(StoreError, match="records/000001"):
            pack.verify(pack.manifest())

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: "",
            lambda text: "[]",
            lambda text: "7",
            lambda text: "{}",
            lambda text: text[:-30],
            lambda text: text.replace("running", "finished"),
            lambda text: text.replace('"commit": 2', '"commit": 3'),
            lambda text: text.replace('"cursor"', '"curser"'),
            lambda text: "\ud800".encode("utf-8", "surrogatepass").decode("latin1"),
        ],
    )
    def test_of_the_manifest_is_named(self, pack, second, change):
        text = pack.manifest_path.read_text()
        assert change(text) != text
        pack.manifest_path.write_text(change(text), encoding="latin1")
        with pytest.raises(StoreError, match=r"manifest\.json is damaged \(.*\); remove .*/pack to compute"):
            pack.manifest()

    def test_of_the_plan_is_named(self, tmp_path):
        store = Store(tmp_path)
        store.write_plan({"format": FORMAT, "runs": {}})
        assert store.plan() == {"format": FORMAT, "runs": {}}
        text = store.plan_path.read_text()
        for damaged in ("", "[]", "{}", "null", text[:-9], text.replace("runs", "rums"), "\xff"):
            store.plan_path.write_text(damaged, encoding="latin1")
            with pytest.raises(StoreError, match=r"plan\.json is damaged \(.*\); restore it, or start again"):
                store.plan()

    def test_plans_of_another_format(self, tmp_path):
        Store(tmp_path).write_plan({"format": FORMAT + 1})
        with pytest.raises(StoreError, match=rf"has format {FORMAT + 1}; .* reads format {FORMAT}, so start again"):
            Store(tmp_path).plan()

    @pytest.mark.parametrize("path", ["nothing", "file", "file/below"])
    def test_of_the_directory(self, tmp_path, path):
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match=r"plan\.json is not there; is this a result directory"):
            Store(tmp_path / path).plan()


class TestForeignDirectories:
    @pytest.mark.parametrize(
        ("files", "foreign"),
        [
            ((), False),
            ((".lock",), False),
            ((".plan.json.12.tmp", ".lock"), False),
            (("plan.json", "my thesis.docx"), False),
            (("my thesis.docx",), True),
            ((".lock", "notes"), True),
        ],
    )
    def test_are_told_from_our_own(self, tmp_path, files, foreign):
        for name in files:
            (tmp_path / name).touch()
        assert Store(tmp_path).is_foreign() is foreign

    def test_a_file_and_nothing(self, tmp_path):
        (tmp_path / "file").touch()
        assert Store(tmp_path / "file").is_foreign()
        assert not Store(tmp_path / "nothing").is_foreign()


class TestLock:
    def test_one_at_a_time(self, tmp_path):
        folder = tmp_path / "new" / "folder"
        held = rf"{folder} is in use by another neoteny process \(pid {os.getpid()}\)"
        with locked(folder), pytest.raises(StoreError, match=held), locked(folder):
            raise AssertionError("both have it")
        with locked(folder):
            pass

    def test_goes_with_an_exception(self, tmp_path):
        with pytest.raises(KeyError), locked(tmp_path):
            raise KeyError
        with locked(tmp_path):
            pass

    def test_goes_with_a_killed_process(self, tmp_path):
        code = (
            "import sys, time\n"
            "from pathlib import Path\n"
            "from neoteny.lab.store import locked\n"
            "with locked(Path(sys.argv[1])):\n"
            "    print('locked', flush=True)\n"
            "    time.sleep(60)"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        try:
            assert process.stdout.readline() == b"locked\n"
            with pytest.raises(StoreError, match=rf"\(pid {process.pid}\)"), locked(tmp_path):
                pass
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        with locked(tmp_path):
            pass

    def test_file_systems_without_locks(self, tmp_path, monkeypatch):
        def flock(*_):
            raise OSError(errno.ENOTSUP, "Operation not supported")

        monkeypatch.setattr(store_module.fcntl, "flock", flock)
        with locked(tmp_path):
            pass


names = st.one_of(
    st.sampled_from(["a0", "names", "index", "file", "allow_pickle", "../x", "a/b", "", "x\0", ".key<fry>()[0]", "ä"]),
    st.text(max_size=12),
)
dtypes = st.one_of(
    npst.boolean_dtypes(),
    npst.integer_dtypes(),
    npst.unsigned_integer_dtypes(),
    npst.floating_dtypes(),
    npst.complex_number_dtypes(),
)
arrays = npst.arrays(dtypes, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))


class TestArrays:
    @settings(deadline=None, max_examples=60)
    @given(st.dictionaries(names, arrays, max_size=5))
    def test_come_back_as_they_went(self, held):
        again = store_module._npz_arrays(store_module._npz_bytes(held))
        assert list(again) == list(held)
        for name, array in held.items():
            assert (again[name].dtype, again[name].shape) == (array.dtype, array.shape)
            assert again[name].tobytes() == array.tobytes()

    @pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"])
    @pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
    def test_types_that_are_not_numpys(self, name, shape):
        dtype = np.dtype(getattr(ml_dtypes, name))
        array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
        again = store_module._npz_arrays(store_module._npz_bytes({"w": array}))["w"]
        assert (again.dtype, again.shape) == (dtype, shape)
        assert again.tobytes() == array.tobytes()

    def test_views_that_are_not_contiguous(self):
        array = np.arange(12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.bfloat16).T[::2]
        np.testing.assert_array_equal(store_module._npz_arrays(store_module._npz_bytes({"w": array}))["w"], array)

    def test_nothing_is_pickled(self):
        with pytest.raises(TypeError, match="odd holds Python objects"):
            store_module._npz_bytes({"odd": np.array([{}], object)})

    def test_equal_arrays_give_equal_files(self):
        held = {"a": np.arange(3), "b": np.float32(1)}
        assert store_module._npz_bytes(held) == store_module._npz_bytes(dict(held))


def test_json_of_a_commit_is_readable(pack, second):
    content = json.loads(pack.manifest_path.read_text())
    assert content["records"][0]["path"] == "records/000001.parquet"
    assert pack.manifest_path.read_text().endswith("}\n")


def test_stores_of_packs_are_apart(tmp_path):
    store = Store(tmp_path)
    assert isinstance(store.pack("a"), PackStore)
    assert store.pack("a").directory == tmp_path / "packs" / "a"
