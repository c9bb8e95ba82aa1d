"""The guard: fitted, asked, saved, loaded, wrapped around a pipeline."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

import asepsis
from asepsis.core.conformal import calibrate
from asepsis.data import write_rows
from asepsis.defenses.base import DefenseConfig
from asepsis.errors import CheckpointError, ConfigError, DataError, MissingReference, ModelError
from asepsis.inference.guard import Guard
from asepsis.testing import tiny_causal, tiny_classifier, tiny_pairs, tiny_rows


def test_the_threshold_is_calibrated_on_rows_the_module_did_not_learn_from(guard, victim):
    data = guard.manifest["data"]
    assert (data["rows"], data["learned"], data["calibrated"]) == (300, 150, 150)
    assert guard.threshold.n == 150 and guard.threshold.expected_fpr <= 0.05
    fresh = guard.check(victim.clean(400, 77)).flagged.mean()
    # three deviations of 400 rows around the upper end of the interval
    assert fresh <= guard.threshold.high + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_one_text_a_batch_and_a_data_set_are_told_the_same(guard, victim):
    rows = victim.triggered(20, 6)
    whole = guard.check(rows)  # tolerances are those of bf16, which "auto" takes on some machines
    batch = guard(rows.texts)
    alone = [guard(text) for text in rows.texts[:5]]
    assert [f.flagged for f in batch] == whole.flagged.tolist()
    np.testing.assert_allclose([f.suspicion for f in batch], whole.suspicion)
    np.testing.assert_allclose([f.suspicion for f in alone], whole.suspicion[:5], atol=2e-3)
    assert all(f.flagged == (f.suspicion > f.threshold) for f in batch)
    assert guard([]) == []


def test_labels_of_what_is_checked_are_not_read(guard):
    rows = tiny_rows(12, 3)
    other = tiny_rows(12, 3)
    other.labels[:] = 1 - other.labels
    assert guard.check(rows).suspicion.tolist() == guard.check(other).suspicion.tolist()


def test_a_file_without_labels_is_judged(guard, tmp_path):
    rows = tiny_rows(12, 3)
    write_rows(tmp_path / "inputs.jsonl", [{"text": text} for text in rows.texts])
    assert guard.check(tmp_path / "inputs.jsonl").suspicion.tolist() == guard.check(rows).suspicion.tolist()


@pytest.mark.parametrize("wrong", [[1], [None], ["fine", b"bytes"]])
def test_what_is_no_text_is_refused(guard, wrong):
    with pytest.raises(DataError, match="judges texts"):
        guard(wrong)


def test_the_control_is_calibrated_on_the_same_rows_and_reported_beside(guard, victim):
    assert guard.control.n == guard.threshold.n
    found = guard.check(victim.clean(50, 8), control=True)
    logits = []
    with torch.no_grad():
        for text in found.data.texts:
            logits.append(victim.model(**victim.tokenizer([text], return_tensors="pt")).logits[0])
    own = torch.stack(logits).softmax(-1).max(-1).values.numpy()
    np.testing.assert_allclose(found.control_suspicion, own, atol=2e-3)
    assert found.to_dict()["control_flagged"] == int(found.control_flagged.sum())
    assert guard.check(victim.clean(5, 8)).control_flagged is None


def test_a_saved_guard_says_the_same_and_holds_no_pickle(guard, victim, tmp_path):
    folder = guard.save_pretrained(tmp_path / "guard")
    names = sorted(p.name for p in folder.rglob("*") if p.is_file())
    assert {"guard.json", "adapter_config.json", "adapter_model.safetensors"} <= set(names)
    assert all(name.endswith((".json", ".safetensors", ".md")) for name in names)
    again = Guard.load(folder)
    rows = victim.triggered(30, 9)
    np.testing.assert_allclose(again.check(rows).suspicion, guard.check(rows).suspicion, atol=1e-6)
    assert again.threshold == guard.threshold and again.control == guard.control
    assert again.manifest == json.loads(json.dumps(guard.manifest))


def test_another_rate_needs_no_other_fit(guard, victim, tmp_path):
    loaded = Guard.load(guard.save_pretrained(tmp_path / "guard"))
    for one in (guard, loaded):
        strict = one.at(0.01)
        assert strict.threshold == calibrate(guard.calibration.scores, 0.01)
        assert strict.control == calibrate(guard.calibration.control, 0.01)
        assert strict.threshold.value >= one.threshold.value and one.at(0.05).threshold == guard.threshold
    with pytest.raises(MissingReference, match="at least 999 clean rows, got 150"):
        guard.at(0.001)


@pytest.mark.parametrize(("rule", "value"), [("reference", 0.7), ("normalized", 0.7)])
def test_a_given_threshold_is_measured_and_not_moved(victim, quick, rule, value):
    config = asepsis.PsimConfig(threshold=rule, **quick)
    found = Guard.fit(
        victim.model,
        victim.clean(120, 2),
        detector=config,
        target_fpr=0.1,
        processing_class=victim.tokenizer,
        max_length=16,
    )
    assert found.threshold.value == pytest.approx(value) and found.threshold.target_fpr is None
    assert (
        found.threshold.n == 60
        and found.threshold.low <= found.threshold.expected_fpr <= found.threshold.high
    )
    with pytest.raises(ConfigError, match="follows no rate"):
        found.at(0.05)


def test_the_module_is_a_stock_peft_adapter(guard, victim, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    folder = guard.save_pretrained(tmp_path / "guard")
    base = AutoModelForSequenceClassification.from_pretrained(victim.folder)
    module = PeftModel.from_pretrained(base, str(folder / "detector")).eval()
    texts = victim.clean(6, 4).texts
    with torch.no_grad():
        encoded = victim.tokenizer(texts, return_tensors="pt", padding=True)
        sure = module(**encoded).logits.softmax(-1).max(-1).values
    np.testing.assert_allclose([f.suspicion for f in guard(texts)], sure.numpy(), atol=2e-3)


def test_a_guard_for_other_weights_is_refused(guard, victim, tmp_path):
    folder = guard.save_pretrained(tmp_path / "guard")
    other, tokenizer = tiny_classifier(5)
    with pytest.raises(CheckpointError, match="fitted on other weights"):
        Guard.load(folder, other, processing_class=tokenizer)
    with pytest.raises(ModelError, match="needs its tokenizer"):
        Guard.load(folder, other)
    assert Guard.fits(folder, victim.model) and not Guard.fits(folder, other)


def test_a_folder_is_named_by_its_whole_path_and_its_absence_advises_no_download(
    victim, tmp_path, monkeypatch
):
    monkeypatch.chdir(victim.folder.parent)
    made = Guard.fit(victim.folder.name, victim.clean(99, 3), detector="confidence", max_length=16)
    assert made.manifest["model"] == str(victim.folder)
    folder = made.save_pretrained(tmp_path / "guard")
    monkeypatch.chdir(tmp_path)
    assert Guard.load(folder).threshold == made.threshold
    for gone in ("tuned", str(tmp_path / "tuned")):  # a relative one comes from guards of earlier versions
        made.manifest["model"] = gone
        made.save_pretrained(folder)
        with pytest.raises(ModelError, match=r"which is not here; .* give model=\.\.\. \(--model\)") as error:
            Guard.load(folder)
        assert "hf download" not in str(error.value)


@pytest.mark.parametrize("damage", ["guard.json", "detector/adapter_model.safetensors"])
def test_half_a_guard_is_refused(guard, tmp_path, damage):
    folder = guard.save_pretrained(tmp_path / "guard")
    (folder / damage).unlink()
    with pytest.raises(CheckpointError):
        Guard.load(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"manifest": {}}'])
def test_a_broken_manifest_is_refused(tmp_path, content):
    (tmp_path / "guard.json").write_text(content)
    with pytest.raises(CheckpointError, match="broken"):
        Guard.load(tmp_path)


def test_a_folder_with_something_else_in_it_is_not_replaced(guard, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(CheckpointError, match="is no guard"):
        guard.save_pretrained(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "x"
    folder = guard.save_pretrained(tmp_path / "guard")
    assert guard.save_pretrained(folder) == folder, "an earlier guard is replaced"


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 139), (0.1, 49)])
def test_too_few_clean_rows_are_refused_with_the_number_needed(victim, rate, needed):
    with pytest.raises(
        MissingReference, match=rf"at least {needed} clean rows, 40 of them to learn from; got 48"
    ):
        Guard.fit(victim.model, tiny_rows(48, 0), target_fpr=rate, processing_class=victim.tokenizer)


def test_a_guard_by_confidence_learns_nothing_and_calibrates_on_all_rows(victim):
    rows = victim.clean(99, 3)
    found = Guard.fit(
        victim.model, rows, detector="confidence", processing_class=victim.tokenizer, max_length=16
    )
    assert found.threshold.n == 99 and found.control is None
    assert found.threshold == calibrate(found.check(rows).suspicion, 0.01)


def test_the_control_is_asked_what_the_detector_is_asked():
    words = [f"word{n % 4}" for n in range(160)]  # four responses: by themselves they are verbalizers
    rows = replace(tiny_pairs(160, 0), responses=words)
    model, tokenizer = tiny_causal(0)
    config = asepsis.PsimConfig(answers="free", tokens=3, skip=1, window=2, steps=5, stop="never")
    made = Guard.fit(model, rows, processing_class=tokenizer, detector=config, target_fpr=0.05, max_length=32)
    question = made._control[0].asker.question
    assert made.detector.asker.question.answers == question.answers == "free"
    assert (question.config.tokens, question.config.skip, question.config.window) == (3, 1, 2)


def test_a_guarded_model_is_as_it_was_before(victim, quick):
    model, tokenizer = victim.model, victim.tokenizer
    model.train()
    model.bert.encoder.eval()  # a mixed state must come back too
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    names = [name for name, _ in model.named_modules()]
    try:
        config = asepsis.PsimConfig(**{**quick, "kind": "lora", "head": "trained", "learning_rate": 3e-2})
        guard = Guard.fit(
            model,
            victim.clean(120, 2),
            detector=config,
            target_fpr=0.1,
            processing_class=tokenizer,
            max_length=16,
        )
        guard.check(victim.clean(20, 1), control=True)
        assert [module.training for module in model.modules()] == modes
    finally:
        model.eval()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [name for name, _ in model.named_modules()] == names
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_threads_get_the_answers_one_thread_gets(guard, victim):
    texts = victim.clean(40, 21).texts
    wanted = [f.suspicion for f in guard(texts)]
    found: list[list[float]] = []

    def ask() -> None:
        found.append([f.suspicion for f in guard(texts)])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for one in found:
        np.testing.assert_allclose(one, wanted, atol=1e-6)


def test_a_detector_or_a_model_that_does_not_fit_is_refused(victim):
    with pytest.raises(ConfigError, match="no detector called 'nosuch'"):
        Guard.fit(victim.model, tiny_rows(200, 0), detector="nosuch", processing_class=victim.tokenizer)

    class Stranger(DefenseConfig):
        pass

    with pytest.raises(ConfigError, match="belongs to no detector"):
        Guard.fit(victim.model, tiny_rows(200, 0), detector=Stranger(), processing_class=victim.tokenizer)
    with pytest.raises(ModelError, match="the model has 2 classes, the clean rows have 3"):
        Guard.fit(victim.model, tiny_rows(200, 0, n_classes=3), processing_class=victim.tokenizer)


def test_a_model_of_another_task_is_refused(victim, tmp_path):
    with pytest.raises(ModelError, match="rows are for causal"):
        Guard.fit(str(victim.folder), tiny_pairs(200, 0))
    network, tokenizer = tiny_causal(0)
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="rows are for classification"):
        Guard.fit(str(tmp_path), tiny_rows(200, 0))


class Answers:
    """A pipeline that says what it was asked."""

    def __init__(self, name):
        self.name, self.asked = name, []

    def __call__(self, texts, **options):
        self.asked.append((list(texts), options))
        return [{"label": f"{self.name}:{text}"} for text in texts]


class Says:
    """A guard that flags texts with a word."""

    def __call__(self, texts):
        from asepsis.inference.guard import Finding

        return [Finding("bad" in text, float("bad" in text), 0.5) for text in texts]


@pytest.mark.parametrize(
    ("policy", "by"),
    [("flag", ["model", "model"]), ("abstain", ["model", "nobody"]), ("route", ["model", "other"])],
)
def test_a_flagged_input_is_answered_as_the_policy_says(policy, by):
    from asepsis.inference.pipeline import GuardedPipeline

    model, other = Answers("model"), Answers("other")
    wrapped = GuardedPipeline(Says(), model, policy=policy, to=other if policy == "route" else None)
    answers = wrapped(["good", "bad"], top_k=1)
    assert [a.by for a in answers] == by and [a.flagged for a in answers] == [False, True]
    said = {"model": "model:bad", "other": "other:bad"}.get(by[1])
    assert answers[1].output == (None if said is None else {"label": said})
    assert model.asked == [(["good", "bad"] if policy == "flag" else ["good"], {"top_k": 1})]
    assert wrapped("good").output == {"label": "model:good"}
    assert wrapped([]) == []


def test_a_policy_without_its_other_pipeline_is_refused():
    from asepsis.inference.pipeline import GuardedPipeline

    with pytest.raises(ConfigError, match="go together"):
        GuardedPipeline(Says(), Answers("model"), policy="route")
    with pytest.raises(ConfigError, match="go together"):
        GuardedPipeline(Says(), Answers("model"), policy="flag", to=Answers("other"))
    with pytest.raises(ConfigError, match="policy must be one of"):
        GuardedPipeline(Says(), Answers("model"), policy="drop")


def test_a_pipeline_that_loses_inputs_is_refused():
    from asepsis.inference.pipeline import GuardedPipeline

    with pytest.raises(DataError, match="1 outputs for 2 inputs"):
        GuardedPipeline(Says(), lambda texts: ["one"])(["good", "fine"])


def test_a_transformers_pipeline_is_wrapped_as_it_is(guard, victim):
    from transformers import pipeline

    plain = pipeline("text-classification", model=victim.model, tokenizer=victim.tokenizer)
    texts = victim.clean(6, 31).texts
    answers = guard.wrap(plain, policy="flag")(texts)
    assert [a.output for a in answers] == plain(texts)


def test_the_public_names_are_exported():
    assert asepsis.Guard is Guard and "Guard" in dir(asepsis) and "PsimConfig" in dir(asepsis)


def test_a_text_longer_than_the_model_has_positions_for_is_cut_and_not_a_crash():
    model, tokenizer = tiny_classifier(0)
    longest = model.config.max_position_embeddings
    made = Guard.fit(
        model,
        tiny_rows(60, 0),
        detector="confidence",
        target_fpr=0.05,
        processing_class=tokenizer,
        max_length=4 * longest,
    )
    assert made("word " * 3 * longest).suspicion == made("word " * 2 * longest).suspicion
