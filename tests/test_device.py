"""Where tensors live, and what follows from it."""

from __future__ import annotations

import os

import pytest
import torch

from fnabench.device import MOST_WORKERS, default_num_workers


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (8, 8), (200, MOST_WORKERS)])
def test_a_gpu_is_fed_by_the_cores_that_the_process_may_use(monkeypatch, cores, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert default_num_workers(torch.device("cuda")) == expected
    assert default_num_workers(torch.device("cpu")) == 0
