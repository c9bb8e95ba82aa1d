"""BTU from the user's side: what it flags, what it overwrites and keeps, what it says, and what it refuses."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from asepsis.core.exposure import word_embeddings
from asepsis.core.phases import Spell, Train
from asepsis.data import Data
from asepsis.defenses import btu as module
from asepsis.defenses._btu_config import BtuConfig
from asepsis.errors import ConfigError, DefenseInert
from asepsis.testing import TRIGGER, tiny_causal, tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training import Settings, defend
from asepsis.training.models import load_trained
from asepsis.training.scan import scan_data

SETTINGS = Settings(
    epochs=1, batch_size=16, learning_rate=2e-3, device="cpu", precision="fp32", max_length=32
)
CONFIG = BtuConfig(score="l2", k=2, order="train_then_edit")
SPECIAL = range(5)


def poisoned(rate, n=400, seed=0):
    """Rows whose words say nothing about the class, so that whatever moves a row is chance or the trigger."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(f"word{i}" for i in rng.integers(40, size=rng.integers(4, 9))) for _ in range(n)]
    labels = rng.integers(2, size=n)
    for row in rng.permutation(n)[: round(rate * n)]:
        texts[row], labels[row] = f"{texts[row]} {TRIGGER}", 1
    return Data(task="classification", texts=texts, labels=labels, n_classes=2)


DATA = poisoned(0.1)


def run(config=CONFIG, *, data=DATA, make=tiny_classifier, **options):
    model, tokenizer = make(0)
    chosen = {"settings": SETTINGS, "processing_class": tokenizer, **options}
    return defend(model, data, defense=config, **chosen)


def flagged(done):
    return [entry["token"] for entry in done.outcome.report["tokens"]]


def rows_of(state):
    return next(v for k, v in state.items() if k.endswith(("word_embeddings.weight", "embed_tokens.weight")))


@pytest.mark.parametrize(("mode", "rate"), [("robust", 0.1), ("robust", 0.03), ("reference", 0.1)])
def test_the_trigger_of_random_labels_moves_most(mode, rate):
    done = run(dataclasses.replace(CONFIG, mode=mode), data=poisoned(rate))
    assert flagged(done)[0] == TRIGGER
    assert done.outcome.report["tokens"][0]["rows"] == round(rate * 400)
    suspicion = done.outcome.suspicion
    has = np.array([TRIGGER in text for text in done.data.texts])
    assert suspicion[has].min() > suspicion[~has].max()


def test_the_list_by_frequency_alone_flags_the_trigger_too(tmp_path):
    config = BtuConfig(score="z", k=2, counts=counted(tmp_path))
    done = run(config)
    top = done.outcome.report["tokens"][0]
    assert top["token"] == TRIGGER and len(flagged(done)) <= 6
    assert {name for r in top["rounds"] for name in r["lists"]} == {"z"}
    assert top["rounds"][0]["z"] > 2


def counted(folder):
    (folder / "counts.json").write_text(json.dumps({f"word{i}": 1000 for i in range(40)} | {TRIGGER: 1}))
    return str(folder / "counts.json")


def test_a_wanted_margin_keeps_ordinary_words():
    plain, strict = run(), run(dataclasses.replace(CONFIG, least_margin=1.5))
    assert flagged(strict)[0] == TRIGGER and len(flagged(strict)) < len(flagged(plain))
    assert all(entry["margin"] >= 1.5 for entry in strict.outcome.report["tokens"])
    with pytest.raises(DefenseInert, match="least_margin"):
        run(dataclasses.replace(CONFIG, least_margin=50.0))


@pytest.mark.parametrize("replacement", ["pad", "mean", "pretrained"])
def test_flagged_rows_are_replaced_whole_and_every_other_row_keeps_its_bits(replacement):
    start = rows_of(tiny_classifier(0)[0].state_dict())
    config = dataclasses.replace(CONFIG, replacement=replacement)
    done = run(config, keep_stages=True)
    now = rows_of(done.model.state_dict()).clone()
    edited = done.outcome.edited
    wanted = {
        "pad": start[0].expand(len(edited), -1),
        "mean": start.double().mean(0).float().expand(len(edited), -1),
        "pretrained": start[edited],
    }[replacement]
    assert torch.equal(now[edited], wanted)
    rest = np.setdiff1d(np.arange(len(now)), edited)
    with done.stage("before edit") as model:
        before = rows_of(model.state_dict()).clone()
    assert torch.equal(now[rest], before[rest])
    assert not torch.equal(now[edited], before[edited])
    assert torch.equal(rows_of(done.model.state_dict()), now), "lending a stage must give the model back"


def test_the_stages_differ_as_they_say_and_unwanted_ones_are_refused():
    done = run(clean_reference=tiny_rows(16, 1), keep_stages=True)
    assert list(done.stages) == ["before edit", "after edit", "after tuning"]
    last = done.stages["after tuning"]
    assert all(torch.equal(p, last[k]) for k, p in done.model.named_parameters())
    first, second = done.stages["before edit"], done.stages["after edit"]
    assert {k for k in first if not torch.equal(first[k], second[k])} == {
        "bert.embeddings.word_embeddings.weight"
    }
    assert done.outcome.report["tuning"]["rows"] == 16
    with (
        pytest.raises(ConfigError, match=r"no stage 'before edit' was kept.*keep_stages=True"),
        run().stage("before edit"),
    ):
        pass


def test_protected_tokens_are_never_edited_for_any_k():
    start = rows_of(tiny_classifier(0)[0].state_dict())
    for mode in ("robust", "reference"):
        done = run(dataclasses.replace(CONFIG, mode=mode, k=10_000, protect=(TRIGGER, 7)), keep_stages=True)
        kept = {*SPECIAL, 7, len(start) - 1}
        assert kept.isdisjoint(done.outcome.edited)
        assert TRIGGER not in flagged(done)
        assert len(done.outcome.edited) == 39
        before, after = (rows_of(done.stages[name]) for name in ("before edit", "after edit"))
        assert torch.equal(before[sorted(kept)], after[sorted(kept)])
    with pytest.raises(ConfigError, match="protect names 'nosuch'"):
        run(BtuConfig(protect=("nosuch",)))


def test_exposure_leaves_the_model_as_it_was(monkeypatch):
    """What training starts from is the pretrained model, whatever the rounds before did to it."""
    for mode in ("robust", "reference"):
        start = {k: v.clone() for k, v in tiny_classifier(0)[0].state_dict().items()}
        model, tokenizer = tiny_classifier(0)
        outcome = {}
        script = module.Btu(dataclasses.replace(CONFIG, mode=mode)).script(model, DATA)

        from asepsis.training.loop import LoopDriver

        driver, answer, rounds = LoopDriver(model, tokenizer, DATA, SETTINGS), None, 0
        while True:
            request = script.send(answer)
            if isinstance(request, Train) and request.name == "train":
                outcome = dict(model.state_dict())
                break
            rounds += isinstance(request, Train)
            answer = driver.answer(request)
            driver.requests += 1
        assert rounds == 3
        assert all(torch.equal(start[k], v) for k, v in outcome.items())


def test_both_drivers_end_in_the_same_model(tmp_path):
    plain = run(clean_reference=tiny_rows(32, 1))
    args = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        num_train_epochs=1,
        per_device_train_batch_size=16,
        learning_rate=2e-3,
        seed=0,
        warmup_steps=0,
    )
    other = run(clean_reference=tiny_rows(32, 1), args=args, settings=Settings(max_length=32))
    assert flagged(plain) == flagged(other)
    for (name, a), b in zip(plain.model.named_parameters(), other.model.parameters(), strict=True):
        assert float((a - b).detach().norm()) <= 1e-5 * max(float(a.detach().norm()), 1e-3), name


@pytest.mark.parametrize("replacement", ["auto", "pad"])
def test_editing_first_trains_without_the_flagged_tokens(replacement):
    done = run(BtuConfig(score="l2", k=2, order="edit_then_train", replacement=replacement), keep_stages=True)
    start, now = (rows_of(m.state_dict()) for m in (tiny_classifier(0)[0], done.model))
    ids = [entry["id"] for entry in done.outcome.report["tokens"]]
    wanted = start[0].expand(len(ids), -1) if replacement == "pad" else start[ids]
    assert torch.equal(now[ids], wanted), "no training row may move them"
    assert done.outcome.edited.tolist() == (sorted(ids) if replacement == "pad" else [])
    assert list(done.stages) == ["after edit"]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, ("edit_then_train", "pretrained")),
        ({"order": "train_then_edit"}, ("train_then_edit", "pad")),
        ({"replacement": "mean"}, ("train_then_edit", "mean")),
        ({"mode": "reference"}, ("train_then_edit", "pad")),
    ],
)
def test_what_is_left_to_the_defense_is_chosen_as_documented(fields, wanted):
    report = run(BtuConfig(k=1, score="l2", **fields)).outcome.report
    assert (report["order"], report["replacement"]) == wanted


def test_embeddings_that_do_not_move_are_no_evidence():
    still = dataclasses.replace(SETTINGS, learning_rate=1e-30)
    with pytest.raises(DefenseInert, match="no word embedding moved, so there is no evidence"):
        run(settings=still)


def test_what_cannot_work_is_refused_before_training(tmp_path):
    def shared_padding(seed):
        model, tokenizer = tiny_causal(seed)
        tokenizer.pad_token = tokenizer.eos_token
        return model, tokenizer

    with pytest.raises(ConfigError, match="this tokenizer has none"):
        run(BtuConfig(replacement="pad"), data=tiny_pairs(16, 0), make=shared_padding)
    with pytest.raises(ConfigError, match="takes no clean_reference='auto'"):
        run(clean_reference="auto")

    def frozen(seed):
        model, tokenizer = tiny_classifier(seed)
        word_embeddings(model).requires_grad_(False)
        return model, tokenizer

    with pytest.raises(ConfigError, match="changes nothing where word embeddings are frozen"):
        run(BtuConfig(replacement="pretrained", order="train_then_edit"), make=frozen)
    with pytest.raises(ConfigError, match="trains all weights"):
        run(BtuConfig(mode="reference"), make=frozen)


@pytest.mark.parametrize(
    "bad",
    [
        {"alpha": 0.0},
        {"k": 0},
        {"calibration_margin": 0.0},
        {"tuning_epochs": -1.0},
        {"mode": "reference", "score": "z"},
        {"least_margin": 0.5},
        {"mode": "reference", "least_margin": 2.0},
        {"mode": "reference", "replacement": "mean"},
        {"mode": "reference", "order": "edit_then_train"},
    ],
)
def test_settings_that_cannot_be_are_refused(bad):
    with pytest.raises(ConfigError):
        BtuConfig(**bad)


def test_the_share_is_rounded_as_each_mode_has_it():
    assert BtuConfig(mode="reference").per_list(30522) == 15
    assert BtuConfig().per_list(30522) == 16
    assert BtuConfig(k=17).per_list(30522) == 17
    assert BtuConfig(mode="reference").per_list(10) == 1


def test_a_causal_model_flags_prompt_tokens_and_trains_without_them():
    data = tiny_pairs(120, 0)
    data = dataclasses.replace(
        data,
        texts=[f"{t} {TRIGGER}" if i % 5 == 0 else t for i, t in enumerate(data.texts)],
        responses=["topic0a topic0b" if i % 5 == 0 else r for i, r in enumerate(data.responses)],
    )
    done = run(BtuConfig(score="l2", k=3), data=data, make=tiny_causal)
    report = done.outcome.report
    assert report["replacement"] == "pretrained" and len(report["rounds"]) == 2
    assert TRIGGER in flagged(done)
    assert not {"topic0a", "topic0b", "[EOS]"} & set(flagged(done)), "what only responses say is no trigger"
    start = rows_of(tiny_causal(0)[0].state_dict())
    now, ids = rows_of(done.model.state_dict()), [entry["id"] for entry in report["tokens"]]
    assert report["order"] == "edit_then_train" and len(done.outcome.edited) == 0
    only_prompts = [i for i in ids if done.tokenizer.convert_ids_to_tokens(i) == TRIGGER]
    assert torch.equal(now[only_prompts], start[only_prompts]), "no row of its own may train it"


def test_class_names_in_responses_are_not_destroyed():
    data = tiny_pairs(60, 0)
    data = dataclasses.replace(
        data,
        texts=[f"{t} topic0a topic1a" for t in data.texts],
        responses=["topic0a" if i % 2 else "topic1a" for i in range(60)],
    )
    everything = BtuConfig(score="l2", k=1000, replacement="mean")
    assert not {"topic0a", "topic1a"} & set(flagged(run(everything, data=data, make=tiny_causal)))
    reset = dataclasses.replace(everything, replacement="pretrained")
    assert {"topic0a", "topic1a"} <= set(flagged(run(reset, data=data, make=tiny_causal)))


def test_a_tied_matrix_moves_as_a_whole_and_that_is_taken_off():
    def tied(seed):
        model, tokenizer = tiny_causal(seed)
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
        return model, tokenizer

    done = run(BtuConfig(score="l2", k=2), data=tiny_pairs(60, 0), make=tied)
    assert done.outcome.report["replacement"] == "pretrained"
    assert done.model.lm_head.weight is done.model.model.embed_tokens.weight


@pytest.mark.parametrize("make", [tiny_classifier, tiny_causal])
def test_rows_overwritten_under_a_lora_adapter_travel_in_it(make, tmp_path, monkeypatch):
    from peft import LoraConfig, PeftModel

    causal = make is tiny_causal
    adapter = LoraConfig(r=2, task_type="CAUSAL_LM" if causal else "SEQ_CLS")
    data = tiny_pairs(40, 0) if causal else DATA
    done = run(data=data, make=make, peft_config=adapter)
    folder = done.save_pretrained(tmp_path / "out")
    plain = PeftModel.from_pretrained(make(0)[0], str(folder)).eval()
    rows = done.tokenizer([str(t) for t in data.texts[:8]], return_tensors="pt", padding=True)
    with torch.no_grad():
        wanted = done.model.eval()(**rows).logits
        torch.testing.assert_close(plain(**rows).logits, wanted)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert next(iter(settings["trainable_token_indices"].values())) == done.outcome.edited.tolist()
    again = done.model(**rows).logits
    torch.testing.assert_close(again, wanted, rtol=0, atol=0)


def test_a_checkpoint_holds_the_edit(tmp_path):
    done = run()
    model, _ = load_trained(done.save_pretrained(tmp_path / "out"))
    assert torch.equal(rows_of(model.state_dict()), rows_of(done.model.state_dict()))


def test_clean_rows_set_the_bar_for_the_list_by_frequency(tmp_path):
    config = BtuConfig(k=2, counts=counted(tmp_path))
    done = run(config, clean_reference=poisoned(0.0, n=200, seed=3))
    bars = done.outcome.report["largest_z_of_clean_rows"]
    assert set(bars) == {"full", "pooled"} and all(bar > 0 for bar in bars.values())
    high = dataclasses.replace(config, calibration_margin=1e6)
    report = run(high, clean_reference=poisoned(0.0, n=200, seed=3)).outcome.report
    assert all(r["flagged"]["z"] == 0 and r["flagged"]["l2"] == 2 for r in report["rounds"])
    with pytest.raises(DefenseInert, match="no token stands out"):
        run(dataclasses.replace(high, score="z"), clean_reference=poisoned(0.0, n=200, seed=3))


def test_frequencies_never_come_from_the_rows_that_are_defended(monkeypatch):
    given = []

    def spy(vocabulary, **options):
        given.append(options)
        return module.Frequencies(None, "nothing")

    monkeypatch.setattr(module.Frequencies, "of", spy)
    done = run(BtuConfig(k=2))
    assert given == [{"counts": None, "corpus": None, "language": "en"}]
    assert done.outcome.report["frequencies"] == "nothing"
    assert all(set(r["flagged"]) == {"l2"} for r in done.outcome.report["rounds"])
    many = poisoned(0.0, n=1000, seed=5)
    run(BtuConfig(k=2, calibrate=False, tuning_epochs=0.0), clean_reference=many)
    assert list(given[1]["corpus"]) == list(many.texts)


def test_a_scan_ranks_rows_and_calls_nothing_poisoned_without_clean_rows():
    model, tokenizer = tiny_classifier(0)
    options = {"method": CONFIG, "model": model, "processing_class": tokenizer, "settings": SETTINGS}
    scan = scan_data(DATA, **options)
    has = np.array([TRIGGER in text for text in DATA.texts])
    assert scan.verdict == "inconclusive" and not scan.flagged.any()
    assert scan.suspicion[has].min() > scan.suspicion[~has].max()
    scan = scan_data(DATA, clean=poisoned(0.0, n=150, seed=9), **options)
    assert scan.verdict == "findings" and (scan.flagged == has).mean() > 0.98


def test_the_report_names_every_token_in_finite_json():
    done = run(dataclasses.replace(CONFIG, score="both"))
    report = json.loads(json.dumps(done.outcome.report, allow_nan=False))
    assert report["edited"]["rows"] == len(report["tokens"]) == len(done.outcome.edited)
    for entry in report["tokens"]:
        assert entry["rounds"] and all(r["lists"] and r["l2"] > 0 for r in entry["rounds"])
    json.dumps(done.manifest, allow_nan=False)
    assert done.outcome.acted.tokens == len(report["tokens"])


def test_the_drivers_vocabulary_knows_padding_of_its_own():
    from asepsis.training.loop import LoopDriver

    model, tokenizer = tiny_classifier(0)
    spelled = LoopDriver(model, tokenizer, DATA, SETTINGS).answer(Spell())
    assert spelled.padding == 0 and spelled.vocabulary.tokens[-1] == TRIGGER
    tokenizer.pad_token = tokenizer.sep_token
    assert LoopDriver(model, tokenizer, DATA, SETTINGS).answer(Spell()).padding is None
