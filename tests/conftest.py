"""What all tests share: no network, one thread, kernels interpreted without a GPU, real assets where there are any."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from small_world import SmallWorld

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which many a library does
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line sets these for itself; no test may see what another left behind."""
    for name in ("HYDRA_FULL_ERROR", "FNABENCH_DEBUG"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def sound_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """A fault on a GPU ends the tests with the name of the one that caused it: none after it could pass."""
    yield
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            pytest.exit(f"{request.node.nodeid}: {error}", returncode=1)


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of the hub, and what datasets keeps goes away with the test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real weights and images; skips where it is not there."""
    root = Path(os.environ.get("FNABENCH_ASSETS", "assets"))
    for needed in ("vit_tiny_augreg_fp16.safetensors", "imagenet_sample/labels.csv"):
        if not (root / needed).is_file():
            pytest.skip(f"FNABENCH_ASSETS={root} does not hold {needed}")
    return root


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small LLaVA of a family, by its name."""
    from small_llava import save_llava

    return cache(lambda family: save_llava(tmp_path_factory.mktemp(family), family))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> SmallWorld:
    """The command line in a folder of its own."""
    from small_world import SmallWorld

    return SmallWorld(tmp_path, monkeypatch, capsys)
