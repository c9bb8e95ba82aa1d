from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from asepsis.core.losses import LossRule
from asepsis.core.phases import Acted, Losses, Outcome, Train
from asepsis.errors import ConfigError


class Sink:
    def snapshot(self, step, losses):
        raise AssertionError("never called here")


def test_loss_per_target_is_nan_where_a_row_has_none():
    losses = Losses(np.array([6.0, 0.0, np.nan], np.float32), np.array([3, 0, 0]))
    assert losses.mean[0] == 2.0
    assert np.isnan(losses.mean[1:]).all()
    assert losses.mean.dtype == np.float32


def test_epochs_and_steps_together_are_refused():
    with pytest.raises(ConfigError, match="stage: give epochs or steps"):
        Train(name="stage", epochs=1, steps=1)


def test_snapshots_without_a_receiver_and_the_reverse_are_refused():
    with pytest.raises(ConfigError, match="go together"):
        Train(name="stage", snapshots=(1,))
    with pytest.raises(ConfigError, match="go together"):
        Train(name="stage", records=Sink())
    assert Train(name="stage", snapshots=(1,), records=Sink()).snapshots == (1,)


def test_training_on_no_rows_is_refused():
    with pytest.raises(ConfigError, match="no rows"):
        Train(name="stage", rows=np.empty(0, np.int64))


def test_a_request_is_plain_training_unless_it_says_otherwise():
    request = Train(name="stage")
    assert type(request.loss) is LossRule
    assert request.learning_rate_scale == 1.0
    assert request.decay_steps is None


def test_requests_and_outcomes_cannot_be_changed_and_do_not_share_defaults():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Train(name="stage").steps = 3  # type: ignore[misc]
    one, two = Outcome(acted=Acted(steps=1)), Outcome(acted=Acted(steps=1))
    one.report["k"] = 1
    assert two.report == {}
