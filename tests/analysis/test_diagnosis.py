import numpy as np
import pytest

from neoteny.analysis.diagnosis import Limited, diagnose_gains


def answer(gains, score_range=1.0, **options):
    return diagnose_gains(gains, score_range, rng=np.random.default_rng(0), **options)


NOISE = np.array([-0.01, 0.01, -0.02, 0.02, 0.0, 0.015, -0.015, 0.0])


def test_the_three_answers():
    assert answer(NOISE + 0.2).answer is Limited.YES
    assert answer(NOISE).answer is Limited.NO
    assert answer(20 * NOISE).answer is Limited.UNDECIDED
    assert answer(NOISE - 0.3).answer is Limited.UNDECIDED  # injection harms: that says nothing of plasticity


def test_above_zero_comes_before_within_the_margin():
    found = answer(NOISE / 10 + 0.01)
    assert 0 < found.gain.low < found.gain.high < found.margin
    assert found.answer is Limited.YES


def test_the_margin_is_a_share_of_the_score_range():
    assert answer(NOISE, 100.0).margin == pytest.approx(5.0)
    assert answer(20 * NOISE, 100.0).answer is Limited.NO
    assert answer(NOISE, 1.0, margin=0.001).answer is Limited.UNDECIDED


def test_without_an_interval_nothing_is_decided():
    assert answer([0.5]).answer is Limited.UNDECIDED
    assert answer([np.nan, np.nan]).answer is Limited.UNDECIDED


def test_what_is_refused():
    with pytest.raises(ValueError, match="score range"):
        answer(NOISE, -1.0)
    with pytest.raises(ValueError, match="margin"):
        answer(NOISE, margin=0.0)
