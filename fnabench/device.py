"""Where tensors live and in which precision."""

from __future__ import annotations

import os
import sys

import torch

from fnabench.errors import BadInputError, MissingError, one_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MOST_WORKERS = 16


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is the first GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise one_of("device", name, ("auto", "cpu", "cuda", "cuda:1"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MissingError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; use device=cpu")
    return device


def choose_dtype(name: str) -> torch.dtype:
    """The floating-point type that weights and activations have."""
    if name not in DTYPES:
        raise one_of("dtype", name, DTYPES)
    return DTYPES[name]


def default_num_workers(device: torch.device) -> int:
    """Processes that prepare images: for a GPU one a core, up to MOST_WORKERS, for a CPU none."""
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def choose_num_processes(asked: int | None, device: torch.device, num_workers: int | None) -> int:
    """Processes that share a batch: on a CPU as many as torch has threads, unless told; one on a GPU, where a process
    cannot be copied, and where `num_workers` are asked for, which prepare images for one."""
    can_share = device.type == "cpu" and sys.platform == "linux"
    if asked is None:
        return torch.get_num_threads() if can_share and not num_workers else 1
    if asked < 1 or (asked > 1 and not can_share):
        raise BadInputError(
            f"loader.num_processes={asked} must be at least 1, and 1 on a GPU or outside Linux; leave it out for one a "
            "thread"
        )
    if asked > 1 and num_workers:
        raise BadInputError(
            f"loader.num_processes={asked} prepare their images themselves; leave out loader.num_workers={num_workers} "
            "or give loader.num_processes=1"
        )
    return asked


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine refused an allocation, or the system killed a process for want of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(sign in f"{error} {error.__cause__}" for sign in ("can't allocate memory", "signal: Killed"))
