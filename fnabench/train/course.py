"""A course of training that can be interrupted: its learning rate, moving average, checkpoints, log and options."""

from __future__ import annotations

import argparse
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fnabench.models.bundled_weights import WEIGHTS
from fnabench.train.muon import Muon

RUNS = Path("outputs/train")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long is trained and how fast; a model's subclass has its numbers."""

    steps: int
    num_samples: int
    """Different training scenes."""
    warmup: int
    decay: float
    """The last part of the steps, in which the learning rate falls to zero."""
    seed: int = 0
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    average: float = 0.995
    """Decay of the moving average of the weights, which is what is kept."""


def learning_rate(schedule: Schedule, step: int) -> float:
    """Linear warm-up, a plateau, and a linear fall to zero over the last part."""
    left = (schedule.steps - step) / (schedule.steps * schedule.decay)
    return schedule.learning_rate * min(1.0, (step + 1) / schedule.warmup, left)


class Course(ABC):
    """A model, the average of its weights and its optimisers, at some step."""

    model: Any
    head: nn.Module
    """What only training needs."""

    def __init__(
        self, training: Schedule, folder: Path, model: nn.Module, head: nn.Module, blocks: Iterable[nn.Module]
    ) -> None:
        """The matrices of the model's blocks belong to Muon, all other parameters to AdamW."""
        self.training, self.folder, self.step, self.seconds = training, folder, 0, 0.0
        self.model, self.head = model, head
        self.trained: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.trained]
        inner = [p for each in blocks for p in each.parameters() if p.ndim == 2]
        chosen = {id(parameter) for parameter in inner}
        rest = [p for p in (*self.trained, *head.parameters()) if id(p) not in chosen]
        self.optimizers = (
            Muon(inner, lr=0.0, weight_decay=training.weight_decay),
            torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0),
        )

    @abstractmethod
    def losses(self, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """What this step minimises, and what the log shows of it."""

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """The scores of the average on validation scenes."""

    def train_step(self) -> dict[str, float]:
        """One step; returns what the log shows."""
        begin = time.perf_counter()
        loss, shown = self.losses(torch.Generator().manual_seed(self.training.seed * 1_000_003 + self.step))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.training, self.step)
            optimizer.step()
            optimizer.zero_grad()
        decay = min(self.training.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.trained, 1 - decay)
        self.step += 1
        self.seconds += time.perf_counter() - begin
        return {"step": self.step, "seconds": round(self.seconds, 1)} | shown

    def run(self, *, stop: int | None, measure_every: int) -> bool:
        """Go on from the checkpoint to the last step, or to an earlier stop; whether the last step is done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        steps = self.training.steps
        end = min(steps, stop or steps)
        with (self.folder / "log.jsonl").open("a") as log:
            while self.step < end:
                entry = self.train_step()
                last = self.step == end
                if self.step % measure_every == 0 or last:
                    entry |= self.measure()
                if self.step % 20 == 0 or last:
                    print(json.dumps(entry), file=log, flush=True)
                if self.step % 100 == 0 or last:
                    self.save()
        return self.step == steps

    def averaged(self) -> dict[str, Tensor]:
        """The weights to keep: the average where something was trained, the model's own elsewhere."""
        names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        weights: dict[str, Tensor] = self.model.state_dict()
        return weights | dict(zip(names, self.average, strict=True))

    def averaged_model(self) -> Any:
        """A copy of the model with the weights to keep, in eval mode."""
        model = deepcopy(self.model).requires_grad_(False).eval()
        model.load_state_dict(self.averaged())
        return model

    def save(self) -> None:
        """Replace the checkpoint."""
        state = {
            "training": asdict(self.training),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        unfinished = self.folder / "checkpoint.unfinished"
        torch.save(state, unfinished)
        unfinished.rename(self.folder / "checkpoint.pt")

    def resume(self) -> None:
        """Go on from the checkpoint if there is one; a changed number of steps only moves the end."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.step, self.seconds, self.average = state["step"], state["seconds"], state["average"]
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def command_line(description: str | None, name: str, *, steps: int, measure_every: int) -> argparse.ArgumentParser:
    """The options of a trainer."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, default=RUNS / name, help="checkpoint and log")
    parser.add_argument("--pool", type=Path, default=RUNS / "pool", help="drawn training pictures (6 GB)")
    parser.add_argument("--target", type=Path, default=WEIGHTS, help="where the finished weights go")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--stop", type=int, help="stop early, after this step")
    parser.add_argument("--measure-every", type=int, default=measure_every)
    return parser
