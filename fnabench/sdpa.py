"""Which fused-attention backend attention runs on, beside every variant alike: the one on which exact attention is
fastest on this machine, since anything less would flatter every replacement."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fnabench.attention.base import AttentionInputs
from fnabench.attention.exact import Exact
from fnabench.timing import Arm, interleave

BACKENDS = {
    "cpu": (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH),
    "cuda": (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ),
}


def fastest_backend(inputs: AttentionInputs, device: torch.device) -> SDPBackend:
    """The fused-attention backend on which exact attention is fastest here, of those that take these inputs."""
    times = {}
    for backend in BACKENDS[device.type]:
        run = partial(_run_on, backend, partial(Exact(), inputs))
        try:
            timings = interleave({"exact": Arm(run=run)}, 3, device)
        except RuntimeError:  # this backend does not take these inputs on this device
            continue
        times[backend] = np.median(timings.per_round("exact"))
    return min(times, key=lambda backend: times[backend])


def _run_on(backend: SDPBackend, run: Callable[[], object]) -> None:
    """Run with this backend alone; RuntimeError where it does not apply."""
    with warnings.catch_warnings(), sdpa_kernel(backend):
        warnings.simplefilter("ignore")  # of why it does not apply
        run()


def run_preferring(backend: SDPBackend | None, run: Callable[[], object]) -> None:
    """Run with this backend where it applies, or with the library's choice for None."""
    if backend is None:
        run()
        return
    with _preferring(backend):
        run()


def run_preferring_named(name: str, run: Callable[[], object]) -> None:
    """The same by the backend's name: another process can be sent no backend."""
    run_preferring(SDPBackend.__members__[name], run)


@contextmanager
def _preferring(backend: SDPBackend) -> Iterator[None]:
    """This backend where it applies; other attention, such as pooling or a variant's own, may need another."""
    others = [other for other in BACKENDS["cuda"] if other is not backend]
    with sdpa_kernel([backend, *others], set_priority=True) if backend is not SDPBackend.MATH else sdpa_kernel(backend):
        yield
