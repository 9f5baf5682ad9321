"""Where tensors live, and what follows from it."""

from __future__ import annotations

import os

import pytest
import torch

from fnabench.device import MOST_WORKERS, choose_num_processes, default_num_workers
from fnabench.errors import BadInputError


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (8, 8), (200, MOST_WORKERS)])
def test_a_gpu_is_fed_by_the_cores_that_the_process_may_use(monkeypatch, cores, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert default_num_workers(torch.device("cuda")) == expected
    assert default_num_workers(torch.device("cpu")) == 0


def test_a_cpu_is_shared_by_a_process_a_thread_and_a_gpu_is_not(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert [choose_num_processes(asked, torch.device("cpu"), None) for asked in (None, 1, 3)] == [5, 1, 3]
    assert [choose_num_processes(asked, torch.device("cuda"), None) for asked in (None, 1)] == [1, 1]
    monkeypatch.setattr("sys.platform", "darwin")
    assert choose_num_processes(None, torch.device("cpu"), None) == 1


def test_workers_that_prepare_images_are_for_one_process(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert [choose_num_processes(None, torch.device("cpu"), workers) for workers in (None, 0, 1)] == [5, 5, 1]
    assert [choose_num_processes(asked, torch.device("cpu"), 0) for asked in (1, 3)] == [1, 3]
    assert choose_num_processes(1, torch.device("cpu"), 2) == 1
    with pytest.raises(BadInputError, match=r"loader\.num_processes=3 .* leave out loader\.num_workers=2"):
        choose_num_processes(3, torch.device("cpu"), 2)


@pytest.mark.parametrize(("asked", "device"), [(0, "cpu"), (-1, "cpu"), (2, "cuda")])
def test_processes_that_cannot_share_are_refused(asked, device):
    with pytest.raises(BadInputError, match=rf"loader\.num_processes={asked} must be at least 1, and 1 on a GPU"):
        choose_num_processes(asked, torch.device(device), None)
