"""Keep your own trainer: what ``asepsis.defended`` makes of transformers.Trainer; SFTTrainer is in test_defended_sft.py."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback

import asepsis
from asepsis.core.phases import Relabel
from asepsis.errors import ConfigError, DataError, MissingReference, ModelError
from asepsis.testing import tiny_causal, tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training.own_rows import OwnCollator, OwnRows, task_of, with_ids

_spec = importlib.util.spec_from_file_location("defended_runs", Path(__file__).with_name("runs.py"))
runs = importlib.util.module_from_spec(_spec)
sys.modules["defended_runs"] = runs
_spec.loader.exec_module(runs)


def tokenized(data, tokenizer, **more):
    """What a user's own script would make of the rows."""
    encoded = tokenizer(list(data.texts), truncation=True, max_length=32)
    columns = {"label": data.labels.tolist(), "sample_id": data.sample_ids.tolist(), **more}
    return Dataset.from_dict({**encoded, **columns})


def arguments(folder, **more):
    args = runs.arguments(folder)
    args.save_strategy = "no"
    args.logging_steps = 1
    for name, value in more.items():
        setattr(args, name, value)
    return args


def trainer_for(case, folder, *, base=Trainer, callbacks=(), **more):
    config, given, make, rows = runs.CASES[case]
    model, tokenizer = make(1)
    return asepsis.defended(base, config, **given)(
        model,
        arguments(folder, **more),
        DataCollatorWithPadding(tokenizer),
        tokenized(rows(), tokenizer),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize("case", ["none", "abl", "btu", "btu of the paper", "musclelora"])
def test_your_own_trainer_ends_where_defend_does(case, tmp_path):
    trainer = trainer_for(case, tmp_path)
    trainer.train()
    wanted = runs.run(case, args=arguments(tmp_path), settings=asepsis.Settings(max_length=64))
    found, expected = runs.result(trainer.run), runs.result(wanted)
    runs.assert_equal(found, expected)
    start = dict(runs.CASES[case][2](1)[0].named_parameters())
    assert any(
        not torch.equal(p, start[name]) if name in start else True
        for name, p in trainer.model.named_parameters()
    )


class Listener(TrainerCallback):
    def __init__(self):
        self.events = []

    def on_train_begin(self, args, state, control, **_):
        self.events.append("begin")

    def on_train_end(self, args, state, control, **_):
        self.events.append("end")

    def on_step_end(self, args, state, control, **_):
        self.events.append(state.global_step)


def test_all_phases_are_one_training_to_whoever_listens(tmp_path):
    listener = Listener()
    trainer = trainer_for("abl", tmp_path, callbacks=[listener])
    evaluated = tokenized(tiny_rows(8, 3), trainer.processing_class)
    trainer.args.eval_strategy = "epoch"
    trainer.eval_dataset = evaluated.remove_columns("sample_id")
    trainer.train()
    steps = listener.events[1:-1]
    assert (listener.events[0], listener.events[-1]) == ("begin", "end")
    assert steps == list(range(1, len(steps) + 1)) and len(steps) == trainer.run.manifest["steps"]
    logged = trainer.state.log_history
    phases = [entry["asepsis/phase"] for entry in logged if "asepsis/phase" in entry]
    assert len(set(phases)) >= 3 and phases == sorted(phases)
    assert any("asepsis/isolated_loss" in entry for entry in logged)
    assert all(np.isfinite(entry["asepsis/loss"]) for entry in logged if "asepsis/loss" in entry)
    assert any("eval_loss" in entry for entry in logged)
    assert logged[-1]["asepsis/flagged"] == len(trainer.outcome.flagged) == 6


def test_a_pooled_network_is_not_evaluated_in_the_models_place(tmp_path):
    trainer = trainer_for("btu", tmp_path)
    trainer.args.eval_strategy = "steps"
    trainer.args.eval_steps = 1
    trainer.eval_dataset = tokenized(tiny_rows(8, 3), trainer.processing_class)
    seen = []
    evaluate = trainer.evaluate
    trainer.evaluate = lambda *a, **k: (seen.append(type(trainer.model).__name__), evaluate(*a, **k))[1]
    trainer.train()
    assert set(seen) == {"BertForSequenceClassification"}


def test_it_goes_on_where_it_was_broken_off(tmp_path):
    class Breaks(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 17:
                raise KeyboardInterrupt

    whole = trainer_for("abl", tmp_path / "whole")
    whole.train()
    options = {"save_strategy": "steps", "save_steps": 2}
    broken = trainer_for("abl", tmp_path / "broken", callbacks=[Breaks()], **options)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert broken.phase is None
    resumed = trainer_for("abl", tmp_path / "broken", **options)
    resumed.train(resume_from_checkpoint=True)
    runs.assert_equal(runs.result(resumed.run), runs.result(whole.run))
    assert resumed.state.global_step == whole.state.global_step
    assert list((tmp_path / "broken" / "asepsis").iterdir())
    resumed.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "broken" / "asepsis").exists()


def test_an_adapter_is_saved_as_peft_reads_it(tmp_path):
    from peft import PeftModel

    trainer = trainer_for("musclelora", tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    again = PeftModel.from_pretrained(tiny_classifier(1)[0], str(tmp_path / "saved")).eval()
    inputs = trainer.processing_class(["word1 topic1a", "word2"], return_tensors="pt", padding=True)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, trainer.model.eval()(**inputs).logits)


@pytest.mark.parametrize(
    ("defense", "message"),
    [
        ("psim", "guards a finished model"),
        ("epur", "repairs a finished model"),
        ("finemixing", "asepsis.purify"),
    ],
)
def test_a_defense_that_does_not_act_during_training_is_refused(defense, message):
    with pytest.raises(ConfigError, match=message):
        asepsis.defended(Trainer, defense)


@pytest.mark.parametrize("base", [dict, Trainer.train, None])
def test_what_is_no_trainer_is_refused(base):
    with pytest.raises(ConfigError, match=r"takes a class of transformers\.Trainer"):
        asepsis.defended(base, "abl")


def test_clean_rows_are_asked_for_by_name(tmp_path):
    model, tokenizer = tiny_classifier(1)
    rows = tokenized(runs.poisoned(), tokenizer)
    trainer = asepsis.defended(Trainer, "musclelora")(
        model, arguments(tmp_path), train_dataset=rows, processing_class=tokenizer
    )
    with pytest.raises(MissingReference, match="musclelora needs clean_reference"):
        trainer.train()


REFUSED = {
    "load_best_model_at_end": True,
    "auto_find_batch_size": True,
    "use_liger_kernel": True,
    "label_smoothing_factor": 0.1,
    "packing": True,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_defense_could_not_act_under_is_refused(name, tmp_path):
    model, tokenizer = tiny_classifier(1)
    made = asepsis.defended(Trainer, "abl")
    trainer = made(
        model,
        arguments(tmp_path),
        train_dataset=tokenized(tiny_rows(8, 0), tokenizer),
        processing_class=tokenizer,
    )
    setattr(trainer.args, name, REFUSED[name])
    with pytest.raises(ConfigError, match=f"cannot run so: {name}"):
        trainer.train()


def test_an_optimizer_of_the_users_own_and_missing_rows_are_refused(tmp_path):
    model, tokenizer = tiny_classifier(1)
    made = asepsis.defended(Trainer, "abl")
    rows = tokenized(tiny_rows(8, 0), tokenizer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="optimizers="):
        made(model, arguments(tmp_path), train_dataset=rows, optimizers=(optimizer, None))
    with pytest.raises(ConfigError, match="train_dataset is missing"):
        made(model, arguments(tmp_path))


def test_a_loss_of_the_bases_own_is_said_to_be_left_out(caplog):
    class Weighted(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    asepsis.defended(Weighted, "abl")
    assert "Weighted computes a loss of its own" in caplog.text
    caplog.clear()
    asepsis.defended(Trainer, "abl")
    assert not caplog.text


def own(dataset, tokenizer, *, task="classification", n_classes=2, collate=None, columns=None):
    collate = collate or DataCollatorWithPadding(tokenizer)
    return OwnRows(dataset, collate, columns, tokenizer, task=task, n_classes=n_classes, source="rows")


def test_rows_keep_their_ids_labels_and_words():
    _, tokenizer = tiny_classifier(0)
    data = tiny_rows(6, 0)
    rows = own(tokenized(data, tokenizer), tokenizer)
    assert rows.data.fingerprint == data.fingerprint
    part = rows.data.select([4, 1])
    relabel = Relabel(data.sample_ids[[1]], np.array([0]))
    batch = OwnCollator(rows, part, relabel=relabel)([(0, False), (1, True)])
    assert batch.sample_id.tolist() == data.sample_ids[[4, 1]].tolist()
    assert batch.labels.tolist() == [data.labels[4], 0]
    assert batch.isolated.tolist() == [False, True]
    wanted = tokenizer([data.texts[4], data.texts[1]], return_tensors="pt", padding=True)
    assert torch.equal(batch.inputs["input_ids"], wanted.input_ids)


def test_rows_without_ids_are_known_by_position_and_a_lost_column_is_refused():
    _, tokenizer = tiny_classifier(0)
    bare = tokenized(tiny_rows(4, 0), tokenizer).remove_columns("sample_id")
    with pytest.raises(DataError, match="lost its sample_id column"):
        own(bare, tokenizer)
    assert own(with_ids(bare), tokenizer).data.sample_ids.tolist() == [0, 1, 2, 3]
    assert own([bare[i] for i in range(4)], tokenizer).data.sample_ids.tolist() == [0, 1, 2, 3]


def test_a_stream_of_rows_rows_that_are_text_and_rows_without_a_class_are_refused():
    _, tokenizer = tiny_classifier(0)
    with pytest.raises(DataError, match="a stream of rows"):
        own(iter([]), tokenizer)
    with pytest.raises(DataError, match="row 0 has no input_ids but text"):
        own([{"text": "word1"}], tokenizer)
    for label in (None, 0.5, [0, 1]):
        with pytest.raises(DataError, match="row 0 has no class"):
            own([{"input_ids": [1, 2], "label": label}], tokenizer)


def test_tokens_are_left_out_of_what_is_read_and_of_nothing_else():
    _, tokenizer = tiny_causal(0)
    row = {"input_ids": [7, 8, 9, 7, 8], "labels": [-100, -100, -100, 7, 8], "attention_mask": [1] * 5}
    alone = {"input_ids": [7, 7], "labels": [-100, -100], "attention_mask": [1, 1]}
    rows = own([row, alone], tokenizer, task="causal", n_classes=None, collate=pad_rows)
    assert rows.data.texts == [tokenizer.decode([7, 8, 9]), tokenizer.decode([7, 7])]
    assert rows.data.responses == [tokenizer.decode([7, 8]), ""]
    collate = OwnCollator(rows, rows.data, drop_tokens=np.array([7, 9]))
    batch = collate([(0, False), (1, False)])
    assert batch.inputs["input_ids"].tolist() == [[8, 7, 8], [7, 0, 0]]
    assert batch.labels.tolist() == [[-100, 7, 8], [-100, -100, -100]]
    assert batch.count.tolist() == [2, 0]
    assert collate.read_ids([0], part="inputs") == [[7, 8, 9]]
    assert collate.read_ids([0], part="responses") == [[7, 8]]


def pad_rows(rows):
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {
        name: torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])
        for name, value in fill.items()
    }


def test_a_collator_that_joins_rows_is_refused():
    _, tokenizer = tiny_causal(0)
    row = {"input_ids": [7, 8], "labels": [7, 8], "attention_mask": [1, 1]}

    def joined(rows):
        ids = torch.tensor([[7, 8] * len(rows)])
        return {"input_ids": ids, "labels": ids, "max_length_q": 2}

    rows = own([row, row], tokenizer, task="causal", n_classes=None, collate=joined)
    with pytest.raises(ConfigError, match=r"labels of \(1, 4\) from 2 rows and max_length_q.*packing"):
        OwnCollator(rows, rows.data)([(0, False), (1, False)])


def test_a_causal_model_is_defended_on_masked_labels(tmp_path):
    model, tokenizer = tiny_causal(1)
    data = tiny_pairs(32, 0)
    rows = []
    for prompt, response in zip(data.texts, data.responses, strict=True):
        head, tail = tokenizer(prompt).input_ids, [*tokenizer(response).input_ids, tokenizer.eos_token_id]
        ids = head + tail
        rows.append({"input_ids": ids, "labels": [-100] * len(head) + tail, "attention_mask": [1] * len(ids)})
    config = runs.CASES["abl causal"][0]
    trainer = asepsis.defended(Trainer, config)(
        model, arguments(tmp_path), pad_rows, Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    args = arguments(tmp_path)
    wanted = asepsis.defend(
        tiny_causal(1)[0],
        dataclasses.replace(data, sample_ids=np.arange(32)),
        defense=config,
        processing_class=tokenizer,
        args=args,
    )
    np.testing.assert_allclose(trainer.outcome.suspicion, wanted.outcome.suspicion, rtol=1e-4, atol=1e-5)
    assert trainer.outcome.flagged.tolist() == wanted.outcome.flagged.tolist()


def test_models_for_something_else_are_refused():
    model, _ = tiny_classifier(0)
    assert task_of(model) == ("classification", 2)
    assert task_of(tiny_causal(0)[0]) == ("causal", None)
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(ModelError, match="one class a row"):
        task_of(model)
    with pytest.raises(ModelError, match="Linear is neither"):
        task_of(torch.nn.Linear(1, 1))
