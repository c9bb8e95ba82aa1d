"""The GPU benches' own logic, with clocks that are no clocks: numbers nobody can mistrust come from turns, medians, gates."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benches.gpu import machine, registry, runner, timing, tree  # noqa: E402
from benches.gpu.cases import Case, Check, Probe, Target  # noqa: E402
from benches.gpu.registry import BENCHES  # noqa: E402


class Cost:
    """A side whose every call is charged the next of its costs."""

    def __init__(self, *costs: float) -> None:
        self.costs, self.calls = costs, 0

    def __call__(self) -> None:
        self.calls += 1


class FakeClock:
    """Charges what a side says and writes down the order of events."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self._queued: list[float] = []

    def time(self, work) -> None:
        work()
        self.log.append(work)
        self._queued.append(work.costs[(work.calls - 1) % len(work.costs)])

    def read(self) -> list[float]:
        queued, self._queued = self._queued, []
        return queued

    def flush(self) -> None:
        self.log.append("flush")


def test_sides_take_turns_from_a_flushed_cache_and_each_comes_first_as_often():
    clock, a, b, c = FakeClock(), Cost(1), Cost(2), Cost(3)
    taken = timing.in_turns({"a": a, "b": b, "c": c}, clock, flush=clock.flush, rounds=6, warmup=3)
    assert taken == {"a": [1] * 6, "b": [2] * 6, "c": [3] * 6}
    assert clock.log[::2] == ["flush"] * 27
    order = clock.log[1::2]
    rounds = [order[i : i + 3] for i in range(0, 27, 3)]
    assert all(set(round_) == {a, b, c} for round_ in rounds)
    firsts = [round_[0] for round_ in rounds[3:]]
    assert [firsts.count(side) for side in (a, b, c)] == [2, 2, 2]


def test_warm_up_is_not_in_the_numbers():
    clock, side = FakeClock(), Cost(100, 100, 1, 1, 1)
    assert timing.in_turns({"a": side}, clock, flush=clock.flush, rounds=3, warmup=2) == {"a": [1, 1, 1]}


def test_rounds_end_when_the_time_is_over_but_not_before_five():
    clock, ticks = FakeClock(), iter(range(0, 10_000, 10))
    taken = timing.in_turns(
        {"a": Cost(1)}, clock, flush=clock.flush, rounds=50, seconds=1, now=lambda: next(ticks)
    )
    assert len(taken["a"]) == 5


def test_the_median_is_not_moved_by_one_slow_call():
    assert timing.summary([1e-6, 2e-6, 900e-6]) == {
        "median_us": pytest.approx(2),
        "fastest_us": pytest.approx(1),
        "slowest_tenth_us": pytest.approx(900),
        "runs": 3,
    }


class Bench:
    def __init__(self, cases, checks=()):
        self._cases, self._checks = cases, checks

    def verify(self):
        yield from self._checks

    def cases(self):
        yield from self._cases


def case(name="case", fast=2.0, slow=5.0, **more):
    target = Target(goal="G1", of="slow", to="fast", bound=2.0)
    return Case(
        name=name,
        why="x",
        make=lambda: {"fast": Cost(fast * 1e-6), "slow": Cost(slow * 1e-6)},
        targets=(target,),
        **more,
    )


def run(bench, **more):
    clock, said = FakeClock(), []
    settings = {"clock": clock, "flush": clock.flush, "capture": None, "say": said.append, **more}
    return runner.run(bench, **settings), said


def test_a_ratio_is_of_medians_and_says_whether_its_goal_is_met():
    result, said = run(Bench([case(), case("missed", slow=3.0)]))
    (met,), (missed,) = (row["ratios"] for row in result["rows"])
    assert (met["ratio"], met["met"]) == (pytest.approx(2.5), True)
    assert (missed["ratio"], missed["met"]) == (pytest.approx(1.5), False)
    assert not runner.failed(result)
    assert any("MISSED" in line for line in said)


def test_at_most_is_the_other_way_round():
    target = Target(goal="G6", of="a", to="b", bound=1.2, wanted="at most")
    assert target.met(1.19) and not target.met(1.21)
    assert not target.met(float("nan"))


@pytest.mark.parametrize("error", [1e-2, float("nan"), float("inf")])
def test_after_a_wrong_result_nothing_is_timed(error):
    result, said = run(Bench([case()], [Check(name="y", error=error, allowed=1e-3)]))
    assert (result["rows"], result["not_reached"]) == ([], ["case"])
    assert runner.failed(result)
    assert "WRONG y" in said[0]
    json.dumps(result, allow_nan=False)


def test_what_the_time_did_not_reach_is_named():
    ticks = iter([0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 99.0, 99.0, 99.0])
    result, _ = run(Bench([case("first"), case("second")]), seconds=5, now=lambda: next(ticks, 99.0))
    assert [row["name"] for row in result["rows"]] == ["first"]
    assert result["not_reached"] == ["second"]


def test_a_case_that_fails_is_written_down_and_costs_the_others_nothing():
    def broken():
        raise RuntimeError("out of memory")

    result, _ = run(Bench([Case(name="broken", why="x", make=broken), case()]))
    assert result["rows"][0]["error"] == "RuntimeError: out of memory"
    assert result["rows"][1]["ratios"]
    assert runner.failed(result)


def test_a_graph_is_timed_beside_the_eager_calls_and_a_refused_one_is_named():
    def capture(work):
        if work.costs[0] > 4e-6:
            raise RuntimeError("cannot be captured\nlong story")
        return Cost(work.costs[0] / 2)

    result, _ = run(Bench([case(), case("without", graph=False)]), capture=capture)
    row, without = result["rows"]
    assert set(row["sides"]["graph"]) == {"fast"}
    assert row["sides"]["graph"]["fast"]["median_us"] == pytest.approx(1.0)
    assert row["not_captured"] == {"slow": "RuntimeError: cannot be captured"}
    assert [ratio["mode"] for ratio in row["ratios"]] == ["eager"]
    assert set(without["sides"]) == {"eager"}


def test_a_probe_returns_its_values():
    probe = Probe(name="memory", why="x", run=lambda: {"bytes": 3})
    assert run(Bench([probe]))[0]["rows"][0]["values"] == {"bytes": 3}


def test_results_are_named_by_device_date_commit_and_bench(tmp_path):
    about = {"device": "NVIDIA H200", "date": "2026-11-21", "commit": "abc1234"}
    path = machine.result_path(tmp_path, about, "multiscale_lora")
    assert path == tmp_path / "nvidia-h200" / "2026-11-21-abc1234-multiscale_lora.json"
    machine.write(path, {"x": 1})
    assert json.loads(path.read_text()) == {"x": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        machine.write(path, {"x": float("nan")})
    assert json.loads(path.read_text()) == {"x": 1}


def wheel(folder: Path, *members: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "asepsis-0.1.0-cp310-abi3-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, b"library")
    return path


@pytest.mark.parametrize("place", [".", "dist", "..", "../dist"])
def test_the_rust_core_comes_from_a_wheel_near_the_tree(place, tmp_path, monkeypatch):
    root = tmp_path / "tree"
    package = root / "python" / "asepsis"
    package.mkdir(parents=True)
    wheel(root / place, "asepsis/__init__.py", "asepsis/_native.abi3.so")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert tree.make_importable(root) == package
    assert (package / "_native.abi3.so").read_bytes() == b"library"
    assert sys.path[0] == str(root / "python")
    assert not (package / "__init__.py").exists()


def test_a_core_that_is_there_is_left_alone(tmp_path, monkeypatch):
    package = tmp_path / "python" / "asepsis"
    package.mkdir(parents=True)
    (package / "_native.abi3.so").write_bytes(b"own")
    wheel(tmp_path, "asepsis/_native.abi3.so")
    monkeypatch.setattr(sys, "path", list(sys.path))
    tree.make_importable(tmp_path)
    assert (package / "_native.abi3.so").read_bytes() == b"own"


def test_without_core_and_wheel_the_way_out_is_said(tmp_path):
    (tmp_path / "a" / "python" / "asepsis").mkdir(parents=True)
    with pytest.raises(tree.TreeError, match="make wheel"):
        tree.make_importable(tmp_path / "a")
    wheel(tmp_path / "a", "asepsis/__init__.py")
    with pytest.raises(tree.TreeError, match="without the Rust core"):
        tree.make_importable(tmp_path / "a")


def test_without_a_gpu_the_command_refuses_and_writes_nothing(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "benches.gpu", "--output", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [0.0, 1.0])
def test_a_run_leaves_results_calibration_page_and_picture_behind(error, tmp_path, monkeypatch):
    from benches.gpu import __main__ as command
    from benches.gpu.calibration import calibrates

    from asepsis.kernels import _calibration

    about = {"device": "NVIDIA H200", "date": "2026-11-21", "commit": "abc1234", "torch": "2"}
    counts = {"calibrates": calibrates("gradient_alignment", "update", "float32", 100)}
    sides = {"triton": Cost(1e-6), "reference": Cost(3e-6)}
    target = Target(goal="A4", of="reference", to="triton", bound=5.0)
    only = Case(name="100", why="x", make=lambda: sides, settings=counts, targets=(target,), graph=False)
    bench = Bench([only], [Check(name="y", error=error, allowed=0.5)])
    table = _calibration.Table()
    monkeypatch.setattr(_calibration, "table", lambda: table)
    monkeypatch.setattr(machine, "describe", lambda: about)
    monkeypatch.setattr(timing, "CudaClock", FakeClock)
    monkeypatch.setattr(timing, "l2_flush", lambda: lambda: None)
    monkeypatch.setitem(sys.modules, "benches.gpu.fake", bench)
    chosen = [registry.Bench(name="fake", module="benches.gpu.fake", seconds=1, about="x")]
    args = argparse.Namespace(seconds=10.0, output=tmp_path)
    assert command.measure(chosen, args) == int(error > 0.5)
    stem = "2026-11-21-abc1234"
    always = {f"{stem}-fake.json", f"{stem}.md"}
    timed = {f"{stem}-calibration.json", f"{stem}-goals.svg"} if error == 0 else set()
    assert {p.name for p in (tmp_path / "nvidia-h200").iterdir()} == always | timed
    page = (tmp_path / "nvidia-h200" / f"{stem}.md").read_text()
    if error:
        assert "WRONG" in page and not table.devices
    else:
        assert "| A4 | 100 | eager | reference / triton | 3 | at least 5 | **no** |" in page
        assert _calibration.start("NVIDIA H200", table, "gradient_alignment", "float32", ()) == 100


def test_a_bench_that_does_not_exist_is_a_usage_error():
    done = subprocess.run(
        [sys.executable, "-m", "benches.gpu", "nothing"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2 and "no bench is called nothing" in done.stderr


@pytest.mark.parametrize("bench", BENCHES, ids=lambda bench: bench.name)
def test_every_registered_bench_imports_without_a_gpu_and_names_each_case_once(bench):
    code = f"""
import importlib
module = importlib.import_module({bench.module!r})
names = [case.name for case in module.cases()]
assert names and len(set(names)) == len(names), names
assert all(case.why for case in module.cases())
assert callable(module.verify)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
