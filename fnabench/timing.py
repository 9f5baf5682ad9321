"""Latency of several ways to do one thing, measured side by side in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

LATEST_ROUNDS = 3
"""So many rounds of the warm-up are held against as many before them."""
MOST_WARM_UP_ROUNDS = 12
LARGEST_CHANGE = 0.1
"""Of the fastest time of each arm, up or down, with which it counts as settled. The fastest, because what disturbs a
machine only ever adds; how much it adds is for the intervals to tell."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the ways: `prepare` is not timed, `run` is."""

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """One timed run."""

    arm: str
    round: int
    wall_ms: float
    """Synchronised wall clock."""
    device_ms: float | None
    """Between CUDA events; None on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Every repeat that was timed, in the order of the clock."""

    repeats: tuple[Repeat, ...]
    num_warm_up_rounds: int
    settled: bool
    """Whether the times neither fell nor rose any more when the timing began."""

    def per_round(self, arm: str) -> list[float]:
        """Milliseconds of an arm in each round: the mean of its two runs, which cancels a linear drift."""
        times: dict[int, list[float]] = {}
        for repeat in self.repeats:
            if repeat.arm == arm:
                times.setdefault(repeat.round, []).append(repeat.wall_ms)
        return [float(np.mean(pair)) for pair in times.values()]


def interleave(
    arms: Mapping[str, Arm],
    num_rounds: int,
    device: torch.device,
    seed: int = 0,
    on_round: Callable[[], None] = lambda: None,
) -> Timings:
    """Time the arms in rounds of ABBA: each round a new random order, then the same backwards.

    The warm-up runs the same path until no arm's latest rounds are faster or slower by more than LARGEST_CHANGE.
    """
    generator = np.random.default_rng(seed)
    warm_up: list[dict[str, float]] = []
    settled = False
    while len(warm_up) < MOST_WARM_UP_ROUNDS and not settled:
        warm_up.append({name: _timed(name, arm, 0, device).wall_ms for name, arm in arms.items()})
        settled = all(has_settled([times[name] for times in warm_up]) for name in arms)
        on_round()
    repeats = []
    for number in range(num_rounds):
        order = [str(name) for name in generator.permutation(list(arms))]
        repeats += [_timed(name, arms[name], number, device) for name in order + order[::-1]]
        on_round()
    return Timings(repeats=tuple(repeats), num_warm_up_rounds=len(warm_up), settled=settled)


def has_settled(times: Sequence[float]) -> bool:
    """Whether one arm, timed in so many rounds, takes as long in the latest as in those before."""
    if len(times) < 2 * LATEST_ROUNDS:
        return False
    before, latest = min(times[-2 * LATEST_ROUNDS : -LATEST_ROUNDS]), min(times[-LATEST_ROUNDS:])
    return max(before, latest) <= min(before, latest) * (1 + LARGEST_CHANGE)


def _timed(name: str, arm: Arm, number: int, device: torch.device) -> Repeat:
    arm.prepare()
    if device.type != "cuda":
        start = time.perf_counter()
        arm.run()
        return Repeat(arm=name, round=number, wall_ms=(time.perf_counter() - start) * 1e3, device_ms=None)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    stream = torch.cuda.current_stream(device)  # the device need not be the current one
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    begin.record(stream)
    arm.run()
    end.record(stream)
    torch.cuda.synchronize(device)
    wall_ms = (time.perf_counter() - start) * 1e3
    return Repeat(arm=name, round=number, wall_ms=wall_ms, device_ms=begin.elapsed_time(end))
