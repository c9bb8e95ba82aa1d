"""Runs a bench: first what must be right, then the cases in their order, as far as its time goes."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benches.gpu.cases import Case, Check, Module, Probe, Work
from benches.gpu.timing import Clock, in_turns, summary

Row = dict[str, Any]


def run(
    module: Module,
    *,
    clock: Clock,
    flush: Callable[[], None],
    capture: Callable[[Work], Work] | None,
    seconds: float = math.inf,
    now: Callable[[], float] = time.monotonic,
    say: Callable[[str], object] = print,
) -> Row:
    """Return ``{"checks", "rows", "not_reached"}``. After a failed check no case is timed: a wrong result has no speed."""
    began = now()
    checks = [_check(check, say) for check in module.verify()]
    result: Row = {"checks": checks, "rows": [], "not_reached": [], "seconds": 0.0}
    wrong = not all(check["passed"] for check in checks)
    for case in module.cases():
        left = seconds - (now() - began)
        if wrong or left <= 0:
            result["not_reached"].append(case.name)
            continue
        row: Row = {"name": case.name, "why": case.why, "settings": dict(case.settings)}
        # one side that fails must not cost the rows of the others; the message is kept, and the run ends in error
        try:
            if isinstance(case, Probe):
                row["values"] = dict(case.run())
            else:
                row |= _compare(case, clock, flush, capture, left, now)
        except Exception as problem:
            row["error"] = f"{type(problem).__name__}: {problem}"
        result["rows"].append(row)
        for line in _lines(row):
            say(line)
        gc.collect()
    result["seconds"] = now() - began
    return result


def failed(result: Row) -> bool:
    """Whether a check failed or a row ended in an error; a goal that was missed is a result, not a failure."""
    wrong = any(not check["passed"] for check in result["checks"])
    return wrong or any("error" in row for row in result["rows"])


def _check(check: Check, say: Callable[[str], object]) -> Row:
    if not check.passed:
        say(f"WRONG {check.name}: error {check.error:.3g}, allowed {check.allowed:.3g}")
    # JSON has no NaN
    error = check.error if math.isfinite(check.error) else str(check.error)
    return {"name": check.name, "error": error, "allowed": check.allowed, "passed": check.passed}


def _compare(
    case: Case,
    clock: Clock,
    flush: Callable[[], None],
    capture: Callable[[Work], Work] | None,
    seconds: float,
    now: Callable[[], float],
) -> Row:
    sides = case.make()
    modes: dict[str, Mapping[str, Work]] = {"eager": sides}
    refused: dict[str, str] = {}
    if case.graph and capture is not None:
        graphs = {}
        for name, work in sides.items():
            try:
                graphs[name] = capture(work)
            except Exception as problem:
                refused[name] = f"{type(problem).__name__}: {problem}".splitlines()[0]
        modes["graph"] = graphs
    found: Row = {"sides": {}, "ratios": []}
    for mode, works in modes.items():
        if not works:
            continue
        taken = in_turns(works, clock, flush=flush, rounds=case.rounds, seconds=seconds / len(modes), now=now)
        found["sides"][mode] = {name: summary(spent) for name, spent in taken.items()}
        found["ratios"] += _ratios(case, mode, found["sides"][mode])
    if refused:
        found["not_captured"] = refused
    return found


def _ratios(case: Case, mode: str, sides: Mapping[str, Mapping[str, float]]) -> Iterator[Row]:
    for target in case.targets:
        if target.of in sides and target.to in sides:
            ratio = sides[target.of]["median_us"] / sides[target.to]["median_us"]
            wanted = f"{target.wanted} {target.bound:g}"
            met = target.met(ratio)
            yield {
                "goal": target.goal,
                "mode": mode,
                "of": target.of,
                "to": target.to,
                "ratio": ratio,
                "wanted": wanted,
                "met": met,
            }


def _lines(row: Row) -> Iterator[str]:
    if "error" in row:
        yield f"{row['name']}: ERROR {row['error']}"
    for name, value in row.get("values", {}).items():
        yield f"{row['name']}: {name} = {value}"
    for mode, sides in row.get("sides", {}).items():
        times = ", ".join(f"{name} {side['median_us']:.1f}" for name, side in sides.items())
        yield f"{row['name']} [{mode}, us]: {times}"
    for ratio in row.get("ratios", ()):
        verdict = "met" if ratio["met"] else "MISSED"
        yield (
            f"    {ratio['goal']} {ratio['of']} / {ratio['to']} = {ratio['ratio']:.2f} [{ratio['mode']}], "
            f"wanted {ratio['wanted']}: {verdict}"
        )
