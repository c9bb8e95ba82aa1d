"""What auto takes on a GPU: torch, until a measurement of that GPU says that Triton is no slower."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from asepsis.errors import ConfigError
from asepsis.kernels import _calibration, use_calibration
from asepsis.kernels._calibration import Table, start

HERE = "NVIDIA H200"
WIDTHS = {
    "multiscale_lora": (4096, 4096, 80),
    "grouped_lora": (4096, 6144, 240),
    "gradient_alignment": (),
    "linear_sample_loss": (4096, 32_000),
}
ASKED = sorted(WIDTHS.items())


def rows(operation, times, *, widths=None, dtype="bfloat16"):
    """Rows of a file: extent to what Triton and torch took, in every direction of the operation."""
    of = _calibration.OPERATIONS[operation]
    widths = WIDTHS[operation] if widths is None else widths
    return [
        {
            "operation": operation,
            "dtype": dtype,
            "direction": direction,
            "sizes": dict(zip(of.sizes, (extent, *widths), strict=True)),
            "us": {min(of.ways): ours, "reference": torchs},
        }
        for extent, (ours, torchs) in times.items()
        for direction in of.directions
    ]


def content(*measured, device=HERE, ratio=None):
    ratios = {"bfloat16": ratio} if ratio else {}
    return {"schema": 2, "devices": [{"device": device, "gemm_ratio": ratios, "measured": list(measured)}]}


def known(*measured, **more):
    table = Table()
    table.add(content(*measured, **more), "x")
    return table


def test_the_shipped_calibration_is_empty_and_says_so():
    shipped = json.loads(_calibration._SHIPPED.read_text())
    assert shipped["devices"] == [] and "not measured" in shipped["note"]
    Table().add(shipped, "shipped")


@pytest.mark.parametrize(("operation", "widths"), ASKED)
def test_a_gpu_that_nobody_measured_is_torchs_and_the_reason_names_the_command(operation, widths):
    for table in (Table(), known(*rows(operation, {8192: (1, 2)}), device="NVIDIA A100")):
        reason = start(HERE, table, operation, "bfloat16", widths)
        assert "never measured on NVIDIA H200" in reason and "make bench-gpu" in reason


@pytest.mark.parametrize(("operation", "widths"), ASKED)
def test_triton_is_taken_from_where_it_was_no_slower_in_every_measurement(operation, widths):
    def first(times):
        return start(HERE, known(*rows(operation, times)), operation, "bfloat16", widths)

    assert first({16: (3, 1), 1024: (2, 2), 8192: (1, 2)}) == 1024
    assert first({16: (1, 3), 1024: (3, 2), 8192: (1, 2)}) == 8192  # a win below a loss counts for nothing
    assert "faster on NVIDIA H200" in first({16: (1, 3), 8192: (3, 2)})


def test_the_best_of_tritons_ways_is_held_against_torch_over_both_directions():
    def first(forward, backward):
        table = known(*rows("multiscale_lora", {8192: (9, 9)}))
        (times,) = table.devices[HERE].times["multiscale_lora", "bfloat16", (4096, 4096, 80)].values()
        times.update(forward=forward, backward=backward)
        return start(HERE, table, "multiscale_lora", "bfloat16", (4096, 4096, 80))

    slow, fast = {"fused": 4.0, "accumulate": 5.0, "reference": 3.0}, {"accumulate": 1.0, "reference": 2.5}
    assert first(slow, fast) == 8192
    assert "faster" in first(slow, slow)


@pytest.mark.parametrize(
    ("widths", "counts"),
    [
        ((4096, 4096, 80), True),
        ((8192, 4096, 80), True),
        ((2048, 8192, 160), True),
        ((8193 * 16, 4096, 80), False),
        ((4096, 1024, 80), False),
        ((4096, 4096, 16), False),
        ((4096, 4100, 80), False),
        ((4100, 4096, 80), False),
    ],
)
def test_widths_count_within_a_factor_of_two_and_if_equally_aligned(widths, counts):
    table = known(*rows("multiscale_lora", {8192: (1, 2)}))
    found = start(HERE, table, "multiscale_lora", "bfloat16", widths)
    assert found == 8192 if counts else "nothing like this size" in found


def test_the_nearest_widths_decide():
    table = known(
        *rows("multiscale_lora", {8192: (1, 2)}, widths=(4096, 4096, 80)),
        *rows("multiscale_lora", {8192: (2, 1)}, widths=(2048, 4096, 80)),
    )
    assert start(HERE, table, "multiscale_lora", "bfloat16", (4000, 4096, 80)) == 8192
    assert "faster" in start(HERE, table, "multiscale_lora", "bfloat16", (2064, 4096, 80))


def test_another_dtype_and_another_operation_were_not_measured():
    table = known(*rows("multiscale_lora", {8192: (1, 2)}))
    assert "in float32" in start(HERE, table, "multiscale_lora", "float32", (4096, 4096, 80))
    assert "nothing like this size" in start(HERE, table, "gradient_alignment", "float32", ())


def test_half_a_measurement_does_not_count():
    forward = [r for r in rows("multiscale_lora", {8192: (1, 2)}) if r["direction"] == "forward"]
    assert "nothing like" in start(HERE, known(*forward), "multiscale_lora", "bfloat16", (4096, 4096, 80))
    for missing in ("reference", "accumulate"):
        cut = rows("multiscale_lora", {8192: (1, 2)})
        del cut[0]["us"][missing]
        assert "nothing like" in start(HERE, known(*cut), "multiscale_lora", "bfloat16", (4096, 4096, 80))


def test_later_calibrations_add_to_earlier_ones_and_overrule_them():
    table = known(*rows("multiscale_lora", {8192: (2, 1)}))
    before = table.revision
    table.add(
        content(*rows("multiscale_lora", {8192: (1, 2)}), *rows("gradient_alignment", {100: (1, 2)})), "y"
    )
    assert table.revision > before
    assert start(HERE, table, "multiscale_lora", "bfloat16", (4096, 4096, 80)) == 8192
    assert start(HERE, table, "gradient_alignment", "bfloat16", ()) == 100


@pytest.mark.parametrize(
    "wrong",
    [
        {"us": {"reference": 0.0, "fused": 1.0}},
        {"us": {"reference": "fast", "fused": 1.0}},
        {"us": {"reference": 1.0, "fused": float("nan")}},
        {"us": {"triton": 1.0, "reference": 1.0}},
        {"direction": "both"},
        {"operation": "mix"},
        {"sizes": {"rows": 1}},
        {"sizes": {"rows": 0, "inputs": 1, "outputs": 1, "rank": 1}},
    ],
    ids=str,
)
def test_a_row_that_says_nothing_is_refused_and_nothing_of_its_file_is_taken(wrong):
    table = Table()
    row = {**rows("multiscale_lora", {8192: (1, 2)})[0], **wrong}
    with pytest.raises(ConfigError, match="x is no calibration"):
        table.add(content(*rows("gradient_alignment", {1: (1, 2)}), row), "x")
    assert not table.devices


@pytest.fixture
def here(monkeypatch):
    """This process's table, empty, on a machine whose GPU 0 is an H200."""
    table = Table()
    monkeypatch.setattr(_calibration, "table", lambda: table)
    monkeypatch.setattr(_calibration, "device_name", lambda _: HERE)
    _calibration._warn.cache_clear()
    yield table
    _calibration._warn.cache_clear()


def refusal(n, operation="multiscale_lora"):
    return _calibration.refusal(operation, torch.bfloat16, torch.device("cuda", 0), n, *WIDTHS[operation])


def test_an_unmeasured_gpu_is_warned_of_once_with_the_way_out(here, caplog):
    caplog.set_level(logging.WARNING, logger="asepsis")
    for operation in (*WIDTHS, *WIDTHS):
        assert "never measured" in refusal(8192, operation)
    (said,) = (record.getMessage() for record in caplog.records)
    for part in (HERE, "make bench-gpu", "use_calibration", "ASEPSIS_CALIBRATION", "backend='triton'"):
        assert part in said


def test_a_calibration_that_is_read_decides_from_then_on_and_without_a_warning(here, caplog, tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content(*rows("multiscale_lora", {1024: (1, 2)}))))
    assert refusal(8192) is not None
    caplog.clear()
    use_calibration(path)
    assert here.path == str(path)
    assert refusal(8192) is None
    assert "so little" in refusal(1023)
    assert not caplog.records


def test_off_the_gpu_nothing_is_asked(here, caplog):
    reason = _calibration.refusal("gradient_alignment", torch.float32, torch.device("cpu"), 10)
    assert reason == "it needs an NVIDIA GPU" and not caplog.records


def test_torch_compile_takes_the_answer_for_a_constant_and_follows_the_rows(here):
    here.add(content(*rows("multiscale_lora", {1024: (1, 2)})), "x")

    def ways(x):
        gpu = torch.device("cuda", 0)
        reason = _calibration.refusal("multiscale_lora", torch.bfloat16, gpu, x.shape[0], 4096, 4096, 80)
        return x + (0 if reason is None else 1)

    compiled = torch.compile(ways, backend="eager", fullgraph=True, dynamic=True)
    for n in (8192, 3, 2048, 1023, 1024):
        assert torch.equal(compiled(torch.zeros(n)), ways(torch.zeros(n))), n


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": 1, "devices": []}', '{"schema": 2}', '{"schema": 2, "devices": [{}]}'],
)
def test_a_file_that_is_no_calibration_is_refused_and_changes_nothing(here, text, tmp_path):
    path = tmp_path / "c.json"
    path.write_text(text)
    before = here.revision
    with pytest.raises(ConfigError, match=r"c\.json"):
        use_calibration(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        use_calibration(tmp_path / "absent.json")
    assert (here.revision, here.path) == (before, None)


def test_the_variable_names_a_calibration_and_a_wrong_one_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content(*rows("gradient_alignment", {1: (1, 2)}))))
    monkeypatch.setenv(_calibration.VARIABLE, str(path))
    table = _calibration.table.__wrapped__()
    assert (table.path, list(table.devices)) == (str(path), [HERE])
    monkeypatch.setenv(_calibration.VARIABLE, str(tmp_path / "absent.json"))
    with pytest.raises(ConfigError, match="cannot be read"):
        _calibration.table.__wrapped__()
