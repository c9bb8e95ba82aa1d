"""Times of several sides of one comparison: in turns, from a cold cache, as medians."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from benches.gpu.cases import Work

#: Rounds after which a median is believed, and rounds that are run and thrown away.
ROUNDS, WARMUP = 50, 3


class Clock(Protocol):
    """Starts and stops around queued work; ``read`` waits for the device and returns seconds in the order of the calls."""

    def time(self, work: Work) -> None: ...

    def read(self) -> list[float]: ...


class CudaClock:
    """CUDA events around each call. Nothing waits between calls, so the host runs ahead as it does in training."""

    def __init__(self) -> None:
        self._events: list[tuple[Any, Any]] = []

    def time(self, work: Work) -> None:
        import torch

        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        stop.record()
        self._events.append((start, stop))

    def read(self) -> list[float]:
        import torch

        torch.cuda.synchronize()
        taken = [start.elapsed_time(stop) * 1e-3 for start, stop in self._events]
        self._events.clear()
        return taken


def l2_flush() -> Callable[[], None]:
    """Return what overwrites a buffer of twice the device's L2, so that no side finds its inputs there."""
    import torch

    size = 2 * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    buffer = torch.empty(max(size, 1 << 26), dtype=torch.int8, device="cuda")
    return lambda: (buffer.zero_(), None)[1]


def in_turns(
    sides: Mapping[str, Work],
    clock: Clock,
    *,
    flush: Callable[[], None],
    rounds: int = ROUNDS,
    warmup: int = WARMUP,
    seconds: float = math.inf,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, list[float]]:
    """Return the seconds of every call of every side.

    A round calls each side once, from a flushed cache, and begins with another side than the round before: a clock that
    falls or a neighbor that wakes up falls on all. Rounds end early, after five at least, when ``seconds`` are over.
    """
    names = list(sides)
    taken: dict[str, list[float]] = {name: [] for name in names}
    began = now()
    for round_ in range(-warmup, rounds):
        first = round_ % len(names)
        order = names[first:] + names[:first]
        for name in order:
            flush()
            clock.time(sides[name])
        for name, spent in zip(order, clock.read(), strict=True):
            if round_ >= 0:
                taken[name].append(spent)
        if round_ >= 4 and now() - began > seconds:
            break
    return taken


def summary(taken: list[float]) -> dict[str, float]:
    """Return median, fastest and slowest tenth in microseconds, and how many there were."""
    ordered = sorted(taken)
    return {
        "median_us": 1e6 * statistics.median(ordered),
        "fastest_us": 1e6 * ordered[0],
        "slowest_tenth_us": 1e6 * ordered[int(0.9 * (len(ordered) - 1) + 0.5)],
        "runs": len(ordered),
    }


def captured(work: Work) -> Work:
    """Return the replay of ``work`` captured as a CUDA graph."""
    graph, kept = capture(work)

    def replay(_kept: object = kept) -> None:
        graph.replay()

    return replay


def capture(work: Work) -> tuple[Any, Any]:
    """Return a CUDA graph of ``work``, and what it gave while it was captured, where every replay writes."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = work()
    return graph, kept


def host_seconds(work: Work, *, calls: int = 200, now: Callable[[], float] = time.perf_counter) -> float:
    """Return the host's time of one call, median of ``calls``, while the device keeps up."""
    import torch

    taken = []
    for _ in range(calls):
        torch.cuda.synchronize()
        began = now()
        work()
        taken.append(now() - began)
    return statistics.median(taken)
