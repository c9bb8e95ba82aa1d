from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asepsis.core.phases import Train
from asepsis.errors import ConfigError, DataError
from asepsis.testing import tiny_rows
from asepsis.training.plan import make_plan

DATA = tiny_rows(60, 0)


def plan_of(request=None, data=DATA, *, epochs=1.0, batch_size=7, accumulation=1, seed=3):
    request = request or Train(name="t")
    return make_plan(
        request, data, epochs=epochs, batch_size=batch_size, accumulation=accumulation, seed=seed
    )


@given(n=st.integers(1, 60), batch_size=st.integers(1, 20), epochs=st.integers(1, 3))
def test_every_row_comes_once_an_epoch(n, batch_size, epochs):
    data = tiny_rows(n, 0)
    seen = Counter(p for batch in plan_of(data=data, batch_size=batch_size, epochs=epochs) for p, _ in batch)
    assert seen == Counter(dict.fromkeys(range(n), epochs))


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.floats(0.2, 3))
def test_length_is_steps_times_accumulation_and_covers_the_epochs(n, batch_size, accumulation, epochs):
    plan = plan_of(data=tiny_rows(n, 0), batch_size=batch_size, accumulation=accumulation, epochs=epochs)
    batches = list(plan)
    assert len(plan) == len(batches) == plan.steps * accumulation
    assert plan.steps == int(np.ceil(epochs * (-(-n // batch_size) / accumulation)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)


def test_only_the_requested_rows_come_named_by_id():
    wanted = DATA.sample_ids[[5, 9, 40]]
    seen = {p for batch in plan_of(Train(name="t", rows=wanted, steps=5)) for p, _ in batch}
    assert seen == {5, 9, 40}


@pytest.mark.parametrize(("batch_size", "ordinary", "apart"), [(8, 4, 4), (7, 4, 3), (2, 1, 1)])
def test_half_of_each_batch_is_isolated_and_marked(batch_size, ordinary, apart):
    ids = DATA.sample_ids
    request = Train(name="t", rows=ids[12:], isolated=ids[:12], steps=12)
    batches = list(plan_of(request, batch_size=batch_size))
    assert all(marked == (p < 12) for batch in batches for p, marked in batch)
    assert Counter(sum(marked for _, marked in batch) for batch in batches) == {apart: 12}
    assert Counter(sum(not marked for _, marked in batch) for batch in batches) == {ordinary: 12}


def test_the_seed_decides_the_plan_and_iterating_again_repeats_it():
    plan = plan_of(epochs=2)
    assert list(plan) == list(plan) == list(plan_of(epochs=2))
    assert list(plan) != list(plan_of(epochs=2, seed=4))


def test_two_epochs_differ_in_order():
    batches = list(plan_of(epochs=2))
    half = len(batches) // 2
    assert batches[:half] != batches[half:]


def test_batches_hold_rows_of_like_length_but_do_not_come_sorted():
    lengths = np.array([len(text) for text in DATA.texts])
    means = [lengths[[p for p, _ in batch]] for batch in plan_of(batch_size=6)]
    spread = np.mean([np.ptp(part) for part in means])
    shuffled = np.random.default_rng(0).permutation(lengths)
    at_random = np.mean([np.ptp(shuffled[i : i + 6]) for i in range(0, 60, 6)])
    assert spread < at_random / 3
    assert [m.mean() for m in means] != sorted(m.mean() for m in means)


def test_rows_beside_isolated_ones_are_not_grouped_by_length():
    ids, lengths = DATA.sample_ids, np.array([len(text) for text in DATA.texts])
    request = Train(name="t", rows=ids[12:], isolated=ids[:12], epochs=1)
    parts = [lengths[[p for p, i in batch if not i]] for batch in plan_of(request, batch_size=12)]
    assert np.mean([np.ptp(part) for part in parts]) > 20


def test_a_fraction_of_an_epoch_is_rounded_up_to_a_step():
    assert plan_of(epochs=0.01).steps == 1


def test_rows_both_ordinary_and_isolated_are_refused():
    with pytest.raises(ConfigError, match="both ordinary and isolated"):
        plan_of(Train(name="t", rows=DATA.sample_ids[:5], isolated=DATA.sample_ids[4:8]))


def test_isolated_rows_need_two_places_in_a_batch():
    request = Train(name="t", rows=DATA.sample_ids[5:], isolated=DATA.sample_ids[:5])
    with pytest.raises(ConfigError, match="at least 2"):
        plan_of(request, batch_size=1)


def test_no_step_at_all_is_refused():
    with pytest.raises(ConfigError, match="no optimizer step"):
        plan_of(Train(name="t", epochs=0.0))
    with pytest.raises(ConfigError, match="no optimizer step"):
        plan_of(Train(name="t", steps=0))


def test_an_id_of_other_data_is_refused():
    with pytest.raises(DataError, match="not in this data set"):
        plan_of(Train(name="t", rows=np.array([7])))
