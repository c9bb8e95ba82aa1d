"""Which way a layer goes on a GPU: the model where nothing was measured, the measurement where there is one."""

from __future__ import annotations

import json

import pytest

from asepsis.errors import ConfigError
from asepsis.kernels._triton import _routes
from asepsis.kernels._triton._routes import Layer, Table
from asepsis.kernels.multiscale_lora import use_calibration


def layer(inputs=4096, outputs=4096, rows=8192, rank=80, dtype="bfloat16", **more):
    return Layer(rows, inputs, outputs, rank, dtype, (9, 0), **more)


def calibration(us_forward, us_backward, *, ratio=None, **where):
    row = {"rows": 8192, "inputs": 4096, "outputs": 4096, "rank": 80, "dtype": "bfloat16", **where}
    layers = [
        {**row, "direction": d, "us": us} for d, us in (("forward", us_forward), ("backward", us_backward))
    ]
    device = {"device": "x", "capability": [9, 0], "gemm_ratio": {"bfloat16": ratio} if ratio else {}}
    return {"schema": 1, "devices": [{**device, "layers": layers}]}


def shipped():
    table = Table()
    table.add(json.loads(_routes._SHIPPED.read_text()), "shipped")
    return table


def test_the_shipped_table_is_empty_and_says_so():
    content = json.loads(_routes._SHIPPED.read_text())
    assert content["devices"] == [] and "not measured" in content["note"]
    assert shipped().plan(layer()).source == "modelled"


@pytest.mark.parametrize(
    ("inputs", "outputs", "forward", "backward"),
    [
        (768, 768, "fused", "fused"),
        (768, 3072, "fused", "accumulate"),
        (1600, 6400, "fused", "accumulate"),
        (4096, 4096, "accumulate", "accumulate"),
    ],
)
def test_the_model_fuses_where_few_features_are_summed(inputs, outputs, forward, backward):
    plan = shipped().plan(layer(inputs, outputs))
    assert (plan.forward, plan.backward, plan.refusal) == (forward, backward, None)


def test_few_rows_and_float32_are_left_to_torch_unless_a_mask_is_drawn():
    table = shipped()
    assert "few rows" in table.plan(layer(rows=16)).refusal
    assert "float32" in table.plan(layer(dtype="float32")).refusal
    assert table.plan(layer(rows=16, dropout=True)).refusal is None
    assert table.plan(layer(dtype="float32", dropout=True)).refusal is None


def test_rows_that_are_not_aligned_are_never_fused():
    table = Table()
    table.add(calibration({"fused": 1.0}, {"fused": 1.0}, inputs=777), "x")
    for plan in (table.plan(layer(777)), table.plan(layer(768, 777))):
        assert (plan.forward, plan.backward) == ("accumulate", "accumulate")


def test_a_measurement_decides_over_the_model():
    table = Table()
    table.add(calibration({"fused": 1.0, "accumulate": 2.0}, {"fused": 5.0, "accumulate": 2.0}), "x")
    plan = table.plan(layer())
    assert (plan.forward, plan.backward, plan.source) == ("fused", "accumulate", "measured")
    assert table.plan(layer(rows=5000)).source == "measured"  # the power of two above
    assert table.plan(layer(rows=20_000)).source == "modelled"
    assert table.plan(layer(inputs=768)).source == "modelled"


def test_torch_is_taken_where_it_was_measured_to_be_faster_over_both_directions():
    slow, fast = {"fused": 4.0, "accumulate": 5.0, "reference": 3.0}, {"fused": 1.0, "reference": 2.5}
    for forward, backward, refused in ((slow, slow, True), (slow, fast, False)):
        table = Table()
        table.add(calibration(forward, backward), "x")
        assert (table.plan(layer()).refusal is not None) == refused


def test_the_products_ratio_moves_the_models_switch():
    table = Table()
    table.add(calibration({}, {}, ratio=0.95, inputs=1), "x")
    assert table.plan(layer(4096, 14336)).forward == "fused"
    assert table.plan(layer(4096, 14336)).backward == "accumulate"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"schema": 2, "devices": []}', '{"schema": 1}', '{"schema": 1, "devices": [{}]}'],
)
def test_a_file_that_is_no_calibration_is_refused_and_changes_nothing(content, tmp_path):
    path = tmp_path / "c.json"
    path.write_text(content)
    before = _routes.plan(layer())
    with pytest.raises(ConfigError, match=r"c\.json"):
        _routes.use(path)
    assert _routes.plan(layer()) == before
    with pytest.raises(ConfigError, match="cannot be read"):
        _routes.use(tmp_path / "absent.json")


def test_a_calibration_that_is_read_holds_for_the_process(tmp_path, monkeypatch):
    table = shipped()
    monkeypatch.setattr(_routes, "table", lambda: table)
    _routes.plan.cache_clear()
    assert _routes.plan(layer()).source == "modelled"
    path = tmp_path / "c.json"
    path.write_text(json.dumps(calibration({"fused": 1.0}, {"accumulate": 1.0})))
    use_calibration(path)
    assert _routes.plan(layer()).source == "measured"
    assert table.path == str(path)
    _routes.plan.cache_clear()
