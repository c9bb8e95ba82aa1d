"""MuScleLoRA from the user's side: what is trained, what is asked for, what is written and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from asepsis.core.lora import layers
from asepsis.core.phases import Outcome, Remember, Restore, Train
from asepsis.data import Data, write_rows
from asepsis.defenses import musclelora as module
from asepsis.defenses._musclelora_config import MuscleloraConfig
from asepsis.defenses.abl import Abl
from asepsis.defenses.base import Given
from asepsis.defenses.musclelora import Musclelora
from asepsis.errors import (
    BackendError,
    ConfigError,
    DataError,
    DefenseInert,
    MissingReference,
    ModelError,
    NoRows,
)
from asepsis.testing import tiny_causal, tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training import Settings, defend
from asepsis.training.models import load_trained

SETTINGS = Settings(epochs=1, batch_size=8, learning_rate=1e-3, device="cpu", precision="fp32", max_length=32)
CONFIG = MuscleloraConfig(scales=(1, 2, 3))
DATA, CLEAN = tiny_rows(48, 0), tiny_rows(16, 1)


def run(config=CONFIG, *, data=DATA, clean_reference=CLEAN, make=tiny_classifier, **options):
    model, tokenizer = make(0)
    chosen = {"settings": SETTINGS, "processing_class": tokenizer, **options}
    return defend(model, data, defense=config, clean_reference=clean_reference, **chosen)


def arguments(folder, **changes):
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        num_train_epochs=1,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        **changes,
    )


def logits(model, tokenizer, texts=DATA.texts[:6]):
    with torch.no_grad():
        return model.eval()(**tokenizer(list(texts), padding=True, return_tensors="pt")).logits


def test_only_branches_are_trained_and_the_base_stays_bit_for_bit():
    start = tiny_classifier(0)[0].state_dict()
    done = run()
    trained = {name for name, p in done.model.named_parameters() if p.requires_grad}
    found = dict(layers(done.model))
    assert trained == {f"{n}.{leaf}" for n in found for leaf in ("lora_A", "lora_B")} - {"classifier.lora_B"}
    after = {name.replace(".base.", "."): value for name, value in done.model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in start.items())
    assert any(float(layer.delta().norm()) > 0 for layer in found.values())
    scaled = [name for name, layer in found.items() if layer.branch.scales == (1, 2, 3)]
    assert scaled == ["bert.pooler.dense"] and found["classifier"].branch.full


def test_the_report_says_what_was_done_in_finite_json():
    done = run()
    report = json.loads(json.dumps(done.outcome.report, allow_nan=False))
    assert report["reference"] == {"rows": 16, "source": CLEAN.source, "chosen_by": "user"}
    assert report["alignment"]["passes"] == "one"
    assert report["trained_parameters"] == sum(p.numel() for p in done.model.parameters() if p.requires_grad)
    assert (done.outcome.acted.samples, done.outcome.acted.steps) == (48, 6)
    json.dumps(done.manifest, allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"adapters": "lora"}, 5),
        ({"adapters": "multiscale"}, 2),
        ({"adapters": "lora", "head": "frozen"}, 4),
        ({"adapters": "none"}, 0),
        ({"placement": "all-linear"}, 14),
        ({"lora_modules": ("attention.self.key",)}, 4),
    ],
)
def test_placements_and_ablations_put_branches_where_they_say(changes, wanted):
    done = run(dataclasses.replace(CONFIG, **changes))
    assert len(list(layers(done.model))) == wanted
    assert done.outcome.report["alignment"]["passes"] == ("one" if wanted else "two")


def test_without_alignment_no_reference_is_used_and_no_probe_runs():
    done = run(dataclasses.replace(CONFIG, align=False), clean_reference="auto")
    assert done.outcome.report["reference"] is None and done.outcome.report["alignment"] is None
    assert done.manifest["steps"] == done.outcome.acted.steps == 6


def test_a_causal_model_is_trained_and_saved(tmp_path):
    done = run("musclelora", data=tiny_pairs(24, 0), clean_reference=tiny_pairs(8, 1), make=tiny_causal)
    scaled = [name for name, layer in layers(done.model) if len(layer.branch.scales) > 1]
    assert scaled == ["model.layers.1.mlp.down_proj"]
    assert (done.save_pretrained(tmp_path / "out") / "adapter_config.json").exists()


def test_the_reference_may_be_a_file_rows_or_a_data_set(tmp_path):
    rows = [{"text": t, "label": int(y)} for t, y in zip(CLEAN.texts, CLEAN.labels, strict=True)]
    write_rows(tmp_path / "clean.jsonl", rows)
    weights = []
    for reference in (CLEAN, rows, tmp_path / "clean.jsonl", str(tmp_path / "clean.jsonl")):
        model = run(clean_reference=reference).model
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
    assert all(torch.equal(weights[0], other) for other in weights[1:])


@pytest.mark.parametrize(
    ("reference", "error", "said"),
    [
        (None, MissingReference, "musclelora needs clean_reference.*--clean-reference"),
        ([], NoRows, "no rows"),
        (tiny_pairs(4, 0), DataError, "causal"),
        ([{"text": "a", "label": 7}], DataError, "label 7 is out of range for 2 classes"),
        (
            Data(task="classification", texts=["a"], labels=np.array([2]), n_classes=3),
            DataError,
            "label 2, the data has 2 classes",
        ),
    ],
)
def test_a_reference_that_does_not_do_is_refused_before_the_model_changes(reference, error, said):
    model, tokenizer = tiny_classifier(0)
    with pytest.raises(error, match=said):
        defend(
            model,
            DATA,
            defense=CONFIG,
            clean_reference=reference,
            processing_class=tokenizer,
            settings=SETTINGS,
        )
    assert not list(layers(model))


def test_a_model_with_adapters_of_its_own_is_refused():
    from peft import LoraConfig

    adapter = LoraConfig(r=2, task_type="SEQ_CLS")
    with pytest.raises(ConfigError, match="give it the base model and no peft_config"):
        run(peft_config=adapter)
    done = run(dataclasses.replace(CONFIG, adapters="none"), peft_config=adapter)
    assert done.outcome.report["alignment"]["passes"] == "two"


def test_a_model_that_was_defended_already_is_refused():
    done = run()
    with pytest.raises(ModelError, match="multi-scale layers already"):
        defend(
            done.model,
            DATA,
            defense=CONFIG,
            clean_reference=CLEAN,
            processing_class=done.tokenizer,
            settings=SETTINGS,
        )


@pytest.mark.parametrize(
    "bad",
    [
        {"rank": 0},
        {"alpha": 0.0},
        {"scales": ()},
        {"scales": (1.0, -2.0)},
        {"max_raw_weight": 2.0},
        {"min_reference_loss": -1.0},
        {"first_blend_epoch": -1},
        {"epochs": 0.0},
        {"adapters": "none", "align": False},
        {"rule": "project"},
    ],
)
def test_a_setting_out_of_bounds_is_refused_when_the_config_is_made(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        MuscleloraConfig(**bad)


def test_layers_that_are_not_there_show_before_the_probe_trains(monkeypatch):
    monkeypatch.setattr(Abl, "scan", lambda *_: pytest.fail("the probe ran"))
    with pytest.raises(ConfigError, match=r"no linear layer of .* ends in 'querry'"):
        run(dataclasses.replace(CONFIG, lora_modules=("querry",)), clean_reference="auto")


# -- clean_reference="auto" --


def requests_of(script, answer):
    """The requests of a script whose answers a function gives, up to its first aligned training."""
    found, reply = [], None
    with contextlib.suppress(StopIteration):
        while True:
            found.append(script.send(reply))
            if isinstance(found[-1], Train) and found[-1].alignment is not None:
                return found
            reply = answer(found[-1], len(found))
    return found


def probing(monkeypatch, suspicion, flagged=()):
    outcome = Outcome(
        acted=module.Acted(samples=1),
        suspicion=None if suspicion is None else np.asarray(suspicion, np.float32),
        flagged=np.asarray(flagged, np.int64),
        report={"verdict": "found"},
    )

    def scan(self, model, data, trusted):
        yield Train(name="probe", steps=1)
        return outcome

    monkeypatch.setattr(Abl, "scan", scan)


def auto(config, data):
    model, _ = tiny_classifier(0)
    script = Musclelora(config, Given(clean_reference="auto")).script(model, data)
    return requests_of(script, lambda request, n: module.Weights(n))


def test_auto_samples_the_unsuspicious_half_of_each_class_and_no_flagged_row(monkeypatch, caplog):
    data = tiny_rows(20, 0)
    suspicion = np.arange(20) / 20
    flagged = data.sample_ids[[0, 1, 2]]
    probing(monkeypatch, suspicion, flagged)
    with caplog.at_level(logging.WARNING, "asepsis"):
        found = auto(dataclasses.replace(CONFIG, auto_reference_rows=8), data)
    assert [type(r) for r in found] == [Remember, Train, Restore, Train]
    assert found[2].weights == module.Weights(1), "the weights of before the probe"
    reference = found[-1].alignment.reference
    assert sorted(data.positions(reference.sample_ids)) == [3, 4, 5, 6, 8, 9, 10, 11]
    assert np.bincount(reference.labels).tolist() == [4, 4]
    assert "ASSUMES that 8 rows are clean" in caplog.text


def test_auto_never_takes_more_than_half_of_a_class(monkeypatch):
    data = tiny_rows(20, 0)
    probing(monkeypatch, np.arange(20) / 20)
    reference = auto(CONFIG, data)[-1].alignment.reference
    assert sorted(data.positions(reference.sample_ids)) == list(range(10))


def test_auto_says_when_a_class_is_flagged_whole_and_raises_when_all_is(monkeypatch, caplog):
    data = tiny_rows(20, 0)
    probing(monkeypatch, np.zeros(20), data.sample_ids[::2])
    with caplog.at_level(logging.WARNING, "asepsis"):
        auto(CONFIG, data)
    assert "every row of class [0] was flagged" in caplog.text
    for suspicion, flagged, said in ((np.zeros(20), data.sample_ids, "every row"), (None, (), "no row")):
        probing(monkeypatch, suspicion, flagged)
        with pytest.raises(DefenseInert, match=said):
            auto(CONFIG, data)


def test_auto_leaves_no_trace_of_the_probe_in_the_base(caplog):
    start = tiny_classifier(0)[0].state_dict()
    with caplog.at_level(logging.WARNING, "asepsis"):
        done = run(clean_reference="auto")
    after = {name.replace(".base.", "."): value for name, value in done.model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in start.items())
    assert "ASSUMES" in caplog.text
    assert done.outcome.report["reference"]["chosen_by"] == "abl probe"
    assert done.manifest["steps"] > done.outcome.acted.steps, "the probe trained"


# -- saving --


@pytest.mark.parametrize("kind", ["loop", "trainer", "trainer bf16", "trainer checkpointing"])
def test_what_is_saved_is_what_was_trained(kind, tmp_path):
    base, tokenizer = tiny_classifier(0)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    changes = {"trainer bf16": {"bf16": True}, "trainer checkpointing": {"gradient_checkpointing": True}}
    args = None if kind == "loop" else arguments(tmp_path / "hf", **changes.get(kind, {}))
    done = defend(
        str(tmp_path / "base"), DATA, defense=CONFIG, clean_reference=CLEAN, args=args, settings=SETTINGS
    )
    assert done.outcome.report["alignment"]["passes"] == "one"
    again, its_tokenizer = load_trained(done.save_pretrained(tmp_path / "out"))
    wanted = logits(done.model, done.tokenizer)
    torch.testing.assert_close(logits(again, its_tokenizer), wanted, rtol=1e-4, atol=1e-5)
    assert float((wanted - logits(base, tokenizer)).norm()) > 1e-3 * float(wanted.norm())


def test_fp16_is_refused_under_the_trainer(tmp_path):
    with pytest.raises(BackendError, match="fp16's scaled gradients; use bf16=True"):
        run(args=arguments(tmp_path, fp16=True))


def test_bf16_under_the_trainer_leaves_the_model_its_own_forward(tmp_path):
    done = run(args=arguments(tmp_path, bf16=True))
    assert "forward" not in vars(done.model)
    assert logits(done.model, done.tokenizer).dtype == torch.float32


@pytest.mark.parametrize("align", [True, False])
def test_training_without_alignment_says_that_it_does_not_defend(caplog, align):
    config = dataclasses.replace(CONFIG, align=align)
    model, tokenizer = tiny_classifier(0)
    with caplog.at_level(logging.WARNING, "asepsis"):
        defend(
            model,
            tiny_rows(16, 0),
            defense=config,
            processing_class=tokenizer,
            clean_reference=tiny_rows(8, 1),
            settings=Settings(max_steps=1, batch_size=8, device="cpu"),
        )
    assert ("undefended; it is for ablations" in caplog.text) is not align
