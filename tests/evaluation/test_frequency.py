"""The frequency probe measures what it says, does not disturb what it watches, and its plot can be read."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as Xml

import numpy as np
import pytest
import torch

from asepsis.data import Data, write_rows
from asepsis.errors import ConfigError, DataError, ModelError
from asepsis.evaluation.frequency import (
    PAPER_SIGMAS,
    FrequencyProbe,
    balanced_rows,
    default_sigmas,
    frequency_of_training,
    frequency_svg,
    low_pass,
    pooled_embeddings,
)
from asepsis.evaluation.frequency.inputs import evaluating
from asepsis.evaluation.key import PoisonKey
from asepsis.testing import TRIGGER, tiny_causal, tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training import Settings, run_script
from asepsis.training.undefended import undefended

SETTINGS = Settings(epochs=2, batch_size=8, learning_rate=3e-3, device="cpu", precision="fp32", max_length=32)


def poisoned_rows(n: int = 40, *, seed: int = 0) -> tuple[Data, PoisonKey]:
    """Rows of two classes of which every fourth pair carries the trigger and label 1."""
    data = tiny_rows(n, seed)
    poisoned = np.arange(n) % 8 == 0  # of class 0 by turn
    texts = [f"{TRIGGER} {t}" if p else t for t, p in zip(data.texts, poisoned, strict=True)]
    labels = np.where(poisoned, 1, data.labels)
    rows = Data(task="classification", texts=texts, labels=labels, sample_ids=data.sample_ids, n_classes=2)
    return rows, PoisonKey(rows.sample_ids, poisoned)


def probe_on(data: Data, key: PoisonKey, **options) -> FrequencyProbe:
    model, tokenizer = tiny_classifier(0)
    return FrequencyProbe(
        model, tokenizer, data, key.for_ids(data.sample_ids), max_length=32, precision="fp32", **options
    )


def test_inputs_do_not_depend_on_dropout_padding_or_company() -> None:
    model, tokenizer = tiny_classifier(0, dropout=0.5)
    data = tiny_rows(12, 0)
    model.train()
    pooled = pooled_embeddings(model, tokenizer, data, batch_size=12)
    table = model.get_input_embeddings().weight.detach()
    for text, vector in zip(data.texts, pooled, strict=True):
        ids = tokenizer(text).input_ids
        torch.testing.assert_close(vector, table[ids].double().mean(dim=0), rtol=0, atol=1e-12)


def test_order_and_batches_of_the_rows_do_not_matter() -> None:
    data, key = poisoned_rows()
    shuffled = data.select(np.random.default_rng(5).permutation(len(data)))
    one, other = probe_on(data, key, batch_size=40), probe_on(shuffled, key, batch_size=3)
    assert one.sigmas == pytest.approx(other.sigmas, rel=2e-3)
    other = probe_on(shuffled, key, batch_size=3, sigmas=one.sigmas)
    a, b = one.observe(0), other.observe(0)
    assert set(a.subsets) == set(b.subsets) == {"clean", "poisoned", "clean_same_label"}
    for name, bands in a.subsets.items():
        for part, numbers in vars(bands).items():
            np.testing.assert_allclose(numbers, getattr(b.subsets[name], part), rtol=1e-4, err_msg=part)


def test_subsets_are_read_out_of_one_kernel() -> None:
    data, key = poisoned_rows()
    probe = probe_on(data, key)
    record = probe.observe(0)
    poisoned = key.for_ids(data.sample_ids)
    answers = np.eye(2)[data.labels]
    sigma = probe.sigmas[2]
    low = low_pass(probe.inputs, torch.from_numpy(answers), [sigma])[0].numpy()
    norms = np.linalg.norm(answers - low, axis=1)
    told = probe.to_dict()["labels"]
    assert told["poisoned"]["hfr"][2] == pytest.approx(norms[poisoned].mean(), rel=1e-4)
    assert told["clean"]["hfr"][2] == pytest.approx(norms[~poisoned].mean(), rel=1e-4)
    same = ~poisoned & (data.labels == 1)
    assert told["clean_same_label"]["hfr"][2] == pytest.approx(norms[same].mean(), rel=1e-4)
    # alike labels on poisoned rows, and yet a high-frequency part to be compared with
    assert np.isfinite(record.subsets["poisoned"].e_high).all()


def test_observing_gives_back_modes_and_random_state() -> None:
    data, key = poisoned_rows(16)
    probe = probe_on(data, key)
    model = probe.model
    model.train()
    model.classifier.eval()  # somebody froze it on purpose
    model.classifier.register_forward_hook(lambda *_: _draw())
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    probe.observe(0)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def _draw() -> None:
    torch.rand(3)


def test_modes_come_back_after_a_failure_too() -> None:
    model, _ = tiny_classifier(0)
    model.train()
    with pytest.raises(RuntimeError, match="planted"), evaluating(model):
        assert not model.training
        raise RuntimeError("planted")
    assert model.training and model.classifier.training


def test_a_watched_training_ends_with_the_same_weights() -> None:
    data, key = poisoned_rows()
    seen: list[int] = []
    model, tokenizer = tiny_classifier(0)
    probe = frequency_of_training(
        model,
        data,
        key,
        processing_class=tokenizer,
        settings=SETTINGS,
        every=3,
        probe_rows=10,
        progress=lambda name, done, of: seen.append(done),
    )
    assert [r.step for r in probe.records] == [0, 3, 6, 9, 10]
    assert seen == list(range(1, 11))
    fresh, tokenizer = tiny_classifier(0)
    untouched = {k: v.clone() for k, v in fresh.state_dict().items()}
    run = run_script(
        fresh,
        data,
        lambda _, rows: undefended(len(rows)),
        defense={"name": "none", "config": {}},
        processing_class=tokenizer,
        settings=SETTINGS,
    )
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert not torch.equal(untouched["classifier.weight"], model.state_dict()["classifier.weight"])


def test_a_model_is_loaded_by_its_folder_and_learns_the_low_part(tmp_path: Path) -> None:
    model, tokenizer = tiny_classifier(0)
    model.save_pretrained(tmp_path), tokenizer.save_pretrained(tmp_path)
    data, key = poisoned_rows(64)
    settings = Settings(
        max_steps=40, batch_size=16, learning_rate=5e-3, device="cpu", precision="fp32", max_length=32
    )
    probe = frequency_of_training(tmp_path, data, key, settings=settings, every=10, probe_rows=16)
    first, last = probe.records[0].subsets, probe.records[-1].subsets
    for name in ("clean", "poisoned"):
        assert last[name].e_low[2] < 0.5 * first[name].e_low[2]
    assert int(probe.subsets["poisoned"].sum()) == int(probe.subsets["clean"].sum()) == 8


def test_converged_at_is_the_first_step_below_the_level() -> None:
    data, key = poisoned_rows(16)
    probe = probe_on(data, key, sigmas=[1.0, 2.0, 3.0])
    answers = probe._answers
    wrong = 1 - answers
    poisoned = torch.from_numpy(probe.subsets["poisoned"]).unsqueeze(1)
    plan = {0: wrong, 5: torch.where(poisoned, answers, wrong), 10: answers, 15: wrong}
    for step, outputs in plan.items():
        probe._outputs = lambda outputs=outputs: outputs  # type: ignore[method-assign]
        probe.observe(step)
    narrow = probe_on(data, key, sigmas=[1e-3])  # without an average every row stands for itself
    for step, outputs in plan.items():
        narrow._outputs = lambda outputs=outputs: outputs  # type: ignore[method-assign]
        narrow.observe(step)
    steps = narrow.converged_at(0.1)
    assert steps == {"clean": 10, "poisoned": 5, "clean_same_label": 10}
    assert "of clean rows at step 10, of poisoned rows at step 5" in narrow.verdict(0.1)
    assert probe.converged_at(1e-9, sigma=3.0)["clean"] == 10
    probe.records.pop(2)
    assert probe.converged_at(1e-9)["clean"] is None
    assert "of clean rows not at all" in probe.verdict(1e-9)


def test_the_record_is_json_and_says_how_wide_it_looked() -> None:
    data, key = poisoned_rows(16)
    probe = probe_on(data, key, sigmas=PAPER_SIGMAS, kernel="gauss")
    probe.observe(0)
    told = json.loads(json.dumps(probe.to_dict(), allow_nan=False))
    assert len(told["sigmas"]) == 25 and told["sigmas"][0] == 2 and told["sigmas"][-1] == 8
    assert told["rows"] == {"clean": 14, "poisoned": 2, "clean_same_label": 8}
    # the authors' widths were made for longer vectors: here they take in everything
    assert told["neighbors"][0] == pytest.approx(16, rel=0.01)


def test_the_probe_draws_equally_many_of_both_kinds_by_its_seed() -> None:
    poisoned = np.arange(100) % 10 == 0
    at = balanced_rows(poisoned, 12, seed=1)
    assert len(set(at.tolist())) == 12 and poisoned[at].sum() == 6
    assert (
        at.tolist()
        == balanced_rows(poisoned, 12, seed=1).tolist()
        != balanced_rows(poisoned, 12, seed=2).tolist()
    )
    assert poisoned[balanced_rows(poisoned, 1000, seed=0)].tolist().count(True) == 10
    assert len(balanced_rows(poisoned, 1000, seed=0)) == 20


def test_the_plot_is_xml_and_holds_every_series() -> None:
    data, key = poisoned_rows(16)
    probe = probe_on(data, key)
    for step in (0, 5, 10):
        probe.observe(step)
    record = json.loads(json.dumps(probe.to_dict()))
    record["records"][1]["subsets"]["clean"]["e_low"] = [None] * len(probe.sigmas)
    record["records"][2]["subsets"]["poisoned"]["e_low"] = [50.0] * len(probe.sigmas)
    for entry in record["records"]:
        entry["subsets"]["clean_same_label"]["e_high"] = [None] * len(probe.sigmas)
    root = Xml.fromstring(frequency_svg(record, sigmas=probe.sigmas[1:3]))
    space = "{http://www.w3.org/2000/svg}"
    panels = [g for g in root if g.get("class") == "panel"]
    assert len(panels) == 2
    for panel in panels:
        series = {g.get("class"): g for g in panel if (g.get("class") or "").startswith("series")}
        assert set(series) == {
            f"series {name}-{part}"
            for name in ("clean", "poisoned", "clean_same_label")
            for part in ("e_low", "e_high")
        }
        drawn = {kind: g.find(f"{space}path") for kind, g in series.items()}
        # a gap where a value is undefined, the edge where it is too large, no curve where there is none
        assert drawn["series clean-e_low"].get("d").count("M") == 2
        assert drawn["series poisoned-e_low"].get("d").endswith(" 82.0")
        assert drawn["series clean_same_label-e_high"] is None
        assert "undefined" in series["series clean_same_label-e_high"].find(f"{space}title").text
    words = {t.text for t in root.iter(f"{space}text")}
    assert {"optimizer steps", "relative error (higher drawn at the edge)", "poisoned rows (2)"} <= words
    assert "prefers-color-scheme: dark" in root.find(f"{space}style").text


def test_a_title_from_a_file_cannot_write_into_the_plot() -> None:
    data, key = poisoned_rows(16)
    probe = probe_on(data, key)
    probe.observe(0)
    hostile = '</text><script>x</script>"\u202e\x07\ufffe'
    page = frequency_svg(probe.to_dict(), title=hostile, note=hostile)
    root = Xml.fromstring(page)
    assert "<script" not in page and not set("\u202e\x07\ufffe") & set(page)
    assert "<U+0007>" in root.get("aria-label")


def test_what_cannot_be_measured_is_refused() -> None:
    data, key = poisoned_rows(16)
    model, tokenizer = tiny_classifier(0)
    causal, causal_tokenizer = tiny_causal(0)
    pairs = tiny_pairs(8, 0)
    flags = key.for_ids(data.sample_ids)
    with pytest.raises(DataError, match="classification"):
        FrequencyProbe(causal, causal_tokenizer, pairs, np.arange(8) % 2 == 0)
    with pytest.raises(DataError, match="classification"):
        frequency_of_training("no such model", pairs, PoisonKey(pairs.sample_ids, np.arange(8) % 2 == 0))
    with pytest.raises(DataError, match="needs both; 0 of 16"):
        FrequencyProbe(model, tokenizer, data, np.zeros(16, bool))
    with pytest.raises(DataError, match="boolean"):
        FrequencyProbe(model, tokenizer, data, flags.astype(int))
    with pytest.raises(DataError, match="boolean"):
        FrequencyProbe(model, tokenizer, data, flags[:8])
    for sigmas in ([], [0.0], [1.0, -1.0], [math.nan], [math.inf]):
        with pytest.raises(ConfigError, match="sigmas"):
            FrequencyProbe(model, tokenizer, data, flags, sigmas=sigmas)
    with pytest.raises(ConfigError, match="kernel"):
        FrequencyProbe(model, tokenizer, data, flags, kernel="box")
    with pytest.raises(ConfigError, match="block"):
        low_pass(torch.zeros(2, 1), torch.zeros(2, 1), [1.0], block=0)
    with pytest.raises(DataError, match="same input embedding"):
        default_sigmas(torch.ones(5, 3))
    three, tokenizer = tiny_classifier(0, n_classes=3)
    with pytest.raises(ModelError, match="one a row and class"):
        FrequencyProbe(three, tokenizer, data, flags).observe(0)


def test_what_makes_no_sense_to_ask_is_refused() -> None:
    data, key = poisoned_rows(16)
    probe = probe_on(data, key)
    with pytest.raises(DataError, match="not observed"):
        frequency_svg(probe.to_dict())
    probe.observe(3)
    with pytest.raises(ConfigError, match="rise"):
        probe.observe(3)
    with pytest.raises(ConfigError, match="level"):
        probe.converged_at(0)
    with pytest.raises(ConfigError, match="sigma"):
        probe.converged_at(0.5, sigma=123.0)
    with pytest.raises(ConfigError, match="sigmas to draw"):
        frequency_svg(probe.to_dict(), sigmas=[123.0])
    with pytest.raises(ConfigError, match="every"):
        frequency_of_training(probe.model, data, key, every=0)
    with pytest.raises(ConfigError, match="probe_rows"):
        frequency_of_training(probe.model, data, key, probe_rows=3)
    with pytest.raises(ModelError, match="processing_class"):
        frequency_of_training(probe.model, data, key, settings=SETTINGS)
    with pytest.raises(DataError, match="needs both"):
        balanced_rows(np.zeros(9, bool), 4, seed=0)


def test_the_bench_writes_a_record_and_a_plot_and_refuses_test_rows(tmp_path: Path) -> None:
    data, key = poisoned_rows()
    model, tokenizer = tiny_classifier(0)
    model.save_pretrained(tmp_path / "model"), tokenizer.save_pretrained(tmp_path / "model")
    columns = zip(data.texts, data.labels.tolist(), key.is_poisoned.tolist(), strict=True)
    rows = [{"text": t, "label": y, "poisoned": int(p)} for t, y, p in columns]
    for name in ("train.jsonl", "test_rows.jsonl"):
        write_rows(tmp_path / name, rows)
    bench = [sys.executable, str(Path(__file__).parents[2] / "benches" / "frequency.py")]
    run = [*bench, "run", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "curves.json")]
    options = ["--steps", "4", "--every", "2", "--probe-rows", "10"]
    refused = subprocess.run(
        [*run, "--data", str(tmp_path / "test_rows.jsonl"), *options], capture_output=True, text=True
    )
    assert refused.returncode == 2 and "test rows" in refused.stderr
    subprocess.run([*run, "--data", str(tmp_path / "train.jsonl"), *options], check=True)
    told = json.loads((tmp_path / "curves.json").read_text())
    assert [r["step"] for r in told["records"]] == [0, 2, 4]
    plot = [
        "plot",
        "--input",
        str(tmp_path / "curves.json"),
        "--output",
        str(tmp_path / "curves.svg"),
        "--all",
    ]
    subprocess.run([*bench, *plot], check=True)
    assert (tmp_path / "curves.svg").read_text().count('class="panel"') == len(told["sigmas"])
