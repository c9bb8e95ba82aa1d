from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from asepsis.core.quality import Quality


def test_a_loss_is_per_target_and_an_accuracy_per_row_of_those_asked_for():
    total = np.array([1.0, 2.0, 9.0], np.float32)
    count, correct = np.array([1, 3, 1]), np.array([True, False, True])
    found = Quality.of(total, count, correct, np.array([0, 1]))
    assert found == Quality(2, 0.5, 0.75)
    assert found.standard_error == pytest.approx(math.sqrt(0.125))
    assert Quality.of(total, count, None, np.array([0])).accuracy is None


def test_accuracy_decides_then_the_loss_and_nan_is_worst():
    ordered = [Quality(9, 0.9, 5.0), Quality(9, 0.8, 0.1), Quality(9, 0.8, 0.2), Quality(9, 0.8, math.nan)]
    for better, worse in itertools.pairwise(ordered):
        assert better.better_than(worse) and not worse.better_than(better)
    assert Quality(9, None, 1.0).better_than(Quality(9, None, math.nan))
    assert not Quality(9, 0.5, 1.0).better_than(Quality(9, 0.5, 1.0))


def test_no_target_is_no_loss():
    nothing = Quality.of(np.zeros(1, np.float32), np.zeros(1, np.int64), None, np.array([0]))
    assert math.isnan(nothing.loss)
    assert nothing.to_dict()["loss"] is None
    assert math.isnan(Quality.mean([nothing, Quality(1, None, 1.0)]).loss)
