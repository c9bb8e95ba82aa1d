"""Which way a layer on Triton makes its wide products: the measured one, else the model's."""

from __future__ import annotations

import pytest

from asepsis.kernels._calibration import Table
from asepsis.kernels._triton._routes import Layer, choose

HERE = "NVIDIA H200"


def layer(inputs=4096, outputs=4096, rows=8192, rank=80, dtype="bfloat16", **more):
    return Layer(rows, inputs, outputs, rank, dtype, HERE, **more)


def table(*measured, ratio=None):
    made = Table()
    rows = [
        {
            "operation": "multiscale_lora",
            "dtype": "bfloat16",
            "direction": direction,
            "sizes": {"rows": n, "inputs": inputs, "outputs": 4096, "rank": 80},
            "us": {**us, "reference": 9.0},
        }
        for n, inputs, *both in measured
        for direction, us in zip(("forward", "backward"), both, strict=True)
    ]
    ratios = {"bfloat16": ratio} if ratio else {}
    made.add({"schema": 2, "devices": [{"device": HERE, "gemm_ratio": ratios, "measured": rows}]}, "x")
    return made


FUSED, ADDED = {"fused": 1.0, "accumulate": 2.0}, {"fused": 5.0, "accumulate": 2.0}


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
    plan = choose(layer(inputs, outputs), Table())
    assert (plan.forward, plan.backward, plan.source) == (forward, backward, "modelled")


def test_a_measurement_decides_over_the_model():
    plan = choose(layer(), table((8192, 4096, FUSED, ADDED)))
    assert (plan.forward, plan.backward, plan.source) == ("fused", "accumulate", "measured")
    assert choose(layer(inputs=768), table((8192, 4096, FUSED, ADDED))).source == "modelled"


@pytest.mark.parametrize(
    ("rows", "way"), [(1, "fused"), (300, "fused"), (3000, "accumulate"), (10**6, "accumulate")]
)
def test_the_nearest_number_of_rows_decides(rows, way):
    made = table((64, 4096, FUSED, FUSED), (8192, 4096, ADDED, ADDED))
    assert choose(layer(rows=rows), made).forward == way


def test_rows_that_are_not_aligned_are_never_fused():
    made = table((8192, 777, {"fused": 1.0}, {"fused": 1.0}))
    for odd in (layer(777), layer(768, 777)):
        assert (choose(odd, made).forward, choose(odd, made).backward) == ("accumulate", "accumulate")


def test_a_mask_leaves_the_way_to_the_model():
    assert choose(layer(dropout=True), table((8192, 4096, FUSED, FUSED))).source == "modelled"


def test_no_row_at_all_has_a_way():
    assert choose(layer(rows=0), table((8192, 4096, FUSED, ADDED))).forward == "fused"


def test_the_measured_ratio_of_products_moves_the_models_switch():
    made = table(ratio=0.95)
    assert (choose(layer(4096, 14336), made).forward, choose(layer(4096, 14336), made).backward) == (
        "fused",
        "accumulate",
    )
