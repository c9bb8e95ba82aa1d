"""purify leaves the victim alone, writes a plain checkpoint with its manifest, and refuses what it is not for."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asepsis import AblConfig, EpurConfig, FinemixingConfig, purify
from asepsis.core.phases import Acted, Outcome
from asepsis.errors import CheckpointError, ConfigError, DefenseInert, MissingReference, ModelError
from asepsis.testing import tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training import Settings, defend
from asepsis.training.models import load_trained

QUICK = Settings(device="cpu", precision="fp32", batch_size=8, learning_rate=1e-3, max_length=16)
MIX = FinemixingConfig(reserve_ratio=0.4, epochs=1, accuracy_drop=0.9)
COUNTS = {"word0": 10.0, "word1": 20.0}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """Two models that differ in every weight: nothing is trained here."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "victim")):
        model, tokenizer = tiny_classifier(seed)
        model.to(torch.bfloat16 if seed else torch.float32).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "base", folder / "victim"


def test_both_defenses_run_in_order_and_the_result_is_a_plain_checkpoint(pair, tmp_path):
    base, victim = pair
    before = files(base) | files(victim)
    work = tmp_path / "work"
    work.mkdir()
    found = purify(
        victim,
        base=base,
        defense=[EpurConfig(top_k=2), MIX],
        clean=tiny_rows(30, 0),
        counts=COUNTS,
        settings=QUICK,
        scratch=work,
    )
    out = found.save_pretrained(tmp_path / "out")
    assert files(base) | files(victim) == before
    assert list(found.outcomes) == ["epur", "finemixing"]
    # one checkpoint is left of those on the way
    assert len(list(work.rglob("*.safetensors"))) == 1

    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(out)
    held = load_file(out / "model.safetensors")
    source = load_file(victim / "model.safetensors")
    assert held.keys() == source.keys()
    assert all(held[name].dtype == source[name].dtype for name in source)
    loaded, tokenizer = load_trained(out)
    text = tokenizer(["word1 topic0a"], return_tensors="pt")
    assert torch.equal(loaded(**text).logits, found.model(**text).logits)
    assert model.config.num_labels == 2

    manifest = json.loads((out / "asepsis.json").read_text())
    assert manifest.pop("files").keys() == {p.name for p in out.iterdir()} - {"asepsis.json"}
    assert manifest == json.loads(json.dumps(found.manifest))
    assert manifest["model"] == str(victim)
    assert [entry["name"] for entry in manifest["defenses"]] == ["epur", "finemixing"]
    assert len(manifest["report"]["epur"]["reset"]) == 2
    assert manifest["report"]["epur"]["reset"][0]["token"]
    assert manifest["report"]["finemixing"]["mixing"]["realized_ratio"] == pytest.approx(0.4, abs=0.02)
    assert manifest["steps"] == manifest["acted"]["finemixing"]["steps"] == 3
    assert manifest["data"]["rows"] == 30
    del found
    gc.collect()
    assert not list(work.iterdir())


def test_the_second_defense_begins_where_the_first_ended(pair):
    base, victim = pair
    both = purify(
        victim,
        base=base,
        defense=[EpurConfig(top_k=60), FinemixingConfig(reserve_ratio=1.0, epochs=1, accuracy_drop=0.9)],
        clean=tiny_rows(30, 0),
        counts=COUNTS,
        settings=Settings(device="cpu", precision="fp32", learning_rate=1e-9),
    )
    alone = purify(victim, base=base, defense=EpurConfig(top_k=60), counts=COUNTS)
    name = "bert.embeddings.word_embeddings.weight"
    one, other = (load_file(p.folder / "model.safetensors")[name] for p in (both, alone))
    assert torch.equal(one, other)
    assert both.verdicts == {"finemixing": "unmixed"}


def test_one_seed_is_one_result(pair):
    made = [
        purify(pair[1], base=pair[0], defense=MIX, clean=tiny_rows(30, 0), settings=QUICK) for _ in range(2)
    ]
    one, other = (load_file(p.folder / "model.safetensors") for p in made)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_trainer_can_tune_instead(pair, tmp_path):
    from transformers import TrainingArguments

    args = TrainingArguments(
        output_dir=str(tmp_path / "t"),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        seed=QUICK.seed,
    )
    mix = FinemixingConfig(reserve_ratio=0.4, epochs=2, accuracy_drop=0.9)
    rows = tiny_rows(30, 0)
    by_trainer = purify(pair[1], base=pair[0], defense=mix, clean=rows, args=args, settings=QUICK)
    by_loop = purify(pair[1], base=pair[0], defense=mix, clean=rows, settings=QUICK)
    one, other = (load_file(p.folder / "model.safetensors") for p in (by_trainer, by_loop))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=2**-7, atol=1e-6)


@pytest.mark.demo
def test_a_demo_model_is_its_own_victim_only_where_something_changed(tmp_path):
    """The packaged causal model, two layers of it, against itself with a token moved."""
    from asepsis.core.weights import find_checkpoint

    with find_checkpoint("demo:causal:2") as folder:
        model, tokenizer = load_trained(folder)
        with torch.no_grad():
            model.get_input_embeddings().weight[5000] += 1.0
        for part in (model, tokenizer):
            part.save_pretrained(tmp_path / "victim")
        counts = {"the": 100.0, "Ġthe": 1000.0}
        found = purify(tmp_path / "victim", base="demo:causal:2", defense="epur", counts=counts)
        assert [token["id"] for token in found.outcomes["epur"].report["reset"]] == [5000]
        with pytest.raises(DefenseInert):
            purify(folder, base=folder, defense="epur", counts=counts)


def test_defend_and_purify_each_name_the_other(pair):
    base, victim = pair
    for name in ("epur", "finemixing"):
        with pytest.raises(ConfigError, match=rf"asepsis\.purify.*{name}"):
            defend(victim, tiny_rows(30, 0), defense=name)
    for name in ("abl", "musclelora", AblConfig()):
        with pytest.raises(ConfigError, match=r"asepsis\.defend.*train"):
            purify(victim, base=base, defense=name)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"base": None}, MissingReference, "--base"),
        ({"clean": None}, MissingReference, "finemixing needs clean.*--clean"),
        ({"defense": []}, ConfigError, "names none"),
        ({"defense": ["epur", EpurConfig(top_k=3)]}, ConfigError, "each runs once"),
        ({"defense": "nothing"}, ConfigError, "no defense called 'nothing'"),
        ({"clean": tiny_pairs(30, 0)}, Exception, "causal rows, not classification"),
        ({"clean": tiny_rows(30, 0, n_classes=3)}, ModelError, "2 classes, the data has 3"),
        ({"base": "/nowhere"}, ModelError, "nowhere"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_said_before_anything_is_written(
    pair, tmp_path, change, error, message
):
    options = {"base": pair[0], "defense": ["epur", "finemixing"], "clean": tiny_rows(30, 0)} | change
    with pytest.raises(error, match=message):
        purify(pair[1], counts=COUNTS, settings=QUICK, scratch=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_modules_are_asked_to_be_saved_first(pair):
    with pytest.raises(ModelError, match="save_pretrained"):
        purify(tiny_classifier(0)[0], base=pair[0], defense="epur")


def test_a_folder_of_somebody_elses_is_not_replaced(pair, tmp_path):
    found = purify(pair[1], base=pair[0], defense=EpurConfig(top_k=1), counts=COUNTS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(CheckpointError, match="not written by asepsis"):
        found.save_pretrained(tmp_path / "mine")
    with pytest.raises(CheckpointError):
        found.save_pretrained(tmp_path / "mine" / "thesis.txt")
    assert found.save_pretrained(tmp_path / "out") == found.save_pretrained(tmp_path / "out")


def test_a_script_that_does_nothing_is_no_repair(pair, monkeypatch):
    from asepsis.defenses.epur import Epur

    def idle(self, victim, rows):
        return Outcome(acted=Acted())
        yield

    monkeypatch.setattr(Epur, "repair", idle)
    with pytest.raises(DefenseInert, match="nothing was defended"):
        purify(pair[1], base=pair[0], defense="epur")

    def pretend(self, victim, rows):
        return Outcome(acted=Acted(tokens=1))
        yield

    monkeypatch.setattr(Epur, "repair", pretend)
    with pytest.raises(DefenseInert, match="nothing was repaired"):
        purify(pair[1], base=pair[0], defense="epur")
