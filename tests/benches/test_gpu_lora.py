"""The LoRA benches on a CPU: what is timed computes one thing, and what is written down is what the dispatcher reads."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from asepsis.kernels import _calibration
from asepsis.kernels._triton import _routes

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benches.gpu import (  # noqa: E402
    alignment,
    calibration,
    lora_layers,
    lora_routes,
    multiscale_lora,
    sample_loss,
    training_step,
)
from benches.gpu.lora_layers import Layer, Setting  # noqa: E402
from benches.gpu.registry import BENCHES  # noqa: E402


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


ABOUT = {"device": "NVIDIA H200", "capability": [9, 0], "commit": "abc", "torch": "2", "date": "2026-11-21"}


def result(rows, *, passed=True):
    return {"checks": [{"name": "y", "passed": passed}], "rows": rows}


def timed(name, settings, **us):
    sides = {way: {"median_us": value} for way, value in us.items()}
    return {"name": name, "settings": settings, "sides": {"eager": sides}}


def test_a_calibration_is_what_the_dispatcher_reads(tmp_path, monkeypatch):
    table = _calibration.Table()
    monkeypatch.setattr(_calibration, "table", lambda: table)
    rows = [
        timed(f"{d} x", {"calibrates": calibration.calibrates("multiscale_lora", d, torch.bfloat16, 9, 64, 32, 6)},
              fused=3.0, accumulate=2.0, reference=9.0, copy=1.0)
        for d in ("forward", "backward")
    ]  # fmt: skip
    rows += [
        timed("product 1x1", {}, library=9.0, Triton=10.0),
        {"name": "broken", "settings": {}, "error": "x"},
    ]
    counts = calibration.calibrates("gradient_alignment", "update", "float32", 100)
    later = [timed("100", {"calibrates": counts}, triton=1.0, reference=2.0, loop=9.0)]
    path = calibration.write({"lora_routes": result(rows), "alignment": result(later)}, ABOUT, tmp_path)
    assert path == tmp_path / "nvidia-h200" / "2026-11-21-abc-calibration.json"
    assert table.devices["NVIDIA H200"].gemm_ratio == {"bfloat16": pytest.approx(0.9)}
    start = functools.partial(_calibration.start, "NVIDIA H200", table)
    assert start("multiscale_lora", "bfloat16", (64, 32, 6)) == 9
    assert start("gradient_alignment", "float32", ()) == 100
    layer = _routes.Layer(9, 64, 32, 6, "bfloat16", "NVIDIA H200")
    assert _routes.choose(layer, table) == _routes.Plan("accumulate", "accumulate", "measured")


def test_where_nothing_was_timed_no_calibration_is_written(tmp_path):
    results = {"lora_routes": result([]), "alignment": result([timed("x", {}, ours=1.0)])}
    assert calibration.write(results, ABOUT, tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_what_a_later_bench_finds_wrong_goes_out_of_the_calibration_again(tmp_path, monkeypatch):
    monkeypatch.setattr(_calibration, "table", _calibration.Table)
    lora = calibration.calibrates("multiscale_lora", "forward", torch.bfloat16, 9, 64, 32, 6)
    rule = calibration.calibrates("gradient_alignment", "update", "float32", 100)
    results = {
        "lora_routes": result([timed("x", {"calibrates": lora}, fused=1.0, reference=2.0)]),
        "alignment": result([timed("y", {"calibrates": rule}, triton=1.0, reference=2.0)]),
    }

    def operations():
        path = calibration.write(results, ABOUT, tmp_path)
        return [row["operation"] for row in json.loads(path.read_text())["devices"][0]["measured"]]

    assert operations() == ["multiscale_lora", "gradient_alignment"]
    results["multiscale_lora"] = result([], passed=False)
    assert operations() == ["gradient_alignment"]
    results["alignment"] = result([], passed=False)
    assert operations() == []


def test_every_bench_that_checks_an_operation_is_known_to_the_calibration():
    assert {bench.name for bench in BENCHES} - set(calibration.CHECKED) == {"training_step"}
    assert frozenset().union(*calibration.CHECKED.values()) == set(_calibration.OPERATIONS)


@pytest.mark.parametrize("bench", [lora_routes, alignment, sample_loss])
def test_what_calibrates_does_so_in_every_direction_and_once(bench):
    said = [c.settings["calibrates"] for c in bench.cases() if "calibrates" in c.settings]
    found: dict = {}
    for one in said:
        key = (one["operation"], one["dtype"], *one["sizes"].values())
        found.setdefault(key, []).append(one["direction"])
    assert found
    for (operation, *_), directions in found.items():
        assert sorted(directions) == sorted(_calibration.OPERATIONS[operation].directions)


def test_a_forced_way_holds_within_and_is_gone_after():
    before = _routes.plan
    layer = _routes.Layer(8192, 4096, 4096, 80, "bfloat16", "cpu")
    for way in ("fused", "accumulate"):
        with lora_routes.forced(way):
            assert _routes.plan(layer).forward == way
    assert _routes.plan is before


def test_every_goal_of_the_layer_has_a_row():
    goals = {target.goal for case in multiscale_lora.cases() for target in getattr(case, "targets", ())}
    assert goals == {"G1", "G2", "G2b", "G3", "G4", "G5", "G5b", "G5c", "G6", "G6b", "G7"}
    whys = " ".join(case.why for case in multiscale_lora.cases())
    assert all(f"G{n}:" in whys for n in (8, 9, 11, 12))  # G10 is checked before anything is timed
    assert len(lora_layers.SHAPES) == 7


SMALL_STEP = training_step.Shape(
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


def test_a_training_step_ends_at_one_loss_whichever_way():
    checks = list(training_step.verify(SMALL_STEP))
    assert len(checks) == 3 and all(check.passed for check in checks), checks
    step = training_step.Step(SMALL_STEP, "auto")
    before = [p.detach().clone() for p in step.parameters]
    step()
    assert not any(torch.equal(p, old) for p, old in zip(step.parameters, before, strict=True))
    assert step.grads.count_nonzero() > 0
    assert step.reference.count_nonzero() > 0


def test_a_plain_step_learns_without_a_reference_and_the_case_has_every_goal_of_a_step():
    step = training_step.Step(SMALL_STEP, "plain")
    before = [p.detach().clone() for p in step.parameters]
    step()
    assert not any(torch.equal(p, old) for p, old in zip(step.parameters, before, strict=True))
    assert step.reference.count_nonzero() == 0
    case = next(training_step.cases())
    assert {target.goal for target in case.targets} == {"step", "A5", "A6", "A6b"}
    sides = training_step.steps(SMALL_STEP)
    assert {name for t in case.targets for name in (t.of, t.to)} <= set(sides)
    for work in sides.values():
        work()


@pytest.mark.parametrize("way", ["reference", "layers", "stacked"])
def test_three_projections_are_one_computation_whichever_way(way):
    setting = small(dtype=torch.float64, adapters=torch.float64)
    wanted = multiscale_lora.three(setting, "layers")()
    got = multiscale_lora.three(setting, way)()
    assert len(got) == 7
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)  # the scales are float32


def test_the_large_model_has_more_than_a_billion_weights():
    s = training_step.Shape(device="meta")
    with torch.device("meta"):
        assert sum(p.numel() for p in training_step.Llama(s).parameters()) > 1_000_000_000
