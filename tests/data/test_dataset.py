from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asepsis.data import Data
from asepsis.errors import DataError


def make(n: int = 6, **changes: object) -> Data:
    columns = {
        "task": "classification",
        "texts": [f"text {i}" for i in range(n)],
        "labels": np.arange(n) % 2,
        "sample_ids": np.arange(n)[::-1] * 10,
        "n_classes": 2,
    }
    return Data(**{**columns, **changes})


def test_ids_stay_with_their_rows_under_select():
    data = make()
    part = data.select([4, 0, 3]).select([2, 1])
    assert part.sample_ids.tolist() == [20, 50]
    assert list(part.texts) == ["text 3", "text 0"]
    assert part.labels.tolist() == [1, 0]
    assert data.positions(part.sample_ids).tolist() == [3, 0]


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=20, unique=True), st.randoms())
def test_positions_find_every_id_and_split_is_a_partition(ids, random):
    data = make(len(ids), sample_ids=np.array(ids))
    chosen = random.sample(ids, random.randint(0, len(ids)))
    assert [ids[p] for p in data.positions(np.array(chosen, np.int64))] == chosen
    given_ids, rest = data.split(np.array(chosen, np.int64))
    assert given_ids.tolist() == chosen
    assert rest.tolist() == [i for i in ids if i not in chosen]


def test_unknown_ids_are_refused():
    for unknown in ([5], [60], [-1]):
        with pytest.raises(DataError, match="not in this data set"):
            make().positions(np.array(unknown))


def test_the_fingerprint_changes_with_any_character_label_or_id():
    def texts(last: str) -> list[str]:
        return ["a", "b", "c", "d", "e", last]

    base = make(texts=texts("f")).fingerprint
    assert make(texts=texts("f")).fingerprint == base
    others = {
        make(texts=texts("F")).fingerprint,
        make(texts=texts("f ")).fingerprint,
        make(texts=["ab", "", "c", "d", "e", "f"]).fingerprint,
        make(texts=texts("f"), labels=np.array([0, 1, 0, 1, 0, 0])).fingerprint,
        make(texts=texts("f"), sample_ids=np.arange(6)).fingerprint,
        make(texts=texts("f"), n_classes=3).fingerprint,
        make(texts=texts("f")).select([0, 1, 2, 3, 5, 4]).fingerprint,
    }
    assert len(others) == 7
    assert base not in others


def test_the_fingerprint_does_not_depend_on_the_source():
    assert make(source="a.csv").fingerprint == make(source="b.jsonl").fingerprint


def test_prompt_and_response_are_not_interchangeable_in_the_fingerprint():
    one = Data(task="causal", texts=["a"], responses=["b"])
    other = Data(task="causal", texts=["b"], responses=["a"])
    assert one.fingerprint != other.fingerprint


def test_plain_lists_become_int64_columns():
    data = make(labels=[0, 1, 0, 1, 2, 1], sample_ids=[1, 2, 3, 4, 5, 6], n_classes=None)
    assert data.labels.dtype == data.sample_ids.dtype == np.int64
    assert data.n_classes == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"texts": [], "labels": []}, "no rows"),
        ({"task": "regression"}, "task must be"),
        ({"labels": np.zeros(5, int)}, "columns differ in length"),
        ({"labels": None}, "answer column of classification is missing"),
        ({"task": "causal"}, "answer column of causal is missing"),
        ({"sample_ids": np.arange(5)}, "columns differ in length"),
        ({"sample_ids": np.array([1, 2, 3, 4, 5, 1])}, "duplicate sample ids"),
        ({"sample_ids": np.arange(6) / 2}, "sample_ids must be one integer a row, got float64"),
        ({"labels": np.zeros(6)}, "labels must be one integer a row, got float64"),
        ({"labels": np.zeros(6, bool)}, "labels must be one integer a row, got bool"),
        ({"labels": np.zeros((6, 1), int)}, r"labels must be one integer a row, got int64 of shape \(6, 1\)"),
        ({"labels": np.array([0, 1, 2, 0, 0, 0])}, r"labels must lie in 0\.\.1, got 0\.\.2"),
        ({"labels": np.array([0, -1, 1, 0, 0, 0])}, r"labels must lie in 0\.\.1, got -1\.\.1"),
        ({"labels": np.array([0, 10**9, 1, 0, 0, 0]), "n_classes": None}, "give n_classes"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(DataError, match=said):
        make(**changes)


def test_data_is_compared_by_identity_and_shown_briefly():
    data = make(1000)
    assert data != make(1000)
    assert data in {data}
    assert repr(data) == "Data(classification, 1,000 rows, n_classes=2, source='memory')"
