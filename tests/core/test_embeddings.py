from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from asepsis.core import embeddings
from asepsis.core.embeddings import (
    condition,
    conditioned_z,
    epur_score,
    motion,
    noise_floor,
    read_floats,
    top_k,
    without_shared_drift,
)
from asepsis.core.weights.headers import read_header
from asepsis.errors import ConfigError
from asepsis.kernels import row_stats


def matrix(rows=400, width=48, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 0.05


def moved(p, rows, size, seed=1):
    delta = torch.zeros_like(p)
    noise = torch.randn(len(rows), p.shape[1], generator=torch.Generator().manual_seed(seed))
    delta[rows] = size * noise / noise.norm(dim=1, keepdim=True)
    return p + delta


def test_an_edit_that_keeps_the_norm_ranks_first():
    p = matrix()
    f = moved(p, range(100), 0.01)
    f[300] = f[300].flip(0)  # as embedding poisoning leaves it: another direction, the same norm
    assert torch.allclose(f[300].norm(), p[300].norm())
    stats = row_stats(p, f)
    everybody = np.ones(len(p), bool)
    assert abs(stats.tuned_squared[300] - stats.reference_squared[300]) < 1e-6
    assert top_k(stats.perpendicular, 1, everybody).tolist() == [300]
    assert top_k(motion(stats, "float32").drift, 1, everybody).tolist() == [300]


@pytest.mark.parametrize("steps", [1, 1000])
def test_pure_decay_moves_no_row(steps):
    p = matrix()
    f = p.clone()
    for _ in range(steps):
        f *= 1 - 2e-5 * 0.01 * (1000 / steps)
    found = motion(row_stats(p, f), "float32")
    assert found.gamma == pytest.approx(1 - 2e-4, abs=2e-5)  # a step is near the resolution of float32
    assert found.drift.max() < 0.2 * row_stats(p, f).l2.max()
    assert not found.seen.any()


def test_decay_is_taken_off_rows_that_training_moved():
    p = matrix()
    shrunk = p * 0.95
    f = moved(shrunk, range(100), 0.01)
    found = motion(row_stats(p, f), "float32")
    assert found.gamma == pytest.approx(0.95, abs=1e-6)
    assert np.flatnonzero(found.seen).tolist() == list(range(100))
    assert np.allclose(found.drift[:100], 0.01, rtol=1e-3)


def test_few_rows_do_not_decide_about_decay():
    p = matrix(60)
    f = moved(p, range(20, 60), 0.01)
    f[:20] *= 0.9
    assert motion(row_stats(p, f), "float32").gamma == 1.0


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bfloat16"), (torch.float16, "float16")])
def test_the_noise_floor_is_what_rounding_leaves(dtype, name):
    p = matrix(2000, 96)
    stats = row_stats(p, p.to(dtype).float())
    ratio = np.median(stats.l2 / noise_floor(stats, name))
    assert 0.9 < ratio < 1.1


def test_a_reference_rounded_like_the_tuned_rows_moves_only_what_was_moved():
    p = matrix()
    f = moved(p, range(50), 0.05).to(torch.bfloat16)
    assert motion(row_stats(p, f, round_to="bfloat16"), "bfloat16").seen.sum() == 50
    assert row_stats(p, f, round_to="bfloat16").moved.sum() == 50
    assert row_stats(p, f).moved.sum() == 400


def test_epur_divides_by_the_logarithm_from_twenty_on():
    l2 = np.array([1.0, 1.0, 1.0])
    assert epur_score(l2, np.array([0.0, 20.0, np.e**10])).tolist() == [1 / np.log(20), 1 / np.log(20), 0.1]
    assert epur_score(l2, None).tolist() == [1 / np.log(20)] * 3


def test_a_row_is_compared_with_rows_as_frequent():
    rng = np.random.default_rng(0)
    f = np.repeat([1.0, 10.0, 1000.0], 300)
    l2 = np.repeat([0.001, 0.01, 0.1], 300) * np.exp(0.1 * rng.standard_normal(900))
    l2[5] = 0.01  # ordinary for a common word
    found = condition(l2, f, np.ones(900, bool))
    assert int(np.nanargmax(found.z)) == 5 and found.z[5] > 15
    assert found.expected[[0, 400, 800]] == pytest.approx([0.001, 0.01, 0.1], rel=0.05)


def test_bins_have_fifty_seen_rows_or_are_merged():
    rng = np.random.default_rng(0)
    for n in (40, 120, 700, 5000):
        f, l2 = rng.lognormal(3, 3, n), rng.lognormal(0, 1, n)
        seen = rng.random(n) < 0.5
        found = condition(l2, f, seen)
        counts = [int((found.bin[seen] == b).sum()) for b in np.unique(found.bin[seen])]
        assert len(counts) == 1 or min(counts) >= 50
        assert np.isnan(found.z[~seen]).all() and np.isfinite(found.z[seen]).all()


def test_without_frequencies_there_is_one_bin():
    l2 = np.arange(1.0, 101.0)
    assert np.array_equal(
        conditioned_z(l2, None, np.ones(100, bool)), conditioned_z(l2, np.ones(100), np.ones(100, bool))
    )


def test_rows_that_moved_alike_have_no_distance_and_a_stranger_an_infinite_one():
    l2 = np.ones(60)
    l2[7] = 2
    z = conditioned_z(l2, None, np.ones(60, bool))
    assert z[7] == np.inf and np.delete(z, 7).tolist() == [0.0] * 59


def test_the_top_is_ordered_by_score_then_id_with_nan_last():
    score = np.array([1.0, 3.0, np.nan, 3.0, 2.0, 9.0])
    eligible = np.array([True, True, True, True, True, False])
    assert top_k(score, 3, eligible).tolist() == [1, 3, 4]
    assert top_k(score, 99, eligible).tolist() == [1, 3, 4, 0, 2]


def test_a_protected_id_is_never_on_top_for_any_k():
    rng = np.random.default_rng(0)
    score, eligible = rng.random(50), rng.random(50) < 0.7
    for k in range(51):
        picked = top_k(score, k, eligible)
        assert eligible[picked].all() and len(picked) == min(k, eligible.sum())
    with pytest.raises(ConfigError):
        top_k(score, -1, eligible)


def stored(tmp_path, name, tensor):
    save_file({"w": tensor}, str(tmp_path / name))
    return read_header(tmp_path / name)["w"].matrix()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_all_rows_share_is_taken_off(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(embeddings, "_BLOCK", 37)
    p = matrix(200).to(dtype)
    shared = 0.05 * torch.ones(48)
    own = torch.zeros(200, 48)
    some = torch.randn(60, 48, generator=torch.Generator().manual_seed(3))
    own[11:71] = 0.05 * some
    own[11] *= 3
    f = (p.float() + shared + own).to(dtype)
    left, right = stored(tmp_path, "p", p), stored(tmp_path, "f", f)
    stats = row_stats(p, f)
    pairs = np.stack([np.arange(200)] * 2, 1)
    rest = without_shared_drift(left, right, stats, pairs)
    delta = (f.float() - p.float()).double()
    wanted = delta - delta.mean(0)
    moved_by_itself = slice(11, 71)
    assert np.allclose(
        rest.delta_squared[moved_by_itself], wanted.square().sum(1)[moved_by_itself], rtol=1e-4
    )
    assert np.allclose(
        rest.delta_dot[moved_by_itself], (wanted * p.double()).sum(1)[moved_by_itself], atol=1e-5
    )
    # of the others only the error of the mean is left, which is no drift of theirs
    assert not np.delete(rest.delta_squared, np.arange(11, 71)).any()
    assert int(np.argmax(rest.delta_squared)) == 11
    assert np.array_equal(read_floats(right), f.float().numpy())


def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other(tmp_path):
    p = matrix(100)
    f = p + 0.01
    f[4, 2] = torch.nan
    left, right = stored(tmp_path, "p", p), stored(tmp_path, "f", f)
    rest = without_shared_drift(left, right, row_stats(p, f), None)
    assert np.isnan(rest.delta_squared[4]) and np.isfinite(np.delete(rest.delta_squared, 4)).all()
    assert replace(rest, delta_squared=np.nan_to_num(rest.delta_squared)).l2.max() < 1e-3
