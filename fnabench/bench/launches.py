"""What a call asks of a CUDA device: its launches, no wait, and all of it as one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

FILLERS = 64
FILLER = "spin_kernel"
"""What torch.cuda._sleep launches."""


@contextmanager
def refusing_syncs(device: torch.device) -> Iterator[None]:
    """Whatever makes the host wait for a CUDA device raises."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def launches(step: Callable[[], object]) -> list[str] | None:
    """The names of what one call runs on a CUDA device, copies included; None where the profiler does not see them.

    It loses the first kernels of a session, one more of them in each later session of a process: others go before.
    """
    if not torch.cuda.is_available():
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(FILLERS):
            torch.cuda._sleep(1)  # type: ignore[no-untyped-call]
        step()
        torch.cuda.synchronize()
    names = [event.name for event in profiler.events() if event.device_type.name == "CUDA"]
    own = [name for name in names if FILLER not in name]
    return own if len(own) < len(names) else None


def capture(run: Callable[[], object]) -> Callable[[], object]:
    """The call as one CUDA graph."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
