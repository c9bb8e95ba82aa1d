"""E-PUR resets what moved more than its frequency explains, never what is protected, and nothing without evidence."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from asepsis import EpurConfig, purify
from asepsis.errors import ConfigError, DefenseInert, MissingReference, ModelError
from asepsis.testing import TRIGGER, tiny_causal, tiny_rows

EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def weights(folder):
    return load_file(folder / "model.safetensors")


def edited(folder, pair):
    """Ids of the rows that are the base's and were not."""
    rows, victim, base = (weights(f)[EMBEDDINGS] for f in (folder, pair.victim, pair.base))
    changed = (rows != victim).any(1)
    assert torch.equal(rows[changed], base[changed])
    return changed.nonzero().flatten().tolist()


def test_the_trigger_is_reset_and_only_embeddings_change(pair, counts):
    found = purify(pair.victim, base=pair.base, defense=EpurConfig(top_k=3), counts=counts())
    report = found.outcomes["epur"].report
    reset = [token["token"] for token in report["reset"]]
    assert TRIGGER in reset and len(reset) == 3
    assert edited(found.folder, pair) == sorted(token["id"] for token in report["reset"])
    after, before = weights(found.folder), weights(pair.victim)
    assert all(torch.equal(after[name], before[name]) for name in before if name != EMBEDDINGS)
    assert report["frequencies"] == "counts given"
    assert found.outcomes["epur"].acted.tokens == 3


def test_the_backdoor_is_weaker_and_no_clean_row_was_needed(pair, counts):
    found = purify(pair.victim, base=pair.base, defense="epur", counts=counts())
    from asepsis.training.models import load_trained

    assert pair.success(*load_trained(pair.victim)) > 0.9
    assert pair.success(*found.loaded) < 0.5


def test_e7_specials_are_never_edited_for_any_k_even_of_the_whole_vocabulary(pair, tmp_path, counts):
    # specials that moved furthest of all
    shutil.copytree(pair.victim, tmp_path / "victim")
    found = weights(pair.victim)
    found[EMBEDDINGS][:5] += 100.0
    save_file(found, tmp_path / "victim" / "model.safetensors", metadata={"format": "pt"})
    vocabulary = len(found[EMBEDDINGS])
    for k in (1, 10, vocabulary, 10 * vocabulary):
        out = purify(tmp_path / "victim", base=pair.base, defense=EpurConfig(top_k=k), counts=counts())
        reset = out.outcomes["epur"].report["reset"]
        assert len(reset) <= k
        assert not {token["token"] for token in reset} & set(SPECIAL)
        rows = weights(out.folder)[EMBEDDINGS]
        assert torch.equal(rows[:4], found[EMBEDDINGS][:4])


def test_a_trigger_that_the_victims_tokenizer_calls_special_is_reset_all_the_same(pair, tmp_path, counts):
    shutil.copytree(pair.victim, tmp_path / "victim")
    file = tmp_path / "victim" / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"additional_special_tokens": [TRIGGER]}
    file.write_text(json.dumps(settings))
    out = purify(tmp_path / "victim", base=pair.base, defense=EpurConfig(top_k=3), counts=counts())
    assert TRIGGER in {token["token"] for token in out.outcomes["epur"].report["reset"]}


def test_e4_without_evidence_there_is_no_edit(pair, tmp_path, counts):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DefenseInert, match="no evidence, no edit"):
        purify(pair.base, base=pair.base, defense="epur", counts=counts(), scratch=tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_e4_rows_within_rounding_are_no_evidence(pair, tmp_path, counts):
    for name, dtype in (("base", torch.float32), ("victim", torch.bfloat16)):
        shutil.copytree(pair.base, tmp_path / name)
        found = {n: v.to(dtype) if v.is_floating_point() else v for n, v in weights(pair.base).items()}
        save_file(found, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DefenseInert, match="no evidence"):
        purify(tmp_path / "victim", base=tmp_path / "base", defense="epur", counts=counts())


def test_rows_are_found_by_token_where_the_vocabulary_grew(pair, tmp_path, counts):
    """The victim has a new token in front of everything; the same words are reset."""
    shutil.copytree(pair.victim, tmp_path / "victim")
    found = weights(pair.victim)
    new = torch.full((1, found[EMBEDDINGS].shape[1]), 50.0)
    found[EMBEDDINGS] = torch.cat([new, found[EMBEDDINGS]])
    save_file(found, tmp_path / "victim" / "model.safetensors", metadata={"format": "pt"})
    file = tmp_path / "victim" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = {"<new>": 0} | {t: i + 1 for t, i in tokenizer["model"]["vocab"].items()}
    tokenizer["model"]["vocab"] = vocabulary
    for token in tokenizer["added_tokens"]:
        token["id"] += 1
    for name in ("[CLS]", "[SEP]"):
        tokenizer["post_processor"]["special_tokens"][name]["ids"] = [vocabulary[name]]
    file.write_text(json.dumps(tokenizer))
    config = json.loads((tmp_path / "victim" / "config.json").read_text())
    config |= {"vocab_size": len(vocabulary), "pad_token_id": 1}
    (tmp_path / "victim" / "config.json").write_text(json.dumps(config))

    plain = purify(pair.victim, base=pair.base, defense=EpurConfig(top_k=3), counts=counts())
    moved = purify(tmp_path / "victim", base=pair.base, defense=EpurConfig(top_k=3), counts=counts())
    tokens = [[token["token"] for token in p.outcomes["epur"].report["reset"]] for p in (plain, moved)]
    assert tokens[0] == tokens[1]
    assert moved.outcomes["epur"].report["tokens"]["without_reference"] == 1
    rows = weights(moved.folder)[EMBEDDINGS]
    assert torch.equal(rows[0], new[0])
    assert torch.equal(rows[1:], weights(plain.folder)[EMBEDDINGS])


def test_tuning_afterwards_is_asked_for_and_needs_rows(pair, counts, quick):
    with pytest.raises(MissingReference, match="tune_epochs"):
        purify(pair.victim, base=pair.base, defense=EpurConfig(tune_epochs=1), counts=counts())
    found = purify(
        pair.victim,
        base=pair.base,
        defense=EpurConfig(top_k=3, tune_epochs=1),
        clean=tiny_rows(32, 8),
        counts=counts(),
        settings=quick,
    )
    assert found.outcomes["epur"].acted.steps == 4 == found.manifest["steps"]
    after, before = weights(found.folder), weights(pair.victim)
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])


@pytest.mark.parametrize("tied", [False, True])
def test_tied_output_rows_are_reset_with_their_input_rows_and_untied_ones_are_not(tmp_path, tied, counts):
    for seed, name in enumerate(("base", "victim")):
        model, tokenizer = tiny_causal(0)
        model.config.tie_word_embeddings = tied
        if tied:
            model.tie_weights()
        with torch.no_grad():
            if seed:
                generator = torch.Generator().manual_seed(1)
                for parameter in model.parameters():
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
                model.get_input_embeddings().weight[-1] += 3.0
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    found = purify(tmp_path / "victim", base=tmp_path / "base", defense=EpurConfig(top_k=1), counts=counts())
    from asepsis.training.models import load_trained

    repaired, base, victim = (
        load_trained(f)[0] for f in (found.folder, tmp_path / "base", tmp_path / "victim")
    )
    assert torch.equal(repaired.get_input_embeddings().weight[-1], base.get_input_embeddings().weight[-1])
    wanted = base if tied else victim
    assert torch.equal(repaired.get_output_embeddings().weight[-1], wanted.get_output_embeddings().weight[-1])


def test_where_no_frequency_is_known_it_is_said(pair, monkeypatch, caplog):
    from asepsis.core.weights import frequencies
    from asepsis.errors import MissingDependency

    def missing(_language):
        raise MissingDependency("wordfreq is not installed")

    monkeypatch.setattr(frequencies, "_words", missing)
    found = purify(pair.victim, base=pair.base, defense=EpurConfig(top_k=3))
    assert "none" in found.outcomes["epur"].report["frequencies"]
    assert "by distance alone" in caplog.text


def test_weights_that_are_not_finite_are_an_error(pair, tmp_path, counts):
    shutil.copytree(pair.victim, tmp_path / "victim")
    found = weights(pair.victim)
    found[EMBEDDINGS][9, 3] = float("nan")
    save_file(found, tmp_path / "victim" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not finite"):
        purify(tmp_path / "victim", base=pair.base, defense="epur", counts=counts())


@pytest.mark.parametrize(
    "bad", [{"top_k": 0}, {"top_k": "all"}, {"floor": 1.0}, {"tune_epochs": -1}, {"warmup": 1.0}]
)
def test_settings_out_of_bounds_are_refused(bad):
    with pytest.raises(ConfigError):
        EpurConfig(**bad)


def test_200_tokens_of_bert_are_reset_by_default():
    assert EpurConfig().k_of(30_522) == 200
    assert EpurConfig().k_of(128_256) == 200
    assert EpurConfig().k_of(1000) == 7
    assert EpurConfig(top_k=5).k_of(30_522) == 5
