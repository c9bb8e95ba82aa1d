"""The LoRA benches on a CPU: what is timed computes one thing, and what is written down is what the dispatcher reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benches.gpu import lora_layers, lora_routes, multiscale_lora, training_step  # noqa: E402
from benches.gpu.lora_layers import Layer, Setting  # noqa: E402


def small(**more):
    return Setting(
        **{"inputs": 24, "outputs": 20, "rows": 9, "scales": 3, "rank": 2, "device": "cpu", **more}
    )


def test_every_way_of_a_layer_is_one_computation():
    layer = Layer(small(dtype=torch.float64, adapters=torch.float64))
    truth = multiscale_lora.exact(layer)
    for output in (lambda: layer.our_output("reference"), layer.stacked_output):
        for got, wanted in zip(
            multiscale_lora.results(layer, output, layer.leaves("ours")), truth, strict=True
        ):
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)  # the scales are float32
    y, dx, *factors = multiscale_lora.results(layer, layer.loop_output, layer.leaves("loop"))
    da, db = torch.cat(factors[:3]), torch.cat(factors[3:], 1)
    for got, wanted in zip((y, dx, da, db), truth, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_backward_alone_gives_the_gradients_again_and_again():
    layer = Layer(small(dtype=torch.float32, adapters=torch.float32))
    back = layer.back(layer.stacked_output, "stacked")
    first, second = back(), back()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("adapters", [torch.bfloat16, torch.float32])
def test_the_loop_is_pefts_to_the_bit(adapters):
    layer = Layer(small(adapters=adapters))
    base = nn.Linear(24, 20, bias=False, dtype=torch.bfloat16)
    base.weight.data = layer.weight
    net = nn.Sequential(base)
    configs = [
        peft.LoraConfig(r=2, lora_alpha=2 * scaling, target_modules=["0"]) for scaling in layer.scaling
    ]
    model = peft.get_peft_model(net, configs[0], "a0", autocast_adapter_dtype=False)
    for i, config in enumerate(configs[1:], 1):
        model.add_adapter(f"a{i}", config, autocast_adapter_dtype=False)
    names = [f"a{i}" for i in range(3)]
    model.base_model.set_adapter(names)
    theirs = model.base_model.model[0]
    for name, down, up in zip(names, layer.downs, layer.ups, strict=True):
        theirs.lora_A[name].weight.data, theirs.lora_B[name].weight.data = down.data, up.data
    assert torch.equal(theirs(layer.x), layer.loop_output())


def test_verification_passes_on_a_right_result_and_fails_on_a_wrong_one(monkeypatch):
    layer = Layer(small(dtype=torch.float32, adapters=torch.float32, dropout=0.1))
    assert all(check.passed for check in multiscale_lora.compare(layer, "reference"))
    right = layer.our_output
    monkeypatch.setattr(layer, "our_output", lambda b: right("reference") * (1.01 if b == "auto" else 1))
    assert not all(check.passed for check in multiscale_lora.compare(layer, "auto"))


def test_a_calibration_is_what_the_dispatcher_reads(tmp_path, monkeypatch):
    from asepsis.kernels._triton import _routes

    made = _routes.Table()
    monkeypatch.setattr(_routes, "table", lambda: made)
    us = {"fused": 3.0, "accumulate": 2.0, "reference": 9.0}
    rows = [
        {
            "name": f"{direction} x",
            "settings": {**small().about(), "direction": direction, "inputs": 4096, "outputs": 4096},
            "sides": {"eager": {way: {"median_us": value} for way, value in us.items()}},
        }
        for direction in ("forward", "backward")
    ]
    product = {"library": {"median_us": 9.0}, "Triton": {"median_us": 10.0}}
    rows += [
        {"name": "product 1x1", "settings": {}, "sides": {"eager": product}},
        {"name": "broken", "settings": {"direction": "forward"}, "error": "x"},
    ]
    about = {
        "device": "NVIDIA H200",
        "capability": [9, 0],
        "commit": "abc",
        "torch": "2",
        "date": "2026-11-21",
    }
    _routes.plan.cache_clear()
    path = lora_routes.finish({"rows": rows}, about, tmp_path)
    assert path == tmp_path / "nvidia-h200" / "2026-11-21-abc-lora_calibration.json"
    assert json.loads(path.read_text())["devices"][0]["gemm_ratio"] == {"bfloat16": pytest.approx(0.9)}
    plan = _routes.plan(_routes.Layer(9, 4096, 4096, 6, "bfloat16", (9, 0)))
    assert (plan.forward, plan.backward, plan.refusal, plan.source) == (
        "accumulate",
        "accumulate",
        None,
        "measured",
    )
    _routes.plan.cache_clear()


def test_where_nothing_was_timed_no_calibration_is_written(tmp_path):
    about = {"device": "x", "capability": [9, 0], "commit": "a", "torch": "2", "date": "d"}
    assert lora_routes.finish({"rows": []}, about, tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_forced_way_holds_within_and_is_gone_after():
    from asepsis.kernels._triton import _routes

    before = _routes.plan
    layer = _routes.Layer(8192, 4096, 4096, 80, "bfloat16", (9, 0))
    for way in ("fused", "accumulate"):
        with lora_routes.forced(way):
            assert _routes.plan(layer).forward == way
    assert _routes.plan is before


def test_every_goal_of_the_layer_has_a_row():
    goals = {target.goal for case in multiscale_lora.cases() for target in getattr(case, "targets", ())}
    assert goals == {"G1", "G2", "G2b", "G3", "G4", "G5", "G5b", "G5c", "G6", "G6b", "G7"}
    whys = " ".join(case.why for case in multiscale_lora.cases())
    assert all(f"G{n}:" in whys for n in range(8, 13))
    assert len(lora_layers.SHAPES) == 7


def test_a_training_step_ends_at_one_loss_whichever_way():
    shape = training_step.Shape(
        vocabulary=50,
        width=32,
        layers=1,
        heads=4,
        key_heads=2,
        inner=48,
        batch=2,
        tokens=9,
        scales=(1.0, 2.0),
        rank=2,
        device="cpu",
        dtype=torch.float32,
    )
    checks = list(training_step.verify(shape))
    assert len(checks) == 2 and all(check.passed for check in checks), checks
    step = training_step.Step(shape, "auto")
    before = [p.detach().clone() for p in step.parameters]
    step()
    assert not any(torch.equal(p, old) for p, old in zip(step.parameters, before, strict=True))
    assert step.grads.count_nonzero() > 0
    assert step.reference.count_nonzero() > 0


def test_the_large_model_has_more_than_a_billion_weights():
    s = training_step.Shape(device="meta")
    with torch.device("meta"):
        assert sum(p.numel() for p in training_step.Llama(s).parameters()) > 1_000_000_000
