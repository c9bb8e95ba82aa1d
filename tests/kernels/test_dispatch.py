"""The path that runs is the one that was asked for, or the one that was announced."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from asepsis.errors import BackendError, ConfigError
from asepsis.kernels import _dispatch, bottom_k, sample_loss
from asepsis.kernels._dispatch import no_triton, select


@pytest.fixture(autouse=True)
def fresh():
    _dispatch._say.cache_clear()


def test_auto_takes_the_first_path_that_can_run():
    assert select("op", "auto", {"triton": None, "reference": None}) == "triton"
    assert select("op", "auto", {"triton": "no GPU", "reference": None}) == "reference"


def test_auto_says_once_what_runs_and_what_was_passed_over(caplog):
    caplog.set_level(logging.INFO, logger="asepsis")
    for _ in range(3):
        select("op", "auto", {"triton": "no GPU", "reference": None})
    assert [record.getMessage() for record in caplog.records] == [
        "op runs on the reference path (triton: no GPU)"
    ]


def test_an_explicit_backend_is_never_replaced():
    with pytest.raises(BackendError, match="cannot run on the triton path: no GPU; or use backend='auto'"):
        select("op", "triton", {"triton": "no GPU", "reference": None})
    with pytest.raises(BackendError, match="op has no native path, it has triton, reference"):
        select("op", "native", {"triton": None, "reference": None})


def test_auto_without_a_path_is_an_error():
    with pytest.raises(BackendError, match="op cannot run here; triton: no GPU"):
        select("op", "auto", {"triton": "no GPU"})


def test_a_name_that_is_no_backend_is_a_setting_error():
    with pytest.raises(
        ConfigError, match="backend must be one of auto, reference, native, triton, got 'cuda'"
    ):
        select("op", "cuda", {"reference": None})  # type: ignore[arg-type]


def test_operations_refuse_the_paths_they_do_not_have():
    with pytest.raises(BackendError, match="bottom_k has no triton path"):
        bottom_k(torch.zeros(3), 1, backend="triton")
    with pytest.raises(BackendError, match="sample_loss has no triton path"):
        sample_loss(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), backend="triton")
    with pytest.raises(BackendError, match="cannot run on the native path: values are on meta"):
        bottom_k(torch.zeros(3, device="meta"), 1, backend="native")


def test_triton_says_what_it_lacks(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    here, nowhere = torch.zeros(1), torch.zeros(1, device="meta")
    assert no_triton(here) == "the tensors are on cpu, it needs an NVIDIA GPU"
    assert no_triton(here, None, nowhere) == "the tensors are on cpu and meta, it needs an NVIDIA GPU"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "it needs an NVIDIA GPU" in no_triton(here, nowhere)
    monkeypatch.setattr(_dispatch, "_has_triton", lambda: False)
    assert no_triton(here) == "Triton is not installed; pip install triton"
    monkeypatch.setattr(_dispatch, "_has_triton", lambda: True)
    assert no_triton(here, None) is None


@pytest.mark.parametrize(
    ("hip", "installed", "capability", "reason"),
    [
        (None, True, (8, 0), None),
        (None, True, (7, 5), "compute capability 7.5, it needs 8.0"),
        (None, False, (9, 0), "pip install triton"),
        ("6.4", True, (9, 0), "NVIDIA GPUs only"),
    ],
)
def test_a_gpu_is_refused_for_what_it_is(hip, installed, capability, reason, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(_dispatch, "_has_triton", lambda: installed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    _dispatch._no_triton_on.cache_clear()
    found = _dispatch._no_triton_on(0)
    _dispatch._no_triton_on.cache_clear()
    assert found == reason if reason is None else reason in found


def test_importing_the_kernels_loads_no_fast_path():
    loaded = "any(name.startswith(('asepsis.kernels._triton', 'transformers')) for name in sys.modules)"
    code = f"import sys, asepsis.kernels; sys.exit({loaded})"
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0
