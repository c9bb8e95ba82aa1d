"""Equal inputs give equal bits on the device: again and again, on other streams, beside other work, from a CUDA graph.

What a kernel reads before another program wrote it, the interpreter of the tests cannot show: there, programs run one after
another. Here a result that changes between runs is counted, element by element, and nothing is timed after one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benches.gpu import timing
from benches.gpu.cases import Check

Results = Callable[[], Sequence[Any]]
RUNS = 20


def equal_bits(
    name: str, work: Results, ways: Mapping[str, Callable[[Results], Results]] | None = None
) -> Iterator[Check]:
    """Count the elements of ``work()`` that differ from its first run's; a NaN differs from everything."""
    first = [tensor.clone() for tensor in work()]
    for way, prepare in (WAYS if ways is None else ways).items():
        run = prepare(work)
        different = 0
        for _ in range(RUNS):
            pairs = zip(run(), first, strict=True)
            different += sum(int((~(tensor == wanted)).sum()) for tensor, wanted in pairs)
        yield Check(name=f"{name}: elements not equal, {way}", error=float(different), allowed=0.0)


def elsewhere(work: Results) -> Results:
    """Run on a stream of its own."""
    import torch

    stream = torch.cuda.Stream()

    def run() -> Sequence[Any]:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            made = work()
        torch.cuda.synchronize()
        return made

    return run


def beside(work: Results) -> Results:
    """Run on two streams at once, beside large products that take the multiprocessors away in between."""
    import torch

    streams = torch.cuda.Stream(), torch.cuda.Stream()
    block = torch.ones(4096, 4096, device="cuda", dtype=torch.bfloat16)

    def run() -> Sequence[Any]:
        made: list[Sequence[Any]] = []
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                torch.mm(block, block)
                made.append(work())
                torch.mm(block, block)
        torch.cuda.synchronize()
        one, other = made
        # what differs between the two is shown as what differs from the first run
        return [a.where(a == b, float("nan")) for a, b in zip(one, other, strict=True)]

    return run


def replayed(work: Results) -> Results:
    """Replay from a CUDA graph."""
    import torch

    graph, kept = timing.capture(work)

    def run() -> Sequence[Any]:
        for tensor in kept:
            tensor.zero_()  # what a replay does not write shows
        graph.replay()
        torch.cuda.synchronize()
        return list(kept)

    return run


WAYS: Mapping[str, Callable[[Results], Results]] = {
    "again": lambda work: work,
    "on another stream": elsewhere,
    "on two streams beside other work": beside,
    "replayed from a CUDA graph": replayed,
}
