"""The axolotl plugin beside a stand-in for axolotl's interface: what its plugin manager and trainer builder call."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import numpy as np
import pytest
from datasets import Dataset
from transformers import Trainer, TrainingArguments

import asepsis
from asepsis.errors import ConfigError
from asepsis.testing import tiny_causal, tiny_pairs

NAME = "asepsis.integrations.axolotl"


class Config(dict):
    """Like axolotl's: what is not there is None."""

    def __missing__(self, key):
        return None


class BasePlugin:
    """The methods of axolotl's that matter here, doing nothing."""

    def register(self, cfg):
        pass

    def get_input_args(self):
        pass

    def get_trainer_cls(self, cfg):
        pass

    def post_trainer_create(self, cfg, trainer):
        pass

    def post_train(self, cfg, model):
        pass


class AxolotlTrainer(Trainer):
    """Takes what axolotl's builder hands over beside a Trainer's arguments."""

    def __init__(self, *args, bench_data_collator=None, eval_data_collator=None, dataset_tags=None, **kwargs):
        super().__init__(*args, **kwargs)


@pytest.fixture
def plugin(monkeypatch):
    """The plugin, loaded as axolotl loads one: by module and class name."""
    for name in ("axolotl", "axolotl.integrations", "axolotl.core", "axolotl.core.trainers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, what in (("integrations.base", BasePlugin), ("core.trainers.base", AxolotlTrainer)):
        module = ModuleType(f"axolotl.{name}")
        setattr(module, what.__name__, what)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME).AsepsisPlugin()
    sys.modules.pop(NAME, None)


def test_without_axolotl_the_file_imports(monkeypatch):
    monkeypatch.setitem(sys.modules, "axolotl", None)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    assert importlib.import_module(NAME).AsepsisPlugin().get_input_args() == f"{NAME}.AsepsisArgs"


def test_it_is_one_of_axolotls_plugins_and_its_block_is_part_of_the_configuration(plugin):
    pydantic = pytest.importorskip("pydantic")
    assert isinstance(plugin, BasePlugin)
    module, _, kind = plugin.get_input_args().rpartition(".")
    found = getattr(importlib.import_module(module), kind)
    assert issubclass(found, pydantic.BaseModel)
    assert found(asepsis={"defense": "abl"}).asepsis == {"defense": "abl"}
    assert found().asepsis is None


def test_without_its_block_it_changes_nothing(plugin, tmp_path):
    cfg = Config(output_dir=str(tmp_path))
    assert plugin.get_trainer_cls(cfg) is None
    trainer = object()
    plugin.post_trainer_create(cfg, trainer)
    plugin.post_train(cfg, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"asepsis": {}}, "defense: must be a name"),
        ({"asepsis": {"defense": 3}}, "defense: must be a name"),
        ({"asepsis": ["abl"]}, "defense: must be a name"),
        ({"asepsis": {"defense": "nothing"}}, "no defense called"),
        ({"asepsis": {"defense": "abl", "drop_ration": 0.1}}, "drop_ration"),
        ({"asepsis": {"defense": "psim"}}, "guards a finished model"),
        ({"asepsis": {"defense": "musclelora"}}, "asepsis.defended in a script"),
        ({"asepsis": {"defense": "btu"}, "adapter": "lora"}, "asepsis.defended in a script"),
        ({"asepsis": {"defense": "abl"}, "sample_packing": True}, "sample_packing cannot be used"),
        ({"asepsis": {"defense": "abl"}, "rl": "dpo"}, "rl cannot be used"),
    ],
)
def test_what_cannot_be_defended_is_refused_before_anything_is_loaded(plugin, more, message):
    with pytest.raises(ConfigError, match=message):
        plugin.get_trainer_cls(Config(more))


def rows(tokenizer):
    made = []
    data = tiny_pairs(32, 0)
    for prompt, response in zip(data.texts, data.responses, strict=True):
        head, tail = tokenizer(prompt).input_ids, [*tokenizer(response).input_ids, tokenizer.eos_token_id]
        ids = head + tail
        made.append({"input_ids": ids, "labels": [-100] * len(head) + tail, "attention_mask": [1] * len(ids)})
    return Dataset.from_list(made)


def test_a_run_as_axolotl_calls_it_trains_under_the_defense_and_writes_what_was_found(plugin, tmp_path):
    from transformers import DataCollatorForSeq2Seq

    block = {"defense": "abl", "snapshots": [2, 4], "drop_ratio": 0.1}
    cfg = Config(asepsis=block, output_dir=str(tmp_path / "out"), sample_packing=False)
    model, tokenizer = tiny_causal(1)
    kind = plugin.get_trainer_cls(cfg)
    assert issubclass(kind, AxolotlTrainer)
    args = TrainingArguments(
        output_dir=cfg["output_dir"],
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        per_device_train_batch_size=8,
        num_train_epochs=1,
        seed=3,
    )
    trainer = kind(
        model=model,
        train_dataset=rows(tokenizer),
        eval_dataset=None,
        args=args,
        data_collator=DataCollatorForSeq2Seq(tokenizer, return_tensors="pt"),
        callbacks=[],
        processing_class=tokenizer,
        dataset_tags=["rows"],
    )
    plugin.post_trainer_create(cfg, trainer)
    trainer.train(resume_from_checkpoint=None)
    plugin.post_train(cfg, trainer.model)
    found = tmp_path / "out" / "defended"
    assert asepsis.verify(found).verdict == "intact"
    manifest = asepsis.verify(found).manifest
    assert manifest["defense"]["name"] == "abl" and manifest["defense"]["config"]["drop_ratio"] == 0.1
    assert len(trainer.run.outcome.suspicion) == 32 and np.isfinite(trainer.run.outcome.suspicion).all()
    before = (found / "asepsis.json").stat().st_mtime_ns
    plugin.post_train(cfg, trainer.model)  # axolotl calls it again at its end
    assert (found / "asepsis.json").stat().st_mtime_ns == before
    assert not (tmp_path / "out" / "asepsis").exists()
