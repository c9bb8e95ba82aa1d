"""Alignment against the formula by hand, one pass against two, and what makes it refuse."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from asepsis.core.alignment import Alignment
from asepsis.core.lora import insert, layers
from asepsis.core.losses import LossRule
from asepsis.defenses._musclelora_config import MuscleloraConfig
from asepsis.defenses.musclelora import Musclelora
from asepsis.errors import ConfigError
from asepsis.testing import tiny_causal, tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training.align import Aligner
from asepsis.training.collate import Collator
from asepsis.training.loop import weigh


def adapted(causal=False, dropout=0.0, **options):
    """A tiny model with branches none of whose factors is zero, so that every gradient says something."""
    model, tokenizer = tiny_causal(3) if causal else tiny_classifier(3, dropout=dropout)
    config = MuscleloraConfig(**{"scales": (1, 2, 3), "rank": 2, **options})
    torch.manual_seed(1)
    branches = Musclelora(config).branches(model)
    if branches:
        insert(model, branches)
    with torch.no_grad():
        for _, layer in layers(model):
            if not layer.branch.full:
                layer.lora_B.normal_(std=0.05)
    return model.train(), tokenizer


def aligner_for(model, tokenizer, reference, *, steps=6, epochs=3, micro_batches=1, seed=7, **options):
    return Aligner(
        Alignment(**{"reference": reference, "batch_size": 4, "min_reference_loss": 0.0, **options}),
        model,
        Collator(tokenizer, reference, max_length=32),
        pad_token_id=tokenizer.pad_token_id,
        epochs=epochs,
        steps=steps,
        micro_batches=micro_batches,
        seed=seed,
    )


def backward(aligner, model, step, micro):
    aligner.begin(step)
    for index, batch in enumerate(weigh(micro)):
        _, loss = aligner.losses(model, batch, index, LossRule())
        loss.backward()
        aligner.finish(index)


def cut(tokenizer, data, rows, parts=1):
    collate = Collator(tokenizer, data, max_length=32)
    return [collate([(int(p), False) for p in part]) for part in np.array_split(rows, parts)]


def assert_close(got, wanted, tolerance=1e-5, sizes=None):
    """Compare tensors; ``sizes`` holds what to measure by where a tensor is a small difference of larger ones."""
    for name, value in wanted.items():
        scale = float((value if sizes is None else sizes[name]).norm())
        distance = float((got[name] - value).norm()) / scale
        assert distance <= tolerance, f"{name} differs by {distance:.1e}"


def numbers(report):
    return {name: value for name, value in report.items() if not isinstance(value, str)}


def long_rows(n):
    """Rows several times as long as those of tiny_rows."""
    rows = tiny_rows(n, 9)
    return dataclasses.replace(rows, texts=[" ".join([text] * 3) for text in rows.texts])


CASES = {
    "head trained": (False, {}),
    "head frozen": (False, {"head": "frozen"}),
    "all linear layers": (False, {"placement": "all-linear"}),
    "causal": (True, {}),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("long_reference", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_one_pass_gives_both_gradients_of_two(case, long_reference, checkpointing):
    causal, options = CASES[case]
    data, reference = (tiny_pairs(12, 0), tiny_pairs(8, 1)) if causal else (tiny_rows(12, 0), tiny_rows(8, 1))
    if long_reference and not causal:
        reference = long_rows(8)
    elif long_reference:
        reference = dataclasses.replace(reference, texts=[" ".join([t] * 3) for t in reference.texts])
    found = {}
    for passes in ("one", "two"):
        model, tokenizer = adapted(causal, **options)
        if checkpointing:
            model.gradient_checkpointing_enable()
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        aligner = aligner_for(model, tokenizer, reference, passes=passes)
        assert (aligner.groups is None) == (passes == "two")
        seen, sizes = {}, {}
        for step in range(3):
            backward(aligner, model, step, cut(tokenizer, data, np.arange(4 * step, 4 * step + 4)))
            for name, g, r in zip(names, aligner.gradients, aligner._aside, strict=True):
                seen[f"{step} batch {name}"], seen[f"{step} reference {name}"] = g.clone(), r.clone()
                sizes[f"{step} aligned {name}"] = (
                    g.clone()
                )  # where they are all but orthogonal little is left of it
            aligner.align()
            for name, p in zip(names, aligner.parameters, strict=True):
                seen[f"{step} aligned {name}"] = p.grad.clone()
                p.data.sub_(p.grad, alpha=0.05)
        found[passes] = seen
        sizes = {**seen, **sizes}
    assert all(float(v.norm()) > 0 for v in found["two"].values()), "a gradient of zero compares nothing"
    # three steps on: each step's float noise is carried by the weights into the next
    assert_close(found["one"], found["two"], 1e-4, sizes)


@pytest.mark.parametrize("passes", ["one", "two"])
@pytest.mark.parametrize("below", [0.0, 0.25])
def test_the_aligned_gradient_is_the_papers_formula(passes, below):
    data, reference = tiny_rows(6, 0), long_rows(8)
    model, tokenizer = adapted()
    gate = {} if below == 0 else {"min_reference_loss": 9.0, "first_blend_epoch": 0, "max_raw_weight": 0.5}
    aligner = aligner_for(model, tokenizer, reference, passes=passes, steps=4, epochs=2, **gate)
    step = 0 if below == 0 else 2  # epoch 1 of 2: half of 0.5
    backward(aligner, model, step, cut(tokenizer, data, np.arange(6)))
    chosen = reference.positions(aligner.piece(0).sample_id.numpy())
    aligner.align()

    def gradients(rows, at):
        encoded = tokenizer([rows.texts[i] for i in at], padding=True, return_tensors="pt")
        labels = torch.from_numpy(rows.labels[at])
        loss = nn.functional.cross_entropy(model(**encoded).logits, labels)
        return torch.autograd.grad(loss, aligner.parameters), loss

    got = [p.grad.clone() for p in aligner.parameters]
    aligner.close()
    (g, _), (r, loss) = gradients(data, np.arange(6)), gradients(reference, chosen)
    assert float(aligner.reference_loss) == pytest.approx(loss.item(), rel=1e-5)
    for found, gp, rp in zip(got, g, r, strict=True):
        a = (gp * rp).sum().abs() / (rp * rp).sum() * rp
        wanted = (1 - below) * a + below * gp
        assert float((found - wanted).norm()) <= 1e-4 * float(gp.norm())
        assert float((found - gp).norm()) > 1e-3 * float(gp.norm())


@pytest.mark.parametrize("passes", ["one", "two"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_step_in_parts_is_aligned_once_over_the_whole(causal, passes):
    data, reference = (tiny_pairs(8, 0), tiny_pairs(8, 1)) if causal else (tiny_rows(8, 0), tiny_rows(8, 1))
    found = []
    for parts in (1, 2, 8):  # of eight parts half get no reference row
        model, tokenizer = adapted(causal)
        aligner = aligner_for(model, tokenizer, reference, micro_batches=parts, passes=passes)
        backward(aligner, model, 0, cut(tokenizer, data, np.arange(8), parts))
        pieces = [aligner.piece(i) for i in range(parts)]
        assert sum(len(p.count) for p in pieces if p is not None) == 4
        aligner.align()
        gradient = {str(i): p.grad.clone() for i, p in enumerate(aligner.parameters)}
        found.append((gradient, numbers(aligner.report())))
    for gradient, report in found[1:]:
        assert_close(gradient, found[0][0], 1e-4)
        assert report == pytest.approx(found[0][1], rel=1e-4, abs=1e-6)


def test_reference_rows_come_in_equal_batches_and_all_before_any_again():
    reference = tiny_rows(10, 1)
    model, tokenizer = adapted()

    def drawn(seed):
        aligner = aligner_for(model, tokenizer, reference, seed=seed)
        ids = []
        for step in range(6):
            aligner.begin(step)
            ids.append(aligner.piece(0).sample_id.tolist())
        return ids

    ids = drawn(7)
    assert sorted(map(len, ids[:3])) == [2, 4, 4]
    for start in (0, 3):
        assert sorted(itertools.chain(*ids[start : start + 3])) == sorted(reference.sample_ids.tolist())
    assert ids == drawn(7) and ids != drawn(8)
    # no batch of a single row, whose gradient would be taken for the truth
    single = aligner_for(model, tokenizer, tiny_rows(9, 1), batch_size=8)
    assert sorted(len(batch) for batch in itertools.islice(single._batches, 2)) == [4, 5]


def test_the_papers_schedule_ends_where_the_authors_code_does():
    a = Alignment(reference=tiny_rows(4, 0))
    assert [a.raw_weight_below(e, 10) for e in (0, 1, 9)] == pytest.approx([1.0, 0.0, 0.0889], abs=1e-4)
    aligned = dataclasses.replace(a, below_gate="align")
    assert aligned.raw_weight_below(0, 10) == 0.0
    never = dataclasses.replace(a, max_raw_weight=0.0)
    assert [never.raw_weight_below(e, 10) for e in (0, 9)] == [1.0, 1.0]
    assert dataclasses.replace(a, first_blend_epoch=3).raw_weight_below(3, 3.3) == 0.0


@pytest.mark.parametrize(
    ("options", "moved"),
    [
        ({"min_reference_loss": 99.0}, False),  # raw in epoch 0
        ({"min_reference_norm": 1e6}, False),
        ({"min_reference_loss": 99.0, "below_gate": "align"}, True),
        ({"min_reference_loss": 0.0}, True),
    ],
)
def test_below_the_gate_the_first_epoch_is_raw_unless_asked_to_align(options, moved, caplog):
    model, tokenizer = adapted()
    aligner = aligner_for(model, tokenizer, tiny_rows(8, 1), **options)
    backward(aligner, model, 0, cut(tokenizer, tiny_rows(6, 0), np.arange(6)))
    before = aligner.raw.clone()
    aligner.align()
    assert torch.equal(before, aligner.raw) != moved
    with caplog.at_level(logging.WARNING, "asepsis"):
        report = aligner.report()
    assert report["raw_weight"] == (0.0 if moved else 1.0)
    assert ("undefended" in caplog.text) != moved


def test_the_gate_compares_the_reference_loss():
    model, tokenizer = adapted()
    micro = cut(tokenizer, tiny_rows(6, 0), np.arange(6))
    probe = aligner_for(model, tokenizer, tiny_rows(8, 1))
    backward(probe, model, 0, micro)
    loss = float(probe.reference_loss)
    for factor, above in ((0.999, 1.0), (1.001, 0.0)):
        aligner = aligner_for(model, tokenizer, tiny_rows(8, 1), min_reference_loss=factor * loss)
        backward(aligner, model, 0, micro)
        aligner.align()
        assert aligner.report()["share_of_steps_above_gate"] == above


def test_a_tensor_without_finite_reference_stands_still_and_the_others_do_not():
    model, tokenizer = adapted()
    aligner = aligner_for(model, tokenizer, tiny_rows(8, 1))
    backward(aligner, model, 0, cut(tokenizer, tiny_rows(6, 0), np.arange(6)))
    aligner._aside[2].view(-1)[0] = math.nan
    aligner.align()
    norms = [float(p.grad.norm()) for p in aligner.parameters]
    assert norms.pop(2) == 0 and min(norms) > 0 and all(map(math.isfinite, norms))
    assert aligner.report()["non_finite_tensors"] == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"rule": "project"},
        {"granularity": "row"},
        {"below_gate": "blend"},
        {"passes": "three"},
        {"batch_size": 0},
        {"max_raw_weight": 1.5},
        {"min_reference_loss": math.nan},
        {"first_blend_epoch": -1},
    ],
)
def test_a_setting_that_does_not_exist_is_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Alignment(reference=tiny_rows(4, 0), **bad)


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_aligning_waits_for_nothing_and_costs_the_same_for_any_number_of_tensors():
    counts = {}
    for placement in ("paper", "all-linear"):
        model, tokenizer = adapted(placement=placement)
        aligner = aligner_for(model, tokenizer, tiny_rows(8, 1))
        backward(aligner, model, 0, cut(tokenizer, tiny_rows(6, 0), np.arange(6)))
        with Ops() as ops:
            aligner.align()
        assert not [name for name in ops.names if "_local_scalar_dense" in name]
        counts[len(aligner.parameters)] = len(ops.names)
    assert len(counts) == 2 and len(set(counts.values())) == 1, counts
