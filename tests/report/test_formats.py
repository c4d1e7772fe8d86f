import math

import numpy as np
import pytest

from neoteny.report import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "n/a"),
        (math.nan, "n/a"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (0.0, "0"),
        (-0.0, "0"),
        (5.0, "5"),
        (1000, "1000"),
        (12_000, "12\u202f000"),
        (-0.4312, "−0.431"),
        (0.5, "0.5"),
        (0.0998, "0.0998"),
        (0.09996, "0.1"),
        (9.996, "10"),
        (123.456, "123"),
        (3.14159e-7, "3.14 × 10⁻⁷"),
        (9.999e-8, "1 × 10⁻⁷"),
        (2.5e15, "2.5 × 10¹⁵"),
    ],
)
def test_numbers(value, text):
    assert formats.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "n/a"),
        (math.inf, "n/a"),
        (0, "0 FLOP"),
        (812, "812 FLOP"),
        (999.6, "1 kFLOP"),
        (1.2e12, "1.2 TFLOP"),
        (6.54e14, "654 TFLOP"),
        (3e21, "3000 EFLOP"),
    ],
)
def test_flops(value, text):
    assert formats.flops(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "n/a"),
        (math.nan, "n/a"),
        (0, "0 s"),
        (0.12, "120 ms"),
        (4.23, "4.2 s"),
        (59.97, "1 min"),
        (200, "3 min 20 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h"),
        (7500, "2 h 05 min"),
        (86_399, "1 d"),
        (100 * 3600, "4 d 4 h"),
    ],
)
def test_durations(seconds, text):
    assert formats.duration(seconds) == text


def test_a_negative_duration_is_an_error():
    with pytest.raises(ValueError, match="negative"):
        formats.duration(-1.0)


def test_rough_durations_have_no_false_precision():
    assert formats.rough_duration(2500) == "42 min"
    assert formats.rough_duration(61.7) == "1 min 02 s"
    assert formats.rough_duration(None) == "n/a"


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        (None, "n/a"),
        ((None, None), "n/a"),
        ((-0.5, 0.25), "[−0.5, 0.25]"),
        ((0.33, None), "[0.33, ∞)"),
        ((math.nan, 0.1), "(−∞, 0.1]"),
    ],
)
def test_intervals(bounds, text):
    assert formats.interval(bounds) == text


def test_any_value():
    assert formats.value(True) == "yes"
    assert formats.value(np.int64(3)) == "3"
    assert formats.value(np.float32("nan")) == "n/a"
    assert formats.value([1, None, "a"]) == "1, n/a, a"
    assert formats.value({"rate": 1e-3}) == "rate: 0.001"


def test_values_of_a_field():
    assert formats.values(tuple(range(20))) == "0 to 19"
    assert formats.values((0, 1, 2, 3, 4, 6)) == "0, 1, 2, 3, 4, 6"
    assert formats.values((True,) * 6) == "yes, yes, yes, yes, yes, yes"
    assert formats.values((None,)) == "none"
    assert formats.values(()) == "none"
