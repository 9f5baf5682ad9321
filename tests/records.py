"""Records built by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fnabench.cost import Cost, Latency
from fnabench.environment import describe_environment
from fnabench.identity import digest
from fnabench.memory import Memory
from fnabench.record import Record
from fnabench.scores import SampleScores, Scores
from fnabench.statistics import Comparison, Estimate
from fnabench.timing import Repeat, Timings


def a_cost(ratio: float = 1.25) -> Cost:
    estimate = Estimate(value=ratio, low=ratio - 0.05, high=ratio + 0.05)
    fast, slow = (Latency(median_ms=m, p10_ms=m - 1, p90_ms=m + 1) for m in (10.0, 10.0 * ratio))
    memory = Memory(peak_mib=20.0, reserved_mib=None, method="fresh process, peak resident size")
    return Cost(
        batch_size=8, num_rounds=2, num_warm_up_rounds=4, settled=True, sdpa_backend="flash_attention",
        latency=fast, exact_latency=slow, attention_latency=fast, exact_attention_latency=slow,
        latency_ratio=estimate, attention_latency_ratio=estimate, ceiling=estimate, memory=memory, exact_memory=memory,
        macs=1_000_000, exact_macs=1_250_000, ceiling_macs=1.5, crossover_tokens=300,
    )  # fmt: skip


def a_record(**changes: Any) -> Record:
    attention = changes.get("attention", "fna")
    values: dict[str, Any] = {
        "exact_key": digest("exact"),
        "status": "complete",
        "created": "2026-01-01T00:00:00+00:00",
        "task": "classification",
        "data": "folder",
        "model": "timm",
        "attention": attention,
        "descriptions": {"model": "", "data": "made up"},
        "identity": {"attention": {"class": "fnabench.attention.fna.Fna", "num_landmarks": 5}, "dtype": "float32"},
        "config": {"layers": "half"},
        "layers": (3, 4, 5),
        "num_layers": 6,
        "num_tokens": 17,
        "image_size": (64, 64),
        "num_samples": 4,
        "metric": "top1",
        "scores": {"top1": Estimate(value=0.75, low=0.5, high=1.0)},
        "comparisons": {
            "top1": Comparison(difference=Estimate(value=-0.25, low=-0.5, high=0.0), p_value=0.5, agreement=0.75)
        },
        "fitted": None,
        "cost": a_cost(),
        "environment": describe_environment(torch.device("cpu")),
        "files": {},
    } | changes
    return Record(**({"key": digest([values["attention"], values["identity"], values["model"]])} | values))


def some_scores() -> Scores:
    top1 = SampleScores.mean_of(
        np.array([1.0, 1.0, 0.0, 1.0]), ("a", "b", "c", "d"), predictions=np.array([3, 1, 4, 1])
    )
    return Scores(metrics={"top1": top1}, headline="top1")


def some_timings() -> Timings:
    repeats = tuple(
        Repeat(arm=arm, round=number, wall_ms=10.0 + number, device_ms=None)
        for number in range(2)
        for arm in ("exact", "variant", "variant", "exact")
    )
    return Timings(repeats=repeats, num_warm_up_rounds=4, settled=True)
