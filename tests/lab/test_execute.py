"""Runs of packs: what fails, stops, goes on and is accepted, through the command line on a tiny study."""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import polars as pl
import pytest

import neoteny
from neoteny.cli import main
from neoteny.errors import UsageError
from neoteny.lab import execute, fingerprint
from neoteny.lab.execute import Options, StopFlag, worker_cores
from neoteny.lab.plan import Plan, Request, make_plan
from neoteny.lab.store import Store
from neoteny.studies import load_study


def manifests(directory):
    store = Store(directory)
    return [store.pack(pack["name"]).manifest() for pack in store.plan()["packs"]]


def statuses(directory):
    return [None if manifest is None else manifest.status for manifest in manifests(directory)]


def records(directory):
    """All records in the order of packs, without wall-clock."""
    return neoteny.load(directory)


def parameters(directory):
    """Every saved array of every run, as bytes."""
    kept = neoteny.arrays(directory, "last/of it")
    return {run: {path: array.tobytes() for path, array in saved.items()} for run, saved in kept.items()}


def contents(directory):
    return {p.relative_to(directory): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def run(directory, *more):
    return main(["run", "tiny", "--preset", "smoke", "--out", str(directory), *more])


def resume(directory, *more):
    return main(["resume", str(directory), *more])


class TestWhole:
    def test_everything_is_there(self, finished):
        assert statuses(finished) == ["finished"] * 3
        frame = records(finished)
        assert frame["run"].n_unique() == 6
        assert sorted(frame["metric"].unique()) == ["accuracy", "loss", "train_accuracy", "train_loss"]
        (claim,) = json.loads((finished / "claims.json").read_text())
        assert claim["id"] == "T-1"
        assert (finished / "report.html").stat().st_size > 1_000
        assert len(parameters(finished)) == 6

    def test_seeds_and_rates_differ(self, finished):
        assert len({tuple(sorted(saved.items())) for saved in parameters(finished).values()}) == 6

    def test_the_same_again(self, finished, tmp_path):
        assert run(tmp_path / "again") == 0
        assert records(tmp_path / "again").equals(records(finished))
        assert parameters(tmp_path / "again") == parameters(finished)

    def test_a_finished_directory_is_left_as_it_is(self, finished):
        before = {path: content for path, content in contents(finished).items() if "packs" in path.parts}
        assert run(finished) == 0
        assert resume(finished) == 0
        assert before == {path: content for path, content in contents(finished).items() if "packs" in path.parts}

    def test_smaller_packs_give_the_same_numbers(self, finished, tmp_path):
        """Not the same bits: those depend on the size of a pack."""
        assert run(tmp_path / "small", "--experiment", "one", "--rate", "0.1", "--lanes", "1") == 0
        assert len(statuses(tmp_path / "small")) == 2
        keys = ["run", "event", "step", "metric"]
        both = records(tmp_path / "small").join(records(finished), on=keys, how="left", suffix="_packed")
        assert both["value_packed"].null_count() == 0
        assert (both["value"] - both["value_packed"]).abs().max() < 1e-5


class TestExtension:
    @pytest.mark.parametrize(
        ("base", "more"),
        [
            ((), ("--seeds", "2")),
            (("--rate", "0.2"), ("--rate", "0.1", "0.2")),
            ((), ("--width", "3", "4")),
        ],
    )
    def test_adds_packs_and_leaves_the_old_ones_bit_for_bit(self, tmp_path, tiny, base, more):
        directory = tmp_path / "x"
        experiment = ("--experiment", "two")
        width = () if "--width" in more else ("--width", "4")
        assert run(directory, *experiment, *base, "--width", "4") == 0
        packs, before = Store(directory).plan()["packs"], contents(directory / "packs")
        old = records(directory)
        assert run(directory, *experiment, *width, *more) == 0
        assert Store(directory).plan()["packs"][: len(packs)] == packs
        after = contents(directory / "packs")
        assert before == {path: after[path] for path in before}
        assert records(directory)[: len(old)].equals(old)
        assert statuses(directory) == ["finished"] * 2
        assert records(directory)["run"].n_unique() == 2


class TestInterrupts:
    @pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_are_answered_by_a_commit(self, tmp_path, tiny, interrupt, capfd, signum, code):
        interrupt(1, "train", signum=signum)
        assert run(tmp_path / "x", "--experiment", "one") == code
        assert statuses(tmp_path / "x") == ["running"]
        kept = "stopped; all up to the last commit is kept."
        assert capfd.readouterr().err == f"{kept} Go on with: neoteny resume {tmp_path / 'x'}\n"
        assert not (tmp_path / "x" / "report.html").exists()

    def test_half_done_is_committed(self, stopped):
        first, second, third = manifests(stopped)
        assert (first.status, second.status, third) == ("finished", "running", None)
        assert second.cursor[0] == 1
        assert 0 < second.cursor[1] < 5
        assert second.state is not None

    def test_half_done_can_be_looked_at(self, stopped, capsys):
        assert main(["status", str(stopped)]) == 0
        shown = capsys.readouterr().out
        assert "6 runs in 3 packs, 1 finished" in shown
        assert "running, at event 1 after" in shown
        assert "not begun" in shown
        assert f"go on with: neoteny resume {stopped}" in shown
        assert main(["report", str(stopped)]) == 0
        assert "2 of 3 packs are not finished" in (stopped / "report.html").read_text()
        assert records(stopped)["run"].n_unique() == 5

    @pytest.mark.parametrize("again", [resume, run])
    def test_goes_on_to_the_very_same(self, stopped, finished_once, again):
        assert again(stopped) == 0
        assert records(stopped).equals(records(finished_once))
        assert parameters(stopped) == parameters(finished_once)

    def test_between_packs(self, tmp_path, tiny, interrupt):
        interrupt(1, "save")  # its last stretch
        assert run(tmp_path / "x") == 130
        assert statuses(tmp_path / "x") == ["finished", None, None]

    def test_killed_without_a_word_it_goes_on_from_the_last_commit(self, finished_once, tmp_path, tiny, monkeypatch):
        """A commit at every stretch of work, and death in the one after the third."""

        class Killed(BaseException):
            pass

        take, deaths = execute._Journal.take, [0]

        def take_and_die(journal, tick):
            if journal.manifest.commit == 3:
                deaths[0] += 1
                raise Killed
            take(journal, tick)

        monkeypatch.setattr(execute._Journal, "take", take_and_die)
        directory = tmp_path / "x"
        with contextlib.suppress(Killed):
            assert run(directory, "--experiment", "two", "--width", "4", "--commit-seconds", "0") == 0
        monkeypatch.setattr(execute._Journal, "take", take)
        assert deaths == [1]
        assert manifests(directory)[0].commit == 3
        assert resume(directory) == 0
        assert records(directory).equals(records(finished_once).filter(pl.col("width") == 4))

    def test_signals_find_their_old_handlers_again(self):
        before = signal.getsignal(signal.SIGINT)
        with StopFlag().installed() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.signum == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is before

    def test_outside_the_main_thread_there_are_no_handlers(self):
        seen = []

        def work():
            with StopFlag().installed() as stop:
                seen.append(stop.signum)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert seen == [None]


class TestFailures:
    @pytest.mark.parametrize("where", ["learner", "predict"])
    def test_end_their_own_pack_only(self, finished_once, tmp_path, tiny, monkeypatch, capfd, where):
        directory = tmp_path / "x"
        monkeypatch.setattr(tiny, "BROKEN", {where})
        assert run(directory) == 1
        assert statuses(directory) == ["finished", "finished", "failed"]
        shown = capfd.readouterr()
        assert shown.err.splitlines()[-1] == (
            f"neoteny: 1 of 3 packs failed; the report shows why. Try again with: neoteny resume {directory}"
        )
        assert "Traceback" not in shown.err
        what = {"learner": "the learner is broken", "predict": "the prediction is broken"}[where]
        assert f"RuntimeError: {what}" in manifests(directory)[2].traceback
        assert main(["status", str(directory)]) == 0
        standing = f"failed, at event 0 after 0 updates of it, 1 commits: RuntimeError: {what}\n"
        assert standing in capfd.readouterr().out
        assert what in (directory / "report.html").read_text()

        assert resume(directory) == 1, "still broken"
        monkeypatch.setattr(tiny, "BROKEN", set())
        assert resume(directory) == 0
        assert statuses(directory) == ["finished"] * 3
        assert records(directory).equals(records(finished_once))
        assert parameters(directory) == parameters(finished_once)
        assert what not in (directory / "report.html").read_text()

    def test_after_a_commit_go_on_from_it(self, stopped, finished_once, tiny, monkeypatch):
        held = manifests(stopped)[1]
        with monkeypatch.context() as patch:
            patch.setattr("neoteny.training.runner.Runner._evaluate", _raise)
            assert resume(stopped) == 1
        failed = manifests(stopped)[1]
        assert (failed.status, failed.cursor, failed.state) == ("failed", held.cursor, held.state)
        assert "ZeroDivisionError: in a probe" in failed.traceback
        assert resume(stopped) == 0
        assert records(stopped).equals(records(finished_once))

    def test_of_a_configuration_come_out_before_anything_is_written(self, tmp_path, tiny, monkeypatch, capfd):
        monkeypatch.setattr(tiny, "BROKEN", {"script"})
        assert run(tmp_path / "x") == 2
        assert capfd.readouterr().err == "neoteny: tiny/two: the script is broken\n"
        assert not (tmp_path / "x").exists()


def _raise(*_):
    raise ZeroDivisionError("in a probe")


class TestChangedSources:
    @pytest.fixture
    def changed(self, monkeypatch):
        now = fingerprint.code_fingerprint

        def changed(experiment):
            return {**now(experiment), "training/runner.py": "0123456789abcdef", "learners/new.py": "0"}

        monkeypatch.setattr(execute, "code_fingerprint", changed)

    @pytest.mark.parametrize("again", [resume, run])
    def test_stop_and_are_named(self, stopped, changed, capfd, again):
        before = contents(stopped / "packs")
        assert again(stopped) == 2
        assert capfd.readouterr().err == (
            f"neoteny: the sources changed since {stopped} was begun: learners/new.py, training/runner.py; "
            f"use another --out, or go on with --accept-code (the report will say so)\n"
        )
        assert contents(stopped / "packs") == before

    def test_can_be_accepted_and_the_report_says_so(self, stopped, changed):
        assert resume(stopped, "--accept-code") == 0
        _, second, third = manifests(stopped)
        assert second.accepted == (
            f"pack {second.pack}: sources changed before commit 2: learners/new.py, training/runner.py",
        )
        assert third.accepted == ()
        report = (stopped / "report.html").read_text()
        assert "sources changed before commit 2: learners/new.py, training/runner.py" in report
        assert resume(stopped) == 0

    def test_matter_to_packs_not_begun_too(self, finished, changed, capfd):
        first, *_ = manifests(finished)
        assert run(finished, "--seeds", "3") == 2
        assert "training/runner.py" in capfd.readouterr().err
        assert run(finished, "--seeds", "3", "--accept-code") == 0
        new = manifests(finished)[3]
        assert new.accepted == (
            f"pack {new.pack}: other sources than pack {first.pack}: learners/new.py, training/runner.py",
        )
        assert f"other sources than pack {first.pack}" in (finished / "report.html").read_text()

    def test_matter_no_more_when_all_is_finished(self, finished, changed):
        assert resume(finished) == 0

    def test_fingerprint_is_of_computing_rooms_and_of_the_study(self, tiny, tmp_path):
        code = fingerprint.code_fingerprint(tiny.one)
        assert {"training/runner.py", "tasks/sources.py", "probes/rank.py", "tiny.py"} <= set(code)
        # Of the lab, only what makes the traced configuration computes.
        others = [name for name in code if name.startswith(("report", "lab", "analysis", "cli"))]
        assert others == ["lab/configs.py"]
        path = tmp_path / "elsewhere.py"
        path.write_text("def source(config): ...\n")
        scope = {}
        exec(compile(path.read_text(), path, "exec"), scope)
        other = dataclasses.replace(tiny.one, source=scope["source"])
        assert set(fingerprint.code_fingerprint(other)) == {*code, "elsewhere.py"}
        path.write_text("def source(config): pass\n")
        folder = load_study("lru").experiment("ladder")
        assert "studies/lru/models.py" in fingerprint.code_fingerprint(folder), "a study in a folder is all its files"
        played = fingerprint.code_fingerprint(load_study("injection").experiment("atari"))
        assert "studies/games.py" in played, "and what it shares with other studies"
        assert "studies/__init__.py" not in played
        assert fingerprint.changed_files(code, fingerprint.code_fingerprint(other)) == ["elsewhere.py"]


class TestOtherMachine:
    @pytest.fixture
    def moved(self, monkeypatch):
        here = fingerprint.machine()
        monkeypatch.setattr(execute, "machine", lambda cores=0: {**here, "jax": "9.9.9", "threads": 64})

    def test_stops_and_says_what_differs(self, stopped, moved, capfd):
        assert resume(stopped) == 2
        error = capfd.readouterr().err
        assert f"the machine differs from the one {stopped} was begun on: jax was " in error
        assert ", is 9.9.9; threads was " in error
        assert error.endswith("is 64; go on with --allow-drift (the report will say so)\n")
        assert error.count("\n") == 1

    def test_can_be_accepted_and_the_report_says_so(self, stopped, moved):
        assert resume(stopped, "--allow-drift") == 0
        assert "machine changed before commit 2: jax was" in manifests(stopped)[1].accepted[0]
        assert "machine changed before commit 2: jax was" in (stopped / "report.html").read_text()

    def test_matters_to_no_pack_but_those_half_done(self, finished, moved):
        assert run(finished, "--seeds", "3") == 0


class TestOtherData:
    def test_stop_and_are_named(self, stopped, tiny, monkeypatch, capfd):
        made = tiny.data()
        monkeypatch.setattr(tiny, "data", lambda: dataclasses.replace(made, targets=made.targets[::-1].copy()))
        assert resume(stopped) == 2
        assert f"the data differ from those {stopped} was begun with: made_up; restore" in capfd.readouterr().err

    def test_of_one_name_in_one_plan_are_refused_before_anything_runs(self, tmp_path, tiny, monkeypatch, capfd):
        made = tiny.data()
        others = itertools.cycle([made, dataclasses.replace(made, targets=made.targets[::-1].copy())])
        monkeypatch.setattr(tiny, "data", lambda: next(others))
        assert run(tmp_path / "new") == 2
        told = capfd.readouterr().err
        assert "different data of this plan go by one name: made_up; give each a name of its own" in told
        assert not (tmp_path / "new").exists()


class TestDamage:
    @pytest.mark.parametrize("again", [resume, run])
    @pytest.mark.parametrize(("pack", "kind"), [(1, "state"), (1, "records"), (0, "records"), (0, "timings")])
    def test_stops_before_anything_is_done_and_is_named(self, stopped, capfd, pack, kind, again):
        directory = stopped / "packs" / manifests(stopped)[pack].pack
        (path,) = (directory / kind).iterdir()
        path.write_bytes(path.read_bytes()[:-5])
        before = contents(stopped / "packs")
        assert again(stopped) == 2
        assert capfd.readouterr().err == (
            f"neoteny: {path} is damaged (its checksum does not match); remove {directory} to compute this "
            f"pack again (other packs are kept), or restore the file\n"
        )
        assert contents(stopped / "packs") == before
        assert main(["report", str(stopped)]) == (0 if kind == "state" else 2)
        assert (path.name in capfd.readouterr().err) is (kind != "state")

    def test_what_the_message_says_helps(self, stopped, finished_once, capfd):
        directory = stopped / "packs" / manifests(stopped)[1].pack
        next((directory / "state").iterdir()).unlink()
        assert resume(stopped) == 2
        assert "is missing or unreadable" in capfd.readouterr().err
        kept = contents(stopped / "packs" / manifests(stopped)[0].pack)
        shutil.rmtree(directory)
        assert resume(stopped) == 0
        assert records(stopped).equals(records(finished_once))
        assert kept == contents(stopped / "packs" / manifests(stopped)[0].pack)

    def test_of_a_manifest(self, stopped, capfd):
        path = stopped / "packs" / manifests(stopped)[1].pack / "manifest.json"
        path.write_text(path.read_text().replace("running", "ruining"))
        for command in ("resume", "status", "report"):
            assert main([command, str(stopped)]) == 2
            error = capfd.readouterr().err
            assert error.startswith(f"neoteny: {path} is damaged (its checksum does not match); remove {path.parent}")
            assert error.count("\n") == 1

    def test_of_the_plan(self, stopped, capfd):
        path = stopped / "plan.json"
        path.write_text(path.read_text()[:-40])
        for arguments in (["run", "tiny", "--preset", "smoke", "--out"], ["resume"], ["status"], ["report"]):
            assert main([*arguments, str(stopped)]) == 2
            error = capfd.readouterr().err
            assert error.startswith(f"neoteny: {path} is damaged (")
            assert error.endswith("restore it, or start again in another directory\n")

    def test_a_state_that_does_not_fit(self, stopped, tiny, monkeypatch, capfd):
        """Sources changed so that the state has another structure, and the change was accepted."""
        made = tiny.learner

        def wider(config):
            return made(dataclasses.replace(config, width=7))

        experiments = (tiny.one, dataclasses.replace(tiny.two, learner=wider))
        monkeypatch.setattr(tiny, "STUDY", dataclasses.replace(tiny.STUDY, experiments=experiments))
        assert resume(stopped, "--accept-code") == 1
        error = capfd.readouterr().err.splitlines()[-1]
        assert "state/000001.npz does not fit: state" in error
        assert "to compute this pack again" in error


class TestFullDisk:
    @pytest.mark.parametrize("calls", [0, 3, 8, 13])
    def test_leaves_the_last_commit_to_go_on_from(self, stopped, finished_once, monkeypatch, capfd, calls):
        left, sync = [calls], os.fsync

        def fsync(file):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(file)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            assert resume(stopped) == 1
        error = capfd.readouterr().err.splitlines()[-1]
        assert error.startswith("neoteny: the disk is full: could not write ")
        assert "free some space and go on with `neoteny resume`" in error
        store = Store(stopped)
        for manifest in filter(None, manifests(stopped)):
            store.pack(manifest.pack).verify(manifest)
        assert resume(stopped) == 0
        assert records(stopped).equals(records(finished_once))
        assert parameters(stopped) == parameters(finished_once)

    def test_a_real_one(self, finished_once, tmp_path, tiny, capfd):
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = shutil.which("mount") and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True
        )
        if not mounted or mounted.returncode:
            pytest.skip("a small disk can be mounted by root only")
        try:
            ballast = disk / "ballast"
            ballast.write_bytes(bytes(2**20 - 80 * 1024))
            directory = disk / "x"
            assert run(directory) == 1
            error = capfd.readouterr().err.splitlines()[-1]
            assert error.startswith(f"neoteny: the disk is full: could not write {directory}")
            assert "Traceback" not in error
            before = [manifest for manifest in manifests(directory) if manifest is not None]
            for manifest in before:
                Store(directory).pack(manifest.pack).verify(manifest)
            assert "finished" in statuses(directory)
            ballast.unlink()
            assert resume(directory) == 0
            assert records(directory).equals(records(finished_once))
        finally:
            subprocess.run(["umount", disk], check=True)

    def test_at_the_report(self, finished, monkeypatch, capfd):
        def fsync(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        (finished / "report.html").unlink()
        monkeypatch.setattr(os, "fsync", fsync)
        assert main(["report", str(finished)]) == 2
        assert "No space left on device" in capfd.readouterr().err
        assert statuses(finished) == ["finished"] * 3


class TestPool:
    def test_shares_are_equal(self, monkeypatch):
        monkeypatch.setattr(execute, "available_cores", lambda: [0, 1, 2, 3, 4])
        assert worker_cores(1) == [[]]
        assert worker_cores(2) == [[0, 1], [2, 3]]
        assert worker_cores(4) == [[0], [1], [2], [3]]
        assert [len(share) for share in worker_cores(7)] == [1] * 7
        monkeypatch.setattr(execute, "available_cores", list)
        assert worker_cores(3) == [[], [], []]


class TestRunners:
    def test_a_stream_without_end(self, tiny):
        endless = dataclasses.replace(tiny.one, stream=lambda config: neoteny.tasks.random_labels(tiny.data()))
        study = dataclasses.replace(tiny.STUDY, experiments=(endless,))
        plan = make_plan(study, Request("tiny", "smoke"))
        with pytest.raises(UsageError, match=r"tiny/one: one: the stream has no end; cut it with take\(n\)"):
            execute.make_runner(study, plan, plan.packs[0])

    def test_prepare_writes_nothing(self, tiny, tmp_path):
        store, plan = Store(tmp_path / "x"), make_plan(tiny.STUDY, Request("tiny", "smoke"))
        updates = execute.prepare(store, plan, tiny.STUDY, Options())
        assert list(updates.values()) == [40, 10, 10]
        assert list(updates) == [pack.name for pack in plan.packs]
        assert not (tmp_path / "x").exists()

    def test_plans_of_a_directory_come_back(self, finished, tiny):
        content = Store(finished).plan()
        plan = Plan.from_json(content, tiny.STUDY)
        assert {**plan.to_json(), "workers": 1} == content
        assert execute.prepare(Store(finished), plan, tiny.STUDY, Options()) == {}


def test_workers_get_huge_pages_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    ask = "import os; print(os.environ.get('GLIBC_TUNABLES'))"

    def started():
        with execute._huge_pages():
            return subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout

    assert started().strip() == "glibc.malloc.hugetlb=1"
    assert "GLIBC_TUNABLES" not in os.environ
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    assert started().strip() == "glibc.malloc.check=1"
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=1"
