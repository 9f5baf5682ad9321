"""Peak memory of one call, in a pass of its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

MIB = 2**20
NUM_REPEATS = 5
"""Of a call on a CPU: the first also allocates what is kept, such as the buffers of threads, so the median counts."""
MOST_SECONDS = 5.0
"""After so long no other repeat begins: what takes that long needs far more than is kept."""
MAPPED_BYTES = 2**17
"""From this size on each tensor is mapped by itself in the fresh process, and unmapped when it is freed. Where glibc
may keep it in its heap, gaps between tensors count as need: up to as much again, and another amount each time."""
M_MMAP_THRESHOLD = -3
"""mallopt's name of it, from glibc's malloc.h."""
LLAVA = "transformers.models.llava.modeling_llava"
"""Takes seconds to import, and only LLaVAs need it."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a call needs on top of the model and its inputs."""

    peak_mib: float
    """CUDA: most bytes allocated; CPU: peak resident size above the idle process, the median of some repeats."""
    reserved_mib: float | None
    """CUDA: most bytes the caching allocator held, model included; None on a CPU."""
    method: str


def peak_memory(call: Callable[[], object], warm_up: Callable[[], object], device: torch.device) -> Memory:
    """The peak of `call`. On a CPU both run in a fresh process, so they must be picklable; `warm_up` pays there for
    whatever is allocated once, and should be a small version of the same call."""
    return _on_cuda(call, device) if device.type == "cuda" else _in_fresh_process(call, warm_up)


def _on_cuda(call: Callable[[], object], device: torch.device) -> Memory:
    call()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    idle = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return Memory(
        peak_mib=(torch.cuda.max_memory_allocated(device) - idle) / MIB,
        reserved_mib=torch.cuda.max_memory_reserved(device) / MIB,
        method="cuda allocator",
    )


def _in_fresh_process(call: Callable[[], object], warm_up: Callable[[], object]) -> Memory:
    context = _fresh_processes()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, call, warm_up, torch.get_num_threads()), daemon=True)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGKILL:  # by the system, for want of memory
            raise MemoryError("the process that measures memory was killed") from None
        raise RuntimeError(f"the process that measures memory ended with exit code {process.exitcode}") from None
    process.join()
    if isinstance(result, BaseException):
        raise result
    return result  # type: ignore[no-any-return]


def prepare_for_memory(device: torch.device) -> None:
    """Begin to import what a fresh process needs, beside other work, where `peak_memory` is going to need one."""
    if device.type != "cuda" and "forkserver" in multiprocessing.get_all_start_methods():
        _fresh_processes()
        forkserver.ensure_running()


@cache
def _fresh_processes() -> Any:
    """Where processes are forked from one that has imported torch and run nothing; where there are none, new ones."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([name for name in ("timm", "torch", LLAVA) if name in sys.modules])
    return context


def _measure(sender: Connection, call: Callable[[], object], warm_up: Callable[[], object], num_threads: int) -> None:
    try:
        torch.set_num_threads(num_threads)
        _map_each_tensor()
        with torch.inference_mode():
            warm_up()
            can_forget, start = _forget_peak(), time.monotonic()
            peaks = [_peak_above_idle(call)]
            while can_forget and len(peaks) < NUM_REPEATS and time.monotonic() - start < MOST_SECONDS:
                _forget_peak()
                peaks.append(_peak_above_idle(call))
        method = "fresh process, peak resident size" + ("" if can_forget else " since its start")
        sender.send(Memory(peak_mib=median(peaks), reserved_mib=None, method=method))
    except Exception as error:  # noqa: BLE001  whatever went wrong is raised again in the parent
        sender.send(error)
    finally:
        sender.close()


def _map_each_tensor() -> None:
    with suppress(OSError, AttributeError):  # another C library has a heap of its own kind
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


def _peak_above_idle(call: Callable[[], object]) -> float:
    idle_mib = _resident_peak_mib()
    call()
    return _resident_peak_mib() - idle_mib


def _forget_peak() -> bool:
    """Let the peak start again at the present resident size; whether the system can."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident_peak_mib() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
