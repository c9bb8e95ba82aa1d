"""Folders that were altered, that do not fit together, or that somebody made up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asepsis.core.evidence import EVIDENCE, write_evidence
from asepsis.core.manifest import write_manifest
from asepsis.errors import AsepsisError, CheckpointError, DataError
from asepsis.evaluation.report import report_of


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "asepsis.json"
    manifest = {**json.loads(path.read_text()), **changes}
    manifest.pop("files")
    write_manifest(folder, manifest)


@pytest.mark.parametrize("name", ["asepsis_rows.jsonl", EVIDENCE])
def test_a_file_that_is_not_what_the_manifest_says_is_refused(make, name):
    folder = make("scan")
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(CheckpointError, match="asepsis verify"):
        report_of(folder)


def test_a_table_of_the_demo_that_was_touched_up_is_refused(make):
    folder = make("demo")
    path = folder / "demo.json"
    path.write_text(path.read_text().replace("0.15", "0.05"))
    with pytest.raises(CheckpointError, match=r"is not what asepsis\.json says"):
        report_of(folder)


def test_evidence_the_manifest_does_not_list_is_refused(make):
    folder = make("none")
    write_evidence(folder, {"token.id": np.arange(2), "token.drift": np.ones(2, np.float32)})
    with pytest.raises(CheckpointError, match="is not what"):
        report_of(folder)


def test_losses_of_other_rows_are_refused(make):
    folder = make("train", n=10)
    write_evidence(folder, {"loss.steps": np.arange(2), "loss.values": np.ones((2, 9), np.float32)})
    rewrite(folder)
    with pytest.raises(CheckpointError, match="is of 9 rows"):
        report_of(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}', '{"format": 9}', "{" * 10_000])
def test_a_folder_that_is_none_of_ours_is_refused(tmp_path, content):
    (tmp_path / "asepsis.json").write_text(content)
    with pytest.raises(CheckpointError):
        report_of(tmp_path)
    with pytest.raises(CheckpointError, match="was not written by asepsis"):
        report_of(tmp_path / "nowhere")


def test_a_victim_of_an_attack_has_no_report_and_the_kinds_that_have_one_are_named(tmp_path):
    write_manifest(tmp_path, {"attack": "ep"})
    with pytest.raises(CheckpointError, match="purify, demo, guard fit"):
        report_of(tmp_path)


@pytest.mark.parametrize("kind", ["train", "btu", "purify", "scan", "model", "check"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_record_of_other_types_is_an_error_that_says_so_or_a_report(make, kind, data):
    folder = make(kind, n=6, flagged=2)
    manifest = json.loads((folder / "asepsis.json").read_text())
    places = [path for path in paths(manifest) if path[0] not in ("files", "format")]
    where = data.draw(st.sampled_from(places))
    value = data.draw(st.sampled_from([None, [], {}, "x", -1, 1e300, True, [None], {"a": 1}]))
    holder = manifest
    for step in where[:-1]:
        holder = holder[step]
    holder[where[-1]] = value
    manifest.pop("files")
    write_manifest(folder, manifest)
    try:
        report_of(folder)
    except AsepsisError as error:
        assert str(folder) in str(error)


def paths(value, above=()):
    found = []
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, below in entries:
        found += [(*above, key), *paths(below, (*above, key))]
    return found


def test_a_key_where_no_row_was_judged_is_an_error(make, tmp_path):
    key = tmp_path / "key.jsonl"
    key.write_text('{"row": 0, "poisoned": 1}\n')
    for kind in ("guard", "model"):
        with pytest.raises(CheckpointError, match="judged no rows"):
            report_of(make(kind), key=key)
    with pytest.raises(DataError, match="does not know row"):
        report_of(make("train"), key=key)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"clean_accuracy": 1}'])
def test_a_file_that_is_no_evaluation_is_refused(make, tmp_path, content):
    path = tmp_path / "e.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"e\.json"):
        report_of(make("train"), evaluations=[path])
