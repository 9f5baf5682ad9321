"""A model of random weights and a folder of noise, so that whole runs take a second."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from fnabench import cli

NUM_IMAGES = 6
NUM_CLASSES = 7
SCENES = {
    "data": "scenes", "data.limit": "6", "data.root": None, "model.architecture": None, "model.checkpoint": None,
    "model.num_classes": None, "model.image_size": None,
}  # fmt: skip
RUNS = {
    "classification": {},
    "retrieval": SCENES | {"task": "retrieval", "model": "clip", "loader.num_workers": "1"},
    "segmentation": SCENES | {"task": "segmentation", "model": "clip"},
    "windows": SCENES | {
        "task": "segmentation", "model": "clip", "task.inference": "slide", "task.window": "0.7", "data.limit": "3",
    },
    "vqa": SCENES | {"task": "vqa", "model": "llava"},
}  # fmt: skip
"""What changes the defaults of a SmallWorld into a run of each task."""


def write_images(root: Path, num_images: int = NUM_IMAGES) -> Path:
    """A folder of noise images with a labels.csv."""
    root.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    with (root / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label"])
        for index in range(num_images):
            pixels = generator.integers(256, size=(48, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{index}.png")
            table.writerow([f"{index}.png", index % NUM_CLASSES])
    return root


def write_checkpoint(path: Path, seed: int = 0) -> Path:
    """Random weights of timm's smallest Vision Transformer, large enough to tell images apart."""
    torch.manual_seed(seed)
    model = timm.create_model("test_vit", num_classes=NUM_CLASSES, img_size=160)
    state = {name: torch.randn_like(value) * 0.2 for name, value in model.state_dict().items()}
    save_file(state, path)
    return path


class SmallWorld:
    """The command line in a folder of its own, run in this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.images = write_images(folder / "images")
        self.checkpoint = write_checkpoint(folder / "weights.safetensors")
        self.results = folder / "results"
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        monkeypatch.chdir(folder)
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    @property
    def defaults(self) -> dict[str, str]:
        return {
            "task": "classification",
            "data": "folder",
            "data.root": str(self.images),
            "model": "timm",
            "model.architecture": "test_vit",
            "model.checkpoint": str(self.checkpoint),
            "model.num_classes": str(NUM_CLASSES),
            "model.image_size": "64",
            "attention": "fna",
            "attention.num_landmarks": "5",
            "probe": "none",
            "tracker": "none",
        }

    def run(self, *arguments: str, **changes: str | None) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of one command; `changes` replace the defaults, None leaves one out."""
        return self.run_as_given(*arguments, *self._options(changes))

    def _options(self, changes: dict[str, str | None]) -> list[str]:
        options = self.defaults | {name.replace("__", "."): value for name, value in changes.items()}
        if options["attention"] != "fna":
            options.pop("attention.num_landmarks", None)
        return [f"{name}={value}" for name, value in options.items() if value is not None]

    def run_as_given(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command with these arguments and no others."""
        self._monkeypatch.setattr(sys, "argv", ["fnabench", *arguments])
        self._monkeypatch.setattr(cli, "_failed_jobs", [])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = self._capsys.readouterr()
        self._monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        return code, captured.out, captured.err

    def refused(self, *arguments: str, **changes: str | None) -> str:
        """The one line of a command that is the user's mistake."""
        code, out, err = self.run(*arguments, **changes)
        lines = [line for line in err.splitlines() if line.startswith("fnabench: ")]
        assert code == 2, err
        assert out == ""
        assert "Traceback" not in err
        assert len(lines) == 1, err
        return lines[0]

    def records(self) -> list[Path]:
        return sorted(path.parent for path in self.results.glob("*/*/*/*/record.json"))
