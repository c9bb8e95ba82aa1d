"""Numbers that go wrong: a finished run is finite in every value, and anything else is an error that says so."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hostile.numbers import NUMBERS

from asepsis import AblConfig, BtuConfig, MuscleloraConfig, defend
from asepsis.errors import AsepsisError
from asepsis.testing import tiny_classifier, tiny_rows
from asepsis.training import Settings

DEFENSES = {
    "none": None,
    "abl": AblConfig(snapshots=(2, 4)),
    "btu": BtuConfig(),
    "musclelora": MuscleloraConfig(),
}
# one defense in seconds, the others in the slow suite
PAIRS = [
    pytest.param(case, defense, id=f"{defense}: {case}", marks=() if defense == "abl" else pytest.mark.slow)
    for case in NUMBERS
    for defense in DEFENSES
]


@pytest.mark.parametrize(("case", "defense"), PAIRS)
def test_a_run_is_finite_or_refused(case, defense, tmp_path):
    odd = NUMBERS[case]
    rows = odd.rows()
    network, tokenizer = tiny_classifier(0, n_classes=rows.n_classes or 2)
    odd.network(network)
    chosen = Settings(
        **{
            "epochs": 1,
            "batch_size": 8,
            "device": "cpu",
            "precision": "fp32",
            "max_length": 16,
            **odd.settings,
        }
    )
    reference = tiny_rows(16, 1) if defense == "musclelora" else None
    try:
        run = defend(
            network,
            rows,
            defense=DEFENSES[defense],
            processing_class=tokenizer,
            clean_reference=reference,
            settings=chosen,
        )
    except AsepsisError as error:
        assert len(str(error)) > 20
        assert "\n" not in str(error)
        assert not list(tmp_path.iterdir())
        return
    assert not odd.fails, "broken numbers went by unseen"
    for name, weight in run.model.state_dict().items():
        assert weight.isfinite().all(), name
    outcome = run.outcome
    if outcome.suspicion is not None:
        assert outcome.suspicion.shape == (len(run.data),)
        assert not np.isinf(outcome.suspicion).any()
    assert set(outcome.flagged.tolist()) <= set(run.data.sample_ids.tolist())
    assert run.save_pretrained(tmp_path / "run").is_dir()


def test_the_last_step_is_looked_at_too():
    # its loss was finite, and the weights it made are not
    network, tokenizer = tiny_classifier(0)
    chosen = Settings(max_steps=1, learning_rate=1e39, device="cpu", precision="fp32")
    with pytest.raises(AsepsisError, match="not finite"):
        defend(network, tiny_rows(8, 0), defense=None, processing_class=tokenizer, settings=chosen)


@pytest.mark.parametrize("field", ["epochs", "learning_rate", "batch_size", "max_grad_norm"])
def test_settings_that_are_no_numbers_are_refused(field):
    with pytest.raises(AsepsisError, match=field):
        dataclasses.replace(Settings(), **{field: float("nan")})


def test_a_model_with_fewer_classes_than_the_data_is_refused():
    network, tokenizer = tiny_classifier(0)
    with pytest.raises(AsepsisError, match="the model has 2 classes, the data has 3"):
        defend(network, tiny_rows(9, 0, n_classes=3), defense=None, processing_class=tokenizer)
