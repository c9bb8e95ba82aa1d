"""A pipeline is refused where it cannot work, asks for everything first, and hands on what each step made."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from asepsis import EpurConfig, Guard, MuscleloraConfig, Pipeline, PsimConfig, Settings, verify
from asepsis.errors import ConfigError, MissingReference
from asepsis.testing import tiny_classifier, tiny_rows
from asepsis.training.models import load_trained

QUICK = Settings(max_steps=2, batch_size=8, device="cpu", learning_rate=1e-3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["musclelora", "epur"], r"use epur -> musclelora"),
        (["psim", "finemixing"], r"use finemixing -> psim"),
        (["abl", "musclelora"], r"each train the model"),
        (["epur", "epur"], r"epur is named twice"),
        (["epur", EpurConfig(top_k=3)], r"epur is named twice"),
        ([], r"a list of defenses"),
        ("abl", r"a list of defenses"),
        (["nothing"], r"no defense called"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_built(wrong, said):
    with pytest.raises(ConfigError, match=said):
        Pipeline(wrong)


def test_it_explains_every_step_in_order():
    told = Pipeline(["epur", "finemixing", "musclelora", "psim"]).explain().splitlines()
    assert told[0] == "needs: model, base, clean, clean_reference, data"
    steps = [line.split()[1] for line in told if line[0].isdigit()]
    assert steps == ["epur", "finemixing", "musclelora", "psim"]
    assert "after download" in told[1] and "at inference" in told[-2]
    assert all(len(line) > len("   cost: ") for line in told[2::2])


def test_everything_missing_is_named_before_anything_begins():
    with pytest.raises(MissingReference) as error:
        Pipeline(["epur", "musclelora", "psim"]).run("no-such-model")
    for wanted in (
        "epur needs base",
        "musclelora needs clean_reference",
        "musclelora needs data",
        "psim needs clean",
    ):
        assert wanted in str(error.value)


@pytest.fixture
def pair(tmp_path):
    """A base, and a model that differs from it in some rows and a head."""
    base, tokenizer = tiny_classifier(0)
    for part in (base, tokenizer):
        part.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        base.get_input_embeddings().weight[[7, 9]] += 1.0
        base.classifier.weight += 0.1
    for part in (base, tokenizer):
        part.save_pretrained(tmp_path / "victim")
    return tmp_path


def test_a_training_starts_from_the_repaired_weights_and_an_adapter_is_merged_into_them(pair):
    plan = Pipeline([EpurConfig(top_k=2), MuscleloraConfig(scales=(1, 2))])
    made = plan.run(
        pair / "victim",
        tiny_rows(24, 0),
        base=pair / "base",
        clean_reference=tiny_rows(16, 1),
        settings=QUICK,
    )
    assert made.guard is None and made.purified is not None and made.run is not None
    rows = [token["id"] for token in made.purified.outcomes["epur"].report["reset"]]
    assert sorted(rows) == [7, 9]
    out = made.save_pretrained(pair / "out")
    plain = AutoModelForSequenceClassification.from_pretrained(out)
    base = load_file(pair / "base" / "model.safetensors")
    assert torch.equal(plain.get_input_embeddings().weight, base["bert.embeddings.word_embeddings.weight"])
    asked = made.tokenizer(list(tiny_rows(6, 2).texts), return_tensors="pt", padding=True)
    made.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            plain.eval()(**asked).logits, made.model(**asked).logits, rtol=1e-4, atol=1e-5
        )
    manifest = json.loads((out / "asepsis.json").read_text())
    assert [step.get("defenses", step.get("defense")) for step in manifest["pipeline"]] == [
        [{"name": "epur", "config": manifest["pipeline"][0]["defenses"][0]["config"]}],
        {"name": "musclelora", "config": manifest["pipeline"][1]["defense"]["config"]},
    ]
    assert verify(out).verdict == "intact"


def test_a_repair_alone_is_saved_as_purify_saves_it(pair):
    made = Pipeline(["epur"]).run(pair / "victim", base=pair / "base")
    out = made.save_pretrained(pair / "out")
    assert made.run is None and (out / "model.safetensors").is_file()
    assert verify(out, base=pair / "base").verdict == "intact"


@pytest.mark.parametrize("step", [MuscleloraConfig(scales=(1, 2)), EpurConfig(top_k=2), None], ids=repr)
def test_the_guard_of_a_saved_pipeline_finds_its_model_there(victim, quick, tmp_path, step):
    network, tokenizer = load_trained(victim.folder)
    with torch.no_grad():
        network.get_input_embeddings().weight[[7, 9]] += 1.0
    for part in (network, tokenizer):
        part.save_pretrained(tmp_path / "base")
    made = Pipeline([*([step] if step else []), PsimConfig(**quick)]).run(
        victim.folder,
        tiny_rows(24, 0),
        base=tmp_path / "base",
        clean=victim.clean(160, 1),
        clean_reference=tiny_rows(16, 1),
        settings=QUICK,
        target_fpr=0.05,
    )
    assert made.guard is not None
    out = made.save_pretrained(tmp_path / "out")
    again = Guard.load(out / "guard")
    assert again.manifest["model"] == str(out if step else victim.folder)
    texts = list(victim.triggered(6, 2).texts)
    assert [f.suspicion for f in again(texts)] == [f.suspicion for f in made.guard(texts)]
    assert verify(out).verdict == "intact"
