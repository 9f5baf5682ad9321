"""Peak memory of a call on a CPU, in a fresh process each."""

from __future__ import annotations

import platform
import sys
from functools import partial
from multiprocessing import Pipe

import pytest
import torch

from fnabench import memory
from fnabench.errors import BadInputError
from fnabench.memory import MIB, peak_memory

CPU = torch.device("cpu")


KEPT: list[torch.Tensor] = []
"""What the first use allocates and every later one finds, as libraries do with their workspaces."""


def allocate(mebibytes: int) -> None:
    torch.ones(mebibytes * MIB // 4).sum()


def allocate_and_keep(mebibytes: int, kept: int) -> None:
    allocate(mebibytes)
    if not KEPT:
        KEPT.append(torch.ones(kept * MIB // 4))


def allocate_more_at_first(mebibytes: int) -> None:
    KEPT.append(torch.ones(1))
    allocate(mebibytes * (3 if len(KEPT) == 2 else 1))  # the warm-up is before it


def through_layers(width: int) -> None:
    """At most 11 width MiB live at a time, freed in another order than they were allocated."""
    stream = torch.ones(width * MIB // 4)
    for _ in range(8):
        wide = stream.repeat(3)
        narrow = wide[: stream.numel()] + stream
        del wide
        wide = narrow.repeat(4)
        stream = (wide * 2)[-stream.numel() :] + narrow
        del wide, narrow


def fail() -> None:
    raise BadInputError("this call fails")


def die() -> None:
    import os

    os._exit(7)


def test_a_call_that_allocates_64_mib_more_is_seen_to_do_so() -> None:
    small, large = (peak_memory(partial(allocate, size), partial(allocate, 1), CPU) for size in (32, 96))
    assert small.peak_mib == pytest.approx(32, abs=2)
    assert large.peak_mib - small.peak_mib == pytest.approx(64, abs=2)
    assert small.reserved_mib is None
    assert small.method.startswith("fresh process")


def test_what_the_warm_up_paid_for_is_not_counted() -> None:
    memory = peak_memory(partial(allocate_and_keep, 16, 40), partial(allocate_and_keep, 128, 40), CPU)
    if memory.method.endswith("since its start"):
        pytest.skip("this system cannot forget the peak of a process")
    assert memory.peak_mib == pytest.approx(16, abs=2)


def test_gaps_between_tensors_are_not_counted() -> None:
    memory = peak_memory(partial(through_layers, 2), partial(through_layers, 1), CPU)
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc's heap can be told to keep no gaps")
    assert memory.peak_mib == pytest.approx(22, abs=1)


def test_what_only_the_first_of_some_calls_allocates_is_not_counted() -> None:
    memory = peak_memory(partial(allocate_more_at_first, 16), partial(allocate_more_at_first, 1), CPU)
    if memory.method.endswith("since its start"):
        pytest.skip("this system cannot forget the peak of a process")
    assert memory.peak_mib == pytest.approx(16, abs=2)


def test_a_system_that_cannot_forget_a_peak_is_asked_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_forget_peak", lambda: False)
    calls: list[int] = []
    receiver, sender = Pipe(duplex=False)
    monkeypatch.setattr(memory, "_map_each_tensor", lambda: None)
    memory._measure(sender, lambda: calls.append(1), lambda: None, torch.get_num_threads())
    assert receiver.recv().method == "fresh process, peak resident size since its start"
    assert calls == [1]


def test_an_error_in_the_call_is_raised_here() -> None:
    with pytest.raises(BadInputError, match="this call fails"):
        peak_memory(fail, partial(allocate, 1), CPU)


def test_a_process_that_dies_is_an_error_and_no_number() -> None:
    with pytest.raises(RuntimeError, match="ended with exit code 7"):
        peak_memory(die, partial(allocate, 1), CPU)
