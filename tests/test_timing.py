"""Interleaved timing: the order of the runs, what is timed and what is kept."""

from __future__ import annotations

import time
from collections import Counter
from itertools import count, groupby

import numpy as np
import pytest
import torch

from fnabench.statistics import median_ratio
from fnabench.timing import LATEST_ROUNDS, MOST_WARM_UP_ROUNDS, Arm, Repeat, Timings, has_settled, interleave

CPU = torch.device("cpu")


def arms(log: list[str], *names: str) -> dict[str, Arm]:
    return {name: Arm(run=lambda name=name: log.append(name)) for name in names}


def spin(milliseconds: float) -> None:
    end = time.perf_counter() + milliseconds / 1e3
    while time.perf_counter() < end:
        pass


def test_each_round_times_each_arm_twice_and_its_second_half_mirrors_its_first() -> None:
    log: list[str] = []
    timings = interleave(arms(log, "a", "b", "c"), 20, CPU)
    orders = []
    for number, group in groupby(timings.repeats, key=lambda repeat: repeat.round):
        names = [repeat.arm for repeat in group]
        assert Counter(names) == {"a": 2, "b": 2, "c": 2}
        assert names == names[::-1]
        orders.append((number, tuple(names[:3])))
    assert [number for number, _ in orders] == list(range(20))
    assert len({order for _, order in orders}) > 1, "the order of the arms is drawn anew each round"
    assert log[-120:] == [repeat.arm for repeat in timings.repeats]


def test_the_order_is_decided_by_the_seed() -> None:
    def order(seed: int) -> list[str]:
        return [repeat.arm for repeat in interleave(arms([], "a", "b", "c"), 8, CPU, seed).repeats]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_only_the_run_is_timed_and_each_run_is_prepared() -> None:
    prepared: list[str] = []

    def prepare() -> None:
        prepared.append("x")
        time.sleep(0.02)

    timings = interleave({"x": Arm(prepare=prepare, run=lambda: None)}, 3, CPU)
    assert len(prepared) == 6 + timings.num_warm_up_rounds
    assert np.median([repeat.wall_ms for repeat in timings.repeats]) < 15


def test_the_wall_clock_shows_what_a_run_takes() -> None:
    timings = interleave({"x": Arm(run=lambda: time.sleep(0.02))}, 3, CPU)
    assert min(repeat.wall_ms for repeat in timings.repeats) > 19
    assert np.median([repeat.wall_ms for repeat in timings.repeats]) < 100
    assert all(repeat.device_ms is None for repeat in timings.repeats)


def test_the_warm_up_runs_every_arm_and_is_not_among_the_repeats() -> None:
    log: list[str] = []
    timings = interleave(arms(log, "a", "b"), 2, CPU)
    assert 2 * LATEST_ROUNDS <= timings.num_warm_up_rounds <= MOST_WARM_UP_ROUNDS
    assert log[: 2 * timings.num_warm_up_rounds] == ["a", "b"] * timings.num_warm_up_rounds
    assert len(timings.repeats) == 8


def test_the_warm_up_goes_on_while_times_still_fall() -> None:
    falling = iter([60, 50, 40, 30, 20, 10] + [10] * 100)
    timings = interleave({"x": Arm(run=lambda: spin(next(falling)))}, 1, CPU)
    assert timings.num_warm_up_rounds >= 6


def test_times_that_fall_for_ever_are_timed_all_the_same_and_said_to_be_unsettled() -> None:
    falling = (50 * 0.8**number for number in count())
    timings = interleave({"x": Arm(run=lambda: spin(next(falling)))}, 2, CPU)
    assert not timings.settled
    assert timings.num_warm_up_rounds == MOST_WARM_UP_ROUNDS
    assert len(timings.repeats) == 4


def test_times_that_rise_for_ever_are_said_to_be_unsettled() -> None:
    rising = (2 * 1.4**number for number in count())
    timings = interleave({"x": Arm(run=lambda: spin(next(rising)))}, 1, CPU)
    assert not timings.settled
    assert timings.num_warm_up_rounds == MOST_WARM_UP_ROUNDS


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_change_by_a_tenth_a_round_is_seen_in_both_directions(factor: float) -> None:
    times = [factor**number for number in range(MOST_WARM_UP_ROUNDS)]
    assert not any(has_settled(times[:number]) for number in range(1, MOST_WARM_UP_ROUNDS + 1))
    assert not has_settled([50, 80, 95, 110])
    assert has_settled([1.0, 1.3, 1.1, 1.2, 1.05, 1.4])


def test_a_machine_that_has_slowed_down_has_settled_once_it_stays_so() -> None:
    rising = iter([10, 16, 19, 22] + [22] * 100)
    timings = interleave({"x": Arm(run=lambda: spin(next(rising)))}, 1, CPU)
    assert timings.settled
    assert timings.num_warm_up_rounds > 2 * LATEST_ROUNDS


def test_a_disturbed_machine_has_warmed_up_all_the_same() -> None:
    """Noise is for the intervals to tell; it does not end by waiting. Here it is skewed, as what others take is."""
    restless = 1 + np.random.default_rng(0).exponential(0.3, size=(200, MOST_WARM_UP_ROUNDS))
    rounds = range(1, MOST_WARM_UP_ROUNDS + 1)
    settled = [any(has_settled(list(times[:number])) for number in rounds) for times in restless]
    assert np.mean(settled) >= 0.95


def test_each_round_is_reported() -> None:
    rounds: list[int] = []
    timings = interleave(arms([], "a"), 3, CPU, on_round=lambda: rounds.append(1))
    assert len(rounds) == 3 + timings.num_warm_up_rounds


def drifting(rounds: int) -> Timings:
    """Two arms of 10 and 20 ms on a machine that gets slower by 1 ms a run."""
    repeats, clock = [], 0.0
    for number in range(rounds):
        for name in ("slow", "fast", "fast", "slow"):
            repeats.append(
                Repeat(arm=name, round=number, wall_ms={"slow": 20, "fast": 10}[name] + clock, device_ms=None)
            )
            clock += 1
    return Timings(repeats=tuple(repeats), num_warm_up_rounds=4, settled=True)


def test_the_mean_of_a_round_cancels_a_linear_drift() -> None:
    timings = drifting(3)
    assert timings.per_round("slow") == [21.5, 25.5, 29.5]
    assert np.subtract(timings.per_round("slow"), timings.per_round("fast")).tolist() == [10, 10, 10]


def test_an_arm_that_takes_twice_as_long_has_a_ratio_of_two() -> None:
    timings = interleave(
        {
            "slow": Arm(run=lambda: time.sleep(0.04)),
            "fast": Arm(run=lambda: time.sleep(0.02)),
        },
        5,
        CPU,
    )
    interval = median_ratio(timings.per_round("slow"), timings.per_round("fast"))
    assert interval.low <= interval.value <= interval.high
    assert interval.value == pytest.approx(2, rel=0.25)


def test_an_error_in_an_arm_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        interleave({"x": Arm(run=lambda: 1 / 0)}, 1, CPU)
