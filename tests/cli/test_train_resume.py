from __future__ import annotations

import pytest

from asepsis.cli import main
from asepsis.core.state_file import states
from asepsis.data import write_rows
from asepsis.testing import tiny_classifier, tiny_rows


@pytest.fixture
def command(tmp_path):
    network, tokenizer = tiny_classifier(0)
    network.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = tiny_rows(32, 0)
    rows = [{"text": t, "label": y} for t, y in zip(data.texts, data.labels.tolist(), strict=True)]
    write_rows(tmp_path / "rows.jsonl", rows)
    words = ["train", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "rows.jsonl")]
    return [*words, "--defense", "none", "--batch-size", "8", "--max-length", "16", "--max-steps", "4"]


def test_a_command_killed_after_training_goes_on_with_resume_and_writes_the_same(
    command, tmp_path, monkeypatch, capsys
):
    whole, out, checkpoints = tmp_path / "whole", tmp_path / "out", tmp_path / "out.checkpoints"
    assert main([*command, "--output", str(whole)]) == 0
    assert not (tmp_path / "whole.checkpoints").exists()
    often = [*command, "--output", str(out), "--checkpoint-every", "1"]
    with monkeypatch.context() as patched:
        patched.setattr("asepsis.training.save_run", lambda *_: (_ for _ in ()).throw(OSError("unplugged")))
        assert main(often) == 2
    assert len(states(checkpoints)) == 2
    assert main(often) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*often, "--learning-rate", "1e-3", "--resume"]) == 2
    assert "settings.learning_rate was 5e-05 and is 0.001" in capsys.readouterr().err
    assert main([*often, "--resume"]) == 0
    assert not checkpoints.exists()
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_resume_without_checkpoints_is_a_mistake_of_the_command(command, tmp_path, capsys):
    assert main([*command, "--output", str(tmp_path / "o"), "--checkpoint-every", "0", "--resume"]) == 4
    assert "--checkpoint-every 0 writes none" in capsys.readouterr().err
