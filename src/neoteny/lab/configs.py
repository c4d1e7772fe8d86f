"""Configurations: frozen dataclasses whose fields are axes. Their content names the run.

A field annotated `Lane[float]` or `Lane[int]` may differ between the lanes of one compiled program; any other
field is part of the program's structure.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, TypeVar

import numpy as np

from neoteny.errors import UsageError

T = TypeVar("T")


class _LaneMark:
    """Marks a field that may differ between lanes."""


LANE = _LaneMark()
Lane = Annotated[T, LANE]
"""`Lane[float]` or `Lane[int]`: many values of this field share one compiled program."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a configuration: its name, its plain type, and whether lanes may differ in it."""

    name: str
    type: Any
    lane: bool
    default: Any


def fields(config_type: type) -> dict[str, Field]:
    """The fields of a configuration class by name."""
    hints = typing.get_type_hints(config_type, include_extras=True)
    result = {}
    for item in dataclasses.fields(config_type):
        hint = hints[item.name]
        lane = typing.get_origin(hint) is Annotated and LANE in typing.get_args(hint)[1:]
        plain = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
        if lane and plain not in (int, float):
            raise TypeError(f"{config_type.__name__}.{item.name}: only int and float fields can be lanes, not {plain}")
        result[item.name] = Field(item.name, plain, lane, item.default)
    return result


def lane_names(config_type: type) -> tuple[str, ...]:
    """Names of the fields that may differ between lanes."""
    return tuple(name for name, field in fields(config_type).items() if field.lane)


_INT32 = 2**31 - 1


def coerce(field: Field, value: Any) -> Any:
    """`value` as the field's type (an int for a float field becomes a float); UsageError if it is none."""
    if field.type is float and isinstance(value, int | float) and not isinstance(value, bool):
        value = float(value)
    if field.type is int and not (isinstance(value, int) and not isinstance(value, bool)):
        raise UsageError(f"{field.name}: expected a whole number, not {value!r}")
    if field.type in (float, str, bool) and not isinstance(value, field.type):
        raise UsageError(f"{field.name}: expected {field.type.__name__}, not {value!r}")
    if typing.get_origin(field.type) is typing.Literal and value not in typing.get_args(field.type):
        known = ", ".join(map(str, typing.get_args(field.type)))
        raise UsageError(f"{field.name}: {value!r} is not one of {known}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{field.name} must be finite, not {value}")
    # Lane fields are int32 and float32 inside the program.
    limit = _INT32 if field.type is int else float(np.finfo(np.float32).max)
    if field.lane and not (isinstance(value, int | float) and -limit <= value <= limit):
        raise UsageError(f"{field.name}: {value} is too large; at most {limit:g} fits")
    return value


def product(config_type: type, axes: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Every combination of the axes' values as a configuration; the last axis runs fastest."""
    known = fields(config_type)
    for name, values in axes.items():
        if name not in known:
            raise UsageError(f"unknown field {name!r}; the fields are {', '.join(known)}")
        if len(values) == 0:
            raise UsageError(f"{name}: an axis needs at least one value")
    columns = [[coerce(known[name], value) for value in values] for name, values in axes.items()]
    return [
        _make(config_type, dict(zip(axes, combination, strict=True))) for combination in itertools.product(*columns)
    ]


def _make(config_type: type, values: Mapping[str, Any]) -> Any:
    try:
        return config_type(**values)
    except ValueError as error:
        raise UsageError(str(error)) from error


def to_json(value: Any) -> Any:
    """A configuration value as JSON data: dataclasses carry their class name, enums their value."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        content = {item.name: to_json(getattr(value, item.name)) for item in dataclasses.fields(value)}
        return {"type": type(value).__name__, **content}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list | range):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic):
        return to_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"a configuration value must be finite, not {value}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UsageError(
        f"a configuration value must be a number, text, tuple or frozen dataclass, not {type(value).__name__}"
    )


def config_to_json(config: Any) -> dict[str, Any]:
    """All fields of a configuration with defaults written out."""
    return {item.name: to_json(getattr(config, item.name)) for item in dataclasses.fields(config)}


def config_from_json(config_type: type, content: Mapping[str, Any]) -> Any:
    """The configuration that `config_to_json` wrote."""
    known = fields(config_type)
    if set(content) != set(known):
        differing = sorted(set(content) ^ set(known))
        raise UsageError(
            f"the stored configuration and {config_type.__name__} differ in the fields {', '.join(differing)}: "
            f"the study was changed; start again in another directory"
        )
    values = {name: _restored(known[name].type, value) for name, value in content.items()}
    return _make(config_type, {name: coerce(known[name], value) for name, value in values.items()})


def parts(kind: Any) -> tuple[type, ...]:
    """The dataclasses that a value of this type may be or hold."""
    own = (kind,) if isinstance(kind, type) and dataclasses.is_dataclass(kind) else ()
    return own + tuple(part for argument in typing.get_args(kind) for part in parts(argument))


def _restored(kind: Any, content: Any) -> Any:
    """A value of this type from JSON: lists are tuples, and objects the dataclass that they name."""
    if isinstance(content, list):
        return tuple(_restored(kind, item) for item in content)
    if isinstance(content, Mapping):
        for part in parts(kind):
            if part.__name__ == content.get("type"):
                return config_from_json(part, {name: value for name, value in content.items() if name != "type"})
    return content


def canonical(content: Any) -> str:
    """JSON with sorted keys and no spaces: equal content gives equal text."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(content: Any, length: int = 12) -> str:
    """The first hex digits of the SHA-256 of canonical JSON."""
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:length]


def run_name(study: str, experiment: str, config: Any) -> str:
    """The name of a run: a hash of its study, experiment and whole configuration."""
    return digest({"study": study, "experiment": experiment, "config": config_to_json(config)})


def structure(config: Any) -> dict[str, Any]:
    """The part of a configuration that decides the program: everything but the lane fields."""
    lanes = lane_names(type(config))
    return {name: value for name, value in config_to_json(config).items() if name not in lanes}


def _build(config_type: type, values: Mapping[str, Any]) -> Any:
    """An instance with these attributes, past `__init__`, whose checks cannot judge traced numbers."""
    instance = object.__new__(config_type)
    for name, value in values.items():
        object.__setattr__(instance, name, value)
    return instance


def host_view(config: Any) -> Any:
    """The configuration as streams and scripts see it: reading a lane field raises and says why."""
    config_type = type(config)
    lanes = lane_names(config_type)

    def absent(name: str) -> property:
        def read(_: Any) -> Any:
            raise AttributeError(
                f"{name} is a Lane field: it differs between the lanes of one program, so streams and "
                f"scripts cannot depend on it; annotate it without Lane[...] if they must"
            )

        return property(read)

    view_type = type(config_type.__name__, (config_type,), {name: absent(name) for name in lanes})
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.name not in lanes}
    return _build(view_type, values)


def lane_columns(configs: Sequence[Any]) -> dict[str, np.ndarray]:
    """The lane fields of these configurations as columns (lanes,): float32 and int32."""
    known = fields(type(configs[0]))
    columns = {}
    for name in lane_names(type(configs[0])):
        dtype = np.float32 if known[name].type is float else np.int32
        columns[name] = np.asarray([getattr(config, name) for config in configs], dtype)
    return columns


def traced_view(config: Any, lane_values: Mapping[str, Any]) -> Any:
    """The configuration inside a traced program: lane fields are the traced scalars given."""
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    return _build(type(config), {**values, **lane_values})
