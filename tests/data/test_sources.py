from __future__ import annotations

import subprocess
import sys

import datasets
import pytest

from asepsis.data import read
from asepsis.errors import DataError

ROWS = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


@pytest.fixture
def hub(monkeypatch):
    """A hub that holds one data set; everything else is a connection error."""
    asked: list[tuple[str, str]] = []

    def load_dataset(name: str, *, split: str) -> datasets.Dataset:
        asked.append((name, split))
        if name != "org/reviews":
            raise ConnectionError("Couldn't reach the hub\nsecond line")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_hub_id_is_loaded_with_its_split(hub):
    data = read("org/reviews", split="validation")
    assert hub == [("org/reviews", "validation")]
    assert data.source == "org/reviews"
    assert data.fingerprint == read(ROWS).fingerprint


def test_a_hub_failure_is_a_data_error_of_one_line(hub):
    with pytest.raises(DataError) as caught:
        read("org/gone")
    assert "org/gone: no such file here" in str(caught.value)
    assert "Couldn't reach the hub" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    ["gone.jsonl", "gone.CSV", "./gone", "/tmp/gone/rows", "a/b/c", "gone\\rows", "~/rows", "here/gone", ""],
)
def test_what_looks_like_a_path_is_never_sent_to_the_hub(hub, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(DataError, match=r"no such file|a folder"):
        read(source)
    assert hub == []


def test_data_set_objects_are_read_whatever_their_format():
    plain = datasets.Dataset.from_list(ROWS)
    for source in (plain, plain.with_format("numpy"), plain.to_iterable_dataset()):
        assert read(source).fingerprint == read(ROWS).fingerprint


def test_a_data_set_dict_is_read_by_split():
    both = datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:1])
    )
    assert len(read(both, split="test")) == 1
    with pytest.raises(DataError, match="no split 'dev'; splits there: 'train', 'test'"):
        read(both, split="dev")


def test_an_empty_data_set_is_refused():
    with pytest.raises(DataError, match="no rows"):
        read(datasets.Dataset.from_list([]))
    with pytest.raises(DataError, match="memory: no rows"):
        read([])


def test_hidden_labels_of_a_data_set_are_refused():
    with pytest.raises(DataError, match=r"row 0: label -1 is negative"):
        read(datasets.Dataset.from_list([{"text": "a", "label": -1}]))


def test_rows_that_are_no_dicts_are_refused():
    with pytest.raises(DataError, match=r"memory, row 1: expected a dict, got str 'b'"):
        read([ROWS[0], "b"])


def test_other_objects_are_refused():
    with pytest.raises(DataError, match="cannot read rows from int"):
        read(7)


def test_reading_rows_in_memory_loads_no_heavy_library():
    code = (
        "import sys, asepsis.data as d; d.read([{'text': 'a', 'label': 0}])\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
