"""Plans: which runs share a pack, what an extension leaves alone, what is refused."""

import dataclasses
import json

import pytest

from neoteny.errors import UsageError
from neoteny.lab import configs
from neoteny.lab.configs import Lane
from neoteny.lab.plan import Plan, Request, extend_plan, make_plan
from neoteny.lab.study import Experiment, Study


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 8
    rate: Lane[float] = 0.1
    seed: Lane[int] = 0


@dataclasses.dataclass(frozen=True)
class Other:
    depth: int = 1
    seed: Lane[int] = 0


def experiment(name, config, **axes):
    def unused(*_):
        raise AssertionError("a plan needs no streams, learners or scripts")

    return Experiment(name, config, lambda preset: axes, unused, unused, unused)


STUDY = Study(
    "study",
    "",
    "",
    "",
    "",
    (
        experiment("a", Config, width=(8, 16), rate=(0.1, 0.2), seed=(0, 1, 2)),
        experiment("b", Other, seed=(0, 1)),
    ),
    (),
    presets={"smoke": "", "quick": "", "paper": ""},
)


def request(**changes):
    return dataclasses.replace(Request("study", "smoke"), **changes)


def plan(**changes):
    return make_plan(STUDY, request(**changes))


def widths(plan):
    return [{plan.runs[name].config.width for name in pack.runs} for pack in plan.packs if pack.experiment == "a"]


class TestPacks:
    def test_runs_of_equal_structure_share_one(self):
        made = plan()
        assert [(pack.experiment, len(pack.runs), pack.lanes) for pack in made.packs] == [
            ("a", 6, 6),
            ("a", 6, 6),
            ("b", 2, 2),
        ]
        assert widths(made) == [{8}, {16}]
        assert sorted(name for pack in made.packs for name in pack.runs) == sorted(made.runs)

    def test_runs_are_named_by_their_content(self):
        for name, run in plan().runs.items():
            assert name == run.name == configs.run_name("study", run.experiment, run.config)

    @pytest.mark.parametrize(("lanes", "sizes"), [(6, [6]), (5, [3, 3]), (4, [3, 3]), (2, [2, 2, 2]), (1, [1] * 6)])
    def test_at_most_so_many_lanes_in_equal_shares(self, lanes, sizes):
        made = plan(experiments=("a",), overrides={"width": (8,)}, lanes=lanes)
        assert [len(pack.runs) for pack in made.packs] == sizes

    def test_padding_makes_small_packs_as_large_as_asked(self):
        made = plan(pad=4)
        assert [(len(pack.runs), pack.lanes) for pack in made.packs] == [(6, 6), (6, 6), (2, 4)]

    def test_names_of_packs_are_those_of_their_runs(self):
        assert [p.name for p in plan().packs] == [p.name for p in plan().packs]
        assert not {p.name for p in plan().packs} & {p.name for p in plan(overrides={"seed": (7,)}).packs}


class TestRequests:
    def test_overrides_replace_axes_where_the_field_is(self):
        made = plan(overrides={"rate": (0.5,), "seed": (4,)})
        assert {run.config.rate for run in made.runs.values() if run.experiment == "a"} == {0.5}
        assert {run.config.seed for run in made.runs.values()} == {4}
        assert len(made.runs) == 3

    def test_only_the_named_experiments(self):
        assert {run.experiment for run in plan(experiments=("b",)).runs.values()} == {"b"}
        assert plan(experiments=("b", "b")).runs == plan(experiments=("b",)).runs

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"preset": "huge"}, "no preset 'huge'; it has smoke, quick, paper"),
            ({"experiments": ("c",)}, "no experiment 'c'; it has a, b"),
            ({"overrides": {"deep": (1,)}}, "unknown field 'deep'"),
            (
                {"overrides": {"depth": (1,)}, "experiments": ("a",)},
                "unknown field 'depth'; the fields are rate",
            ),
            ({"overrides": {"width": ("x",)}}, "width: expected a whole number"),
            ({"lanes": 0}, "--lanes must be at least 1"),
        ],
    )
    def test_bad_ones_are_named(self, changes, message):
        with pytest.raises(UsageError, match=message):
            plan(**changes)


class TestExtension:
    def test_nothing_new_changes_nothing(self):
        old = plan()
        assert extend_plan(old, STUDY, request()) is old

    @pytest.mark.parametrize(
        ("changes", "new"),
        [
            ({"overrides": {"seed": (0, 1, 2, 3)}}, [("a", 2), ("a", 2), ("b", 1)]),
            ({"overrides": {"rate": (0.3, 0.1, 0.2)}}, [("a", 3), ("a", 3)]),
            ({"overrides": {"width": (4, 8, 16)}}, [("a", 6)]),
        ],
    )
    def test_more_seeds_or_values_add_packs_and_leave_the_old_ones(self, changes, new):
        old = plan(overrides={"seed": (0, 1, 2)})
        changes = {"overrides": {"seed": (0, 1, 2), **changes["overrides"]}}
        longer = extend_plan(old, STUDY, request(**changes))
        assert longer.packs[: len(old.packs)] == old.packs
        assert [(pack.experiment, len(pack.runs)) for pack in longer.packs[len(old.packs) :]] == new
        assert dict(list(longer.runs.items())[: len(old.runs)]) == old.runs
        assert json.dumps(longer.to_json()["packs"][: len(old.packs)]) == json.dumps(old.to_json()["packs"])
        everything = make_plan(STUDY, request(**changes))
        assert set(longer.runs) == set(everything.runs)

    def test_more_experiments_too(self):
        longer = extend_plan(plan(experiments=("a",)), STUDY, request())
        assert [pack.experiment for pack in longer.packs] == ["a", "a", "b"]

    def test_smaller_packs_do_not_divide_old_ones(self):
        longer = extend_plan(plan(), STUDY, request(lanes=1, overrides={"seed": (0, 1, 2, 3)}))
        assert [len(pack.runs) for pack in longer.packs] == [6, 6, 2, 1, 1, 1, 1, 1, 1]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"overrides": {"seed": (0, 1)}}, r"seed: there 0, 1, 2; asked 0, 1"),
            ({"overrides": {"rate": (0.3,)}}, r"rate: there 0.1, 0.2; asked 0.3"),
            ({"overrides": {"rate": (0.3,), "width": (8,)}}, r"rate: .*; width: there 16, 8; asked 8"),
            ({"experiments": ("a",)}, r"depth: there 1; asked none; experiment: there a, b; asked a"),
            ({"preset": "quick"}, r"holds study 'study', preset 'smoke'; asked for 'study', 'quick'"),
        ],
    )
    def test_leaving_runs_out_is_refused_and_the_fields_named(self, changes, message):
        with pytest.raises(UsageError, match=message):
            extend_plan(plan(), STUDY, request(**changes))


class TestJson:
    def test_plans_survive(self):
        made = plan(overrides={"rate": (1, 0.5)}, lanes=4, pad=3)
        stored = json.loads(json.dumps(made.to_json()))
        again = Plan.from_json(stored, STUDY)
        assert again.runs == made.runs
        assert again.packs == made.packs
        assert again.to_json() == stored

    def test_a_study_that_changed_since(self):
        content = plan().to_json()
        with pytest.raises(UsageError, match="no experiment 'b'; it has a"):
            Plan.from_json(content, dataclasses.replace(STUDY, experiments=STUDY.experiments[:1]))
        content["runs"][next(iter(content["runs"]))]["config"]["momentum"] = 0.9
        with pytest.raises(UsageError, match="the stored configuration and Config differ in the fields momentum"):
            Plan.from_json(content, STUDY)


def test_an_experiment_may_step_fewer_runs_together():
    first, second = STUDY.experiments
    study = dataclasses.replace(STUDY, experiments=(dataclasses.replace(first, lanes=2), second))
    wide = make_plan(STUDY, request())
    assert {len(pack.runs) for pack in wide.packs if pack.experiment == "a"} == {6}
    narrow = make_plan(study, request())
    assert {len(pack.runs) for pack in narrow.packs if pack.experiment == "a"} == {2}
    assert {len(pack.runs) for pack in narrow.packs if pack.experiment == "b"} == {2}
    assert {len(pack.runs) for pack in make_plan(study, request(lanes=1)).packs} == {1}, "fewer still if asked for"
