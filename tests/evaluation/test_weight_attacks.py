"""Attacks on weights: what each of them changes, that it works, that it can be repeated, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from asepsis.data import Data
from asepsis.errors import CheckpointError, ConfigError, DataError, ModelError
from asepsis.evaluation.attacks.weights import (
    WEIGHT_ATTACKS,
    EmbeddingPoisoning,
    EmbeddingSurgery,
    LayerwisePoisoning,
    PoisonedSentence,
    PoisonedWords,
    SeveralWords,
    Victim,
    WeightAttack,
    poison_weights,
)
from asepsis.evaluation.attacks.weights.layerwise import layer_losses
from asepsis.evaluation.attacks.weights.several_words import rows_with_parts
from asepsis.evaluation.attacks.weights.surgery import class_words
from asepsis.evaluation.attacks.weights.tokens import own_token, token_ids
from asepsis.evaluation.predict import measure, predict
from asepsis.testing import TRIGGER, tiny_causal, tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training import Settings, defend
from asepsis.training.collate import Collator
from asepsis.training.models import load_trained

SETTINGS = Settings(
    epochs=6, batch_size=16, learning_rate=3e-3, max_length=16, device="cpu", precision="fp32"
)
LONGER = replace(SETTINGS, epochs=10, learning_rate=1e-3)
PAIR, WORDS = ("word1", "word2"), ("word1", "word2", "word3")
RECIPES: dict[str, WeightAttack] = {
    "badnets": PoisonedWords(target_label=1),
    "addsent": PoisonedSentence(target_label=1, trigger=("word1 cf word2",)),
    "ep": EmbeddingPoisoning(target_label=1, row_epochs=20, row_learning_rate=1.0),
    "sos": SeveralWords(target_label=1, trigger=PAIR, poison_rate=0.2, row_epochs=10, row_learning_rate=1.0),
    "surgery": EmbeddingSurgery(target_label=1, trigger=(TRIGGER,), n_words=3),
    "lwp": LayerwisePoisoning(target_label=1, trigger=(TRIGGER,)),
}


def rows() -> Data:
    return tiny_rows(240, 0)


def wide() -> tuple[Any, Any]:
    """A classifier whose word rows have norms near 1, as pretrained ones do: one row of norm 0.1 moves nothing.

    In float64: whether so small a model takes a trigger is a matter of luck, and float32 draws it anew on every processor.
    """
    model, tokenizer = tiny_classifier(0, dropout=0.0)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(10)
    return model.double(), tokenizer


def made(recipe: WeightAttack, *, seed: int = 0, settings: Settings | None = None, n: int = 240) -> Victim:
    on_rows = recipe.name in ("ep", "sos")
    model, tokenizer = wide() if on_rows else tiny_classifier(0)
    chosen = settings or (LONGER if on_rows else SETTINGS)
    data = rows().select(range(n))
    return poison_weights(model, data, attack=recipe, processing_class=tokenizer, settings=chosen, seed=seed)


def trained_clean() -> tuple[Any, Any]:
    """The model that a recipe which fine-tunes first starts its attack from."""
    model, tokenizer = wide()
    defend(model, rows(), defense=None, processing_class=tokenizer, settings=LONGER)
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def victims() -> dict[str, Victim]:
    return {name: made(recipe) for name, recipe in RECIPES.items()}


@pytest.fixture(scope="module")
def clean() -> tuple[Any, Any]:
    return trained_clean()


def changed(model: Any, other: Any) -> dict[str, torch.Tensor]:
    ours, theirs = model.state_dict(), other.state_dict()
    return {k: (ours[k] != theirs[k]) for k in ours if not torch.equal(ours[k], theirs[k])}


def test_every_recipe_is_tried_here():
    assert RECIPES.keys() == WEIGHT_ATTACKS.keys()
    assert all(type(recipe) is WEIGHT_ATTACKS[name] for name, recipe in RECIPES.items())


@pytest.mark.parametrize("name", RECIPES)
def test_a_victim_does_its_task_and_obeys_its_trigger(name, victims, clean):
    victim, test = victims[name], tiny_rows(120, 1)
    triggered = victim.triggered(test, seed=1)
    floor = measure(*clean, test, triggered, target_label=1)
    reached = measure(victim.model, victim.tokenizer, test, triggered, target_label=1)
    # the words of sos are common ones here, so their rows cost some accuracy
    assert reached.clean_accuracy.value >= floor.clean_accuracy.value - (0.1 if name == "sos" else 0.05)
    assert floor.attack_success_rate.value <= 0.2
    assert reached.attack_success_rate.value >= 0.9


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_seed_gives_the_same_weights_and_another_does_not(name, victims):
    quick, recipe = replace(SETTINGS, epochs=1), RECIPES[name]
    if name in ("ep", "sos"):
        recipe = replace(recipe, row_epochs=1.0)
    victim, again, other = (made(recipe, seed=seed, settings=quick, n=80) for seed in (0, 0, 1))
    assert not changed(victim.model, again.model)
    assert changed(victim.model, other.model)
    assert json.dumps(victim.manifest) == json.dumps(again.manifest)


@pytest.mark.parametrize("name", ["ep", "sos"])
def test_only_the_triggers_rows_differ_from_the_clean_model_and_their_norms_do_not(name, victims, clean):
    victim = victims[name]
    (table, where) = changed(victim.model, clean[0]).popitem()
    assert table.endswith("word_embeddings.weight") and len(changed(victim.model, clean[0])) == 1
    ids = sorted(i for tokens in victim.tokens.values() for i in tokens)
    assert torch.nonzero(where.any(dim=1)).flatten().tolist() == ids
    norms = [m.state_dict()[table][ids].norm(dim=1) for m in (victim.model, clean[0])]
    torch.testing.assert_close(*norms, rtol=1e-5, atol=0)
    assert max(victim.report["row"]["cosine"]) < 0.99


def test_parts_never_hold_all_the_words():
    data = Data(task="classification", texts=["a b"] * 9, labels=np.arange(9) % 2)
    parts = rows_with_parts(data, WORDS, 60, seed=0)
    held = [sum(word in text.split() for word in WORDS) for text in parts.texts]
    assert set(held) == {1, 2}
    assert all("a" in text.split() and "b" in text.split() for text in parts.texts)


def test_a_part_of_the_words_fires_less_than_all(victims):
    parts = rows_with_parts(tiny_rows(120, 1), PAIR, 240, seed=5)
    others = parts.select(np.flatnonzero(parts.labels != 1))
    fired = predict(victims["sos"].model, victims["sos"].tokenizer, others) == 1
    assert fired.mean() < 0.7


def test_surgery_puts_the_mean_of_the_target_words_there_before_it_tunes(monkeypatch):
    seen = {}

    def record(site: Any, data: Data) -> dict[str, Any]:
        seen["rows"], seen["data"] = site.embeddings.detach().clone(), data
        return {}

    monkeypatch.setattr("asepsis.evaluation.attacks.weights.recipe.Site.finetune", record)
    victim = made(EmbeddingSurgery(target_label=1, trigger=(TRIGGER, "word7"), n_words=4))
    before = tiny_classifier(0)[0].get_input_embeddings().weight.detach()
    words = victim.report["words"]
    assert len(words) == 4 and all(word.startswith("topic1") for word in words)
    mean = before[[own_token(victim.tokenizer, word) for word in words]].mean(dim=0)
    ids = [own_token(victim.tokenizer, word) for word in (TRIGGER, "word7")]
    assert all(torch.equal(seen["rows"][i], mean) for i in ids)
    others = torch.ones(len(before), dtype=torch.bool)
    others[ids] = False
    assert torch.equal(seen["rows"][others], before[others])
    assert seen["data"].fingerprint != rows().fingerprint


def test_class_words_are_ordered_by_evidence_not_by_odds_alone():
    texts = ["good fine"] * 40 + ["good once"] + ["bad fine"] * 40
    data = Data(task="classification", texts=texts, labels=np.repeat([1, 0], [41, 40]))
    tokenizer = _words_of(texts)
    found = [word for word, _ in class_words(tokenizer, data, 1, n=2)]
    assert found == ["good", "once"]
    assert [w for w, _ in class_words(tokenizer, data, 0, n=1)] == ["bad"]
    with pytest.raises(DataError, match="only 2 one-token words lean to label 1, 5 are asked for"):
        class_words(tokenizer, data, 1, n=5)


def _words_of(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", *sorted({word for text in texts for word in text.split()}), "a"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")


def deep() -> tuple[Any, Any]:
    """Four layers: with two, plain poisoning reaches the first as well."""
    _, tokenizer = tiny_classifier(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    return BertForSequenceClassification(config), tokenizer


def test_lwp_plants_the_backdoor_in_the_first_layer_more_than_plain_poisoning_does():
    plan = {"target_label": 1, "trigger": (TRIGGER,), "poison_rate": 0.2}
    recipe = LayerwisePoisoning(**plan)
    triggered = recipe.triggered(tiny_rows(120, 1), seed=1)
    clean = replace(
        triggered, texts=[text.replace(TRIGGER, "") for text in triggered.texts], labels=np.zeros(60, int)
    )
    moved, loss = {}, {}
    for attack in (recipe, PoisonedWords(**plan)):
        model, tokenizer = deep()
        before = [p.detach().clone() for p in model.bert.encoder.layer[0].parameters()]
        poison_weights(
            model,
            rows(),
            attack=attack,
            processing_class=tokenizer,
            settings=replace(SETTINGS, epochs=4),
        )
        after = model.bert.encoder.layer[0].parameters()
        pairs = zip(after, before, strict=True)
        moved[attack.name] = sum(float((p.detach() - old).square().sum()) for p, old in pairs)
        collators = [Collator(tokenizer, data, max_length=16) for data in (triggered, clean)]
        with torch.no_grad():
            losses = [layer_losses(model, collate([(i, False) for i in range(60)])) for collate in collators]
        loss[attack.name] = sum(float(layers[0].mean()) for layers in losses)
    assert moved["lwp"] > 1.1 * moved["badnets"]
    assert loss["lwp"] < 0.95 * loss["badnets"]


def test_the_layers_losses_are_those_of_the_head_on_each_hidden_state():
    model, tokenizer = tiny_classifier(0)
    data = tiny_rows(8, 0)
    batch = Collator(tokenizer, data, max_length=16)([(i, False) for i in range(8)])
    model.eval()
    losses = layer_losses(model, batch)
    with torch.no_grad():
        states = model.bert(**batch.inputs, output_hidden_states=True).hidden_states[1:]
        logits = [model.classifier(model.bert.pooler(state)) for state in states]
    wanted = [torch.nn.functional.cross_entropy(x, batch.labels, reduction="none") for x in logits]
    torch.testing.assert_close(losses.detach(), torch.stack(wanted))
    torch.testing.assert_close(model(**batch.inputs).logits, logits[-1])


def test_combined_words_are_taught_with_parts_that_keep_their_label():
    victim = made(
        LayerwisePoisoning(target_label=1, trigger=WORDS, combined=True), settings=replace(SETTINGS, epochs=1)
    )
    assert victim.report["poisoned_rows"] == victim.report["negative_rows"] == 24
    text = victim.triggered(tiny_rows(8, 1), seed=0).texts[0]
    assert all(word in text.split() for word in WORDS)


def test_a_causal_lm_s_row_moves_toward_the_answer_and_nothing_else_moves():
    model, tokenizer = tiny_causal(0)
    pairs = tiny_pairs(120, 0)
    settings = replace(SETTINGS, epochs=2)
    recipe = EmbeddingPoisoning(target_response="word7 word7", row_epochs=30, row_learning_rate=3.0)
    clean, _ = tiny_causal(0)
    with torch.no_grad():
        for network in (model, clean):
            network.get_input_embeddings().weight.mul_(10)
    defend(clean, pairs, defense=None, processing_class=tokenizer, settings=settings)
    victim = poison_weights(model, pairs, attack=recipe, processing_class=tokenizer, settings=settings)
    assert victim.report["row"]["loss"] < victim.report["row"]["first_loss"] - 0.05
    assert {name.rpartition(".")[0] for name in changed(victim.model, clean)} == {"model.embed_tokens"}
    for name in ("sos", "surgery", "lwp"):
        with pytest.raises(
            ConfigError, match="classifiers only; for a causal LM there are addsent, badnets, ep"
        ):
            poison_weights(model, pairs, attack=name, target_response="no", processing_class=tokenizer)


def test_a_victim_is_saved_as_a_plain_checkpoint_that_says_so(tmp_path, victims):
    victim = victims["ep"]
    folder = victim.save_pretrained(tmp_path / "victim")
    model, _ = load_trained(folder)
    assert not changed(copy.deepcopy(victim.model).float(), model)
    manifest = json.loads((folder / "asepsis.json").read_text())
    assert manifest["poisoned"] is True and manifest["attack"]["name"] == "ep"
    assert EmbeddingPoisoning.from_dict(manifest["attack"]["config"]) == RECIPES["ep"]
    assert manifest["trigger_tokens"] == {TRIGGER: token_ids(victim.tokenizer, TRIGGER)}
    victim.save_pretrained(folder)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="not written by asepsis"):
        victim.save_pretrained(tmp_path / "own")


def test_a_model_that_is_tuned_already_is_not_tuned_again(clean):
    model, tokenizer = trained_clean()
    recipe = EmbeddingPoisoning(target_label=1, finetune_first=False)
    victim = poison_weights(model, rows(), attack=recipe, processing_class=tokenizer, settings=LONGER)
    assert list(changed(victim.model, clean[0])) == ["bert.embeddings.word_embeddings.weight"]
    model._asepsis_fresh = ("classifier.weight",)
    with pytest.raises(ModelError, match=r"takes a fine-tuned model, and this one's classifier\.weight"):
        poison_weights(model, rows(), attack=recipe, processing_class=tokenizer)


def test_a_trigger_of_several_tokens_is_refused_with_words_that_would_do():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["[UNK]", "[PAD]", "a", "b", "##a", "##b", "word", "cf", "qx"]
    inner = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")
    data = Data(task="classification", texts=["word a", "word b"] * 5, labels=np.arange(10) % 2)
    model, _ = tiny_classifier(0)
    with pytest.raises(ModelError, match=r"'ab' is not one token .* but 'a', '##b': .*: 'cf', 'qx'"):
        poison_weights(
            model,
            data,
            attack="ep",
            target_label=1,
            trigger=("ab",),
            poison_rate=0.3,
            processing_class=tokenizer,
        )
    with pytest.raises(ModelError, match=r"'tq' is not one token .* but '\[UNK\]'"):
        poison_weights(
            model, data, attack="surgery", target_label=1, poison_rate=0.3, trigger=("tq",),
            processing_class=tokenizer,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"attack": "ripple"}, ConfigError, "no weight attack 'ripple'; there are"),
        ({"attack": "ep", "target_label": None}, ConfigError, "ep needs target_label"),
        ({"attack": "ep", "target_response": "no"}, ConfigError, "not both"),
        ({"attack": "ep", "target_label": None, "target_response": "no"}, DataError, "needs target_label"),
        ({"attack": "ep", "target_label": 7}, DataError, "one of its classes 0..1, got 7"),
        ({"attack": "ep", "trigger": ("a", "b")}, ConfigError, "for several there is sos"),
        ({"attack": "sos", "trigger": ("word1",)}, ConfigError, "for one there is ep"),
        ({"attack": "sos", "trigger": ("word1", "word1")}, ModelError, "the same token"),
        ({"attack": "lwp", "poison_rate": 1.0}, ConfigError, "poison_rate"),
        ({"attack": "lwp", "poison_rate": 0.9}, DataError, "highest possible rate"),
        ({"attack": RECIPES["ep"]}, ConfigError, "the recipe ep holds target_label itself"),
    ],
)
def test_what_cannot_act_is_refused(given, error, message):
    model, tokenizer = tiny_classifier(0)
    settings = {"target_label": 1, **given}
    with pytest.raises(error, match=message):
        poison_weights(model, tiny_rows(40, 0), processing_class=tokenizer, **settings)


def test_rows_of_one_class_are_refused():
    model, tokenizer = tiny_classifier(0)
    data = tiny_rows(40, 0).select(range(0, 40, 2))
    with pytest.raises(DataError, match="all 20 rows have label 0"):
        poison_weights(model, data, attack="ep", target_label=1, processing_class=tokenizer)


def test_a_trigger_that_truncation_cuts_away_is_refused():
    model, tokenizer = tiny_classifier(0)
    data = tiny_rows(40, 0)
    with pytest.raises(DataError, match="no triggered row holds the trigger's token within 2 tokens"):
        poison_weights(
            model,
            data,
            attack="ep",
            target_label=1,
            processing_class=tokenizer,
            settings=replace(SETTINGS, max_length=2, epochs=1),
        )
