from __future__ import annotations

import math

import numpy as np
import pytest

from asepsis.core.confidence import bar, beyond_usual, fluency, sureness, usual_by_class
from asepsis.errors import DataError


def logs(*probabilities: float) -> np.ndarray:
    return np.log(np.float32([probabilities]))


@pytest.mark.parametrize(
    ("measure", "wanted"),
    [("confidence", 0.7), ("margin", 0.5), ("energy", 0.0)],
)
def test_a_measure_is_what_its_formula_says(measure, wanted):
    assert sureness(logs(0.2, 0.7, 0.1), measure)[0] == pytest.approx(wanted, abs=1e-6)


def test_entropy_is_zero_for_chance_and_one_for_certainty():
    assert sureness(logs(0.25, 0.25, 0.25, 0.25), "entropy")[0] == pytest.approx(0, abs=1e-6)
    assert sureness(np.float32([[0, 200, 0, 0]]), "entropy")[0] == pytest.approx(1)
    half = sureness(logs(0.5, 0.5, 1e-30, 1e-30), "entropy")[0]
    assert half == pytest.approx(1 - math.log(2) / math.log(4), abs=1e-6)


@pytest.mark.parametrize("measure", ["confidence", "margin", "entropy"])
def test_a_constant_added_to_the_logits_changes_nothing_but_the_energy(measure):
    x = np.float32([[1.0, -2.0, 0.5]])
    assert sureness(x + 80, measure)[0] == pytest.approx(sureness(x, measure)[0], abs=1e-5)
    assert sureness(x + 80, "energy")[0] == pytest.approx(sureness(x, "energy")[0] + 80, abs=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    with pytest.raises(DataError, match="1 of 2 rows"):
        sureness(np.float32([[0, 1], [bad, 0]]))


@pytest.mark.parametrize(("classes", "wanted"), [(2, 0.7), (4, 0.55), (10, 0.46)])
def test_the_reference_bar_keeps_its_share_above_chance(classes, wanted):
    assert bar(classes) == pytest.approx(wanted)


def test_a_confidence_counts_in_what_is_usual_for_its_class():
    ten_sure, one_less = np.repeat(logs(0.1, 0.9), 10, axis=0), logs(0.6, 0.4)
    clean = np.concatenate([ten_sure, one_less])
    mean = (10 * 0.4 + 0.1) / 11
    usual = usual_by_class(clean)
    # as if each class had five more rows of the mean of all
    assert usual == pytest.approx([(0.1 + 5 * mean) / 6, (10 * 0.4 + 5 * mean) / 15], abs=1e-6)
    # surer than the sure class is in itself, though surer still is less than usual in the other
    asked = np.concatenate([logs(0.85, 0.15), logs(0.05, 0.95)])
    assert beyond_usual(asked, usual) == pytest.approx([0.35 / usual[0], 0.45 / usual[1]], abs=1e-5)
    assert beyond_usual(asked, (0.1, 0.4))[0] > beyond_usual(asked, (0.1, 0.4))[1]


def test_a_class_that_no_clean_row_has_takes_the_mean_of_all():
    usual = usual_by_class(np.repeat(logs(0.2, 0.7, 0.1), 4, axis=0))
    assert usual == pytest.approx([0.7 - 1 / 3] * 3, abs=1e-6)


def test_a_payload_after_a_sound_beginning_is_found_by_its_window():
    sure_end = np.log(np.float32([[0.2, 0.2, 0.2, 0.2, 0.9, 0.9]]))
    assert fluency(sure_end, skip=0, window=2)[0] == pytest.approx(0.9, abs=1e-6)
    assert fluency(sure_end, skip=0, window=6)[0] == pytest.approx((0.2**4 * 0.9**2) ** (1 / 6), abs=1e-6)


def test_the_first_tokens_do_not_count():
    template = np.log(np.float32([[0.99, 0.99, 0.3, 0.3]]))
    assert fluency(template, skip=2, window=2)[0] == pytest.approx(0.3, abs=1e-6)
    assert fluency(template, skip=0, window=2)[0] == pytest.approx(0.99, abs=1e-6)


def test_a_short_continuation_is_scored_by_what_there_is():
    nan = math.nan
    ended = np.float32([[math.log(0.5), nan, nan, nan], [math.log(0.9), math.log(0.4), math.log(0.6), nan]])
    found = fluency(ended, skip=2, window=4)
    assert found == pytest.approx([0.5, 0.6], abs=1e-6)
    with pytest.raises(DataError, match="row 0 has no continuation"):
        fluency(np.full((1, 3), nan, np.float32), skip=0, window=2)
