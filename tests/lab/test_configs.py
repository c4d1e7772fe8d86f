"""Configurations: lane fields, names that never change, views that keep lanes out of scripts."""

import dataclasses
import json
import os
import subprocess
import sys
from enum import Enum
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neoteny.errors import UsageError
from neoteny.lab import configs
from neoteny.lab.configs import Lane


@dataclasses.dataclass(frozen=True)
class Part:
    scale: float = 0.5
    tau: int = 3


class Colour(Enum):
    RED = "red"


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "a"
    width: int = 8
    deep: bool = False
    mode: Literal["x", "y"] = "x"
    rate: Lane[float] = 0.1
    count: Lane[int] = 2
    part: Part = Part()
    colour: Colour = Colour.RED
    sizes: tuple[int, ...] = (1, 2)
    seed: Lane[int] = 0

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width must be at least 1, not {self.width}")


class TestFields:
    def test_lanes_are_found_by_annotation(self):
        assert configs.lane_names(Config) == ("rate", "count", "seed")
        assert [field.type for field in configs.fields(Config).values() if field.lane] == [float, int, int]
        assert configs.fields(Config)["width"] == configs.Field("width", int, False, 8)

    @pytest.mark.parametrize("kind", [str, bool, tuple[int, ...]])
    def test_only_numbers_can_be_lanes(self, kind):
        config = dataclasses.make_dataclass("Odd", [("odd", Lane[kind], dataclasses.field(default=None))])
        with pytest.raises(TypeError, match=r"Odd\.odd: only int and float fields can be lanes"):
            configs.fields(config)

    def test_lane_columns_are_what_programs_compute_with(self):
        columns = configs.lane_columns([Config(rate=0.1, seed=3), Config(rate=0.2, seed=4)])
        assert {name: column.dtype for name, column in columns.items()} == {
            "rate": np.float32,
            "count": np.int32,
            "seed": np.int32,
        }
        np.testing.assert_array_equal(columns["seed"], [3, 4])
        np.testing.assert_array_equal(columns["rate"], np.float32([0.1, 0.2]))


class TestNames:
    def test_pinned(self):
        # This name must never change: it identifies runs across versions, machines and processes.
        assert configs.run_name("study", "experiment", Config()) == "7b7e8c0c4703"

    def test_canonical_json(self):
        content = configs.config_to_json(Config(rate=0.25))
        assert configs.canonical(content) == (
            '{"colour":"red","count":2,"deep":false,"mode":"x","name":"a",'
            '"part":{"scale":0.5,"tau":3,"type":"Part"},"rate":0.25,"seed":0,"sizes":[1,2],"width":8}'
        )

    def test_same_in_another_process(self):
        code = (
            "import dataclasses\n"
            "from neoteny.lab import configs\n"
            "C = dataclasses.make_dataclass('C', [('b', str, 'z'), ('a', float, 1e-7)], frozen=True)\n"
            "print(configs.run_name('s', 'e', C()))"
        )
        names = {
            subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for seed in ("1", "2")
        }
        config = dataclasses.make_dataclass("C", [("b", str, "z"), ("a", float, 1e-7)], frozen=True)
        assert names == {configs.run_name("s", "e", config())}

    def test_every_part_of_a_run_is_in_its_name(self):
        base = configs.run_name("s", "e", Config())
        others = [
            configs.run_name("t", "e", Config()),
            configs.run_name("s", "f", Config()),
            *(
                configs.run_name("s", "e", dataclasses.replace(Config(), **change))
                for change in (
                    {"name": "b"},
                    {"deep": True},
                    {"rate": np.nextafter(0.1, 1).item()},
                    {"part": Part(tau=4)},
                    {"sizes": (2, 1)},
                    {"seed": 1},
                )
            ),
        ]
        assert len({base, *others}) == 1 + len(others)

    def test_whole_numbers_for_a_float_field_give_the_same_run(self):
        (given_int,) = configs.product(Config, {"rate": (1,)})
        (given_float,) = configs.product(Config, {"rate": (1.0,)})
        assert configs.run_name("s", "e", given_int) == configs.run_name("s", "e", given_float)
        assert isinstance(given_int.rate, float)

    def test_numpy_numbers_give_the_same_run(self):
        names = {configs.digest(configs.to_json((np.float64(0.1), np.int32(3)))), configs.digest([0.1, 3])}
        assert len(names) == 1

    def test_structure_leaves_out_lanes_alone(self):
        assert configs.structure(Config(rate=0.3, seed=9)) == configs.structure(Config())
        assert configs.structure(Config(width=9)) != configs.structure(Config())

    @pytest.mark.parametrize("value", [object(), {1, 2}, b"x", lambda: 0, Config, np.zeros(2)])
    def test_unknown_types_are_refused(self, value):
        with pytest.raises(UsageError, match="a configuration value must be a number, text, tuple"):
            configs.to_json(value)

    @given(st.floats(allow_nan=False, allow_infinity=False))
    def test_floats_survive_json(self, value):
        assert json.loads(configs.canonical(configs.to_json(value))) == value

    def test_stored_configurations_come_back(self):
        @dataclasses.dataclass(frozen=True)
        class Plain:
            rate: Lane[float] = 0.1
            sizes: tuple[int, ...] = (1,)
            name: str = "a"

        config = Plain(rate=1e-3, sizes=(4, 5))
        stored = json.loads(json.dumps(configs.config_to_json(config)))
        assert configs.config_from_json(Plain, stored) == config
        with pytest.raises(UsageError, match="differ in the fields name, other"):
            configs.config_from_json(Plain, {"rate": 0.1, "sizes": [1], "other": 2})

    def test_stored_dataclasses_within_come_back(self):
        @dataclasses.dataclass(frozen=True)
        class Holder:
            either: str | Part = ""
            many: tuple[Part, ...] = ()
            pairs: tuple[tuple[int, int], ...] = ()

        for config in (Holder(), Holder("a"), Holder(Part(tau=4), (Part(), Part(0.25)), ((1, 2), (3, 4)))):
            stored = json.loads(json.dumps(configs.config_to_json(config)))
            assert configs.config_from_json(Holder, stored) == config
        assert configs.parts(str | tuple[Part, ...]) == (Part,)
        with pytest.raises(UsageError, match="Part differ in the fields tau"):
            configs.config_from_json(
                Holder, {**configs.config_to_json(Holder()), "either": {"type": "Part", "scale": 1.0}}
            )


class TestValues:
    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("width", 1.5, "width: expected a whole number, not 1.5"),
            ("width", True, "width: expected a whole number, not True"),
            ("rate", "0.1", "rate: expected float, not '0.1'"),
            ("rate", False, "rate: expected float, not False"),
            ("rate", float("nan"), "rate must be finite, not nan"),
            ("rate", float("inf"), "rate must be finite, not inf"),
            ("rate", 1e39, "rate: 1e\\+39 is too large"),
            ("seed", 2**31, "seed: 2147483648 is too large"),
            ("name", 3, "name: expected str, not 3"),
            ("deep", 1, "deep: expected bool, not 1"),
            ("mode", "z", "mode: 'z' is not one of x, y"),
            ("width", 0, "width must be at least 1, not 0"),
        ],
    )
    def test_bad_ones_are_named(self, field, value, message):
        with pytest.raises(UsageError, match=message):
            configs.product(Config, {field: (value,)})

    def test_the_largest_lane_values_fit(self):
        (config,) = configs.product(Config, {"seed": (2**31 - 1,), "rate": (3e38,)})
        columns = configs.lane_columns([config])
        assert columns["seed"] == 2**31 - 1
        assert np.isfinite(columns["rate"])

    def test_product_is_in_the_order_of_axes_the_last_fastest(self):
        made = configs.product(Config, {"rate": (0.1, 0.2), "seed": (0, 1, 2)})
        assert [(c.rate, c.seed) for c in made] == [(r, s) for r in (0.1, 0.2) for s in (0, 1, 2)]

    def test_unknown_and_empty_axes(self):
        with pytest.raises(UsageError, match="unknown field 'widht'; the fields are name, width"):
            configs.product(Config, {"widht": (1,)})
        with pytest.raises(UsageError, match="width: an axis needs at least one value"):
            configs.product(Config, {"width": ()})


class TestViews:
    def test_scripts_cannot_read_lanes(self):
        view = configs.host_view(Config(width=5))
        assert (view.width, view.part, type(view).__name__) == (5, Part(), "Config")
        assert isinstance(view, Config)
        for name in configs.lane_names(Config):
            with pytest.raises(AttributeError, match=f"{name} is a Lane field: .* annotate it without Lane"):
                getattr(view, name)

    def test_programs_read_traced_values_past_the_checks(self):
        traced = object()
        view = configs.traced_view(Config(width=5), {"rate": traced})
        assert view.rate is traced
        assert (view.width, view.count) == (5, 2)
