"""Train the bundled CLIP: python -m fnabench.train.clip (its result: docs/model-card.md)."""

from __future__ import annotations

import argparse
import json
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fnabench.data.scenes import Scenes
from fnabench.models.bundled_towers import SPECIAL_WORDS, Clip, ClipConfig, Tokenizer, split_words
from fnabench.models.bundled_weights import WEIGHTS
from fnabench.train.batches import IMAGE_MEAN, IMAGE_STD, Batches
from fnabench.train.clip_loss import PROMPTS, TrainingHeads, compute_losses
from fnabench.train.clip_metrics import measure_clip
from fnabench.train.export import round_to_half, write_weights
from fnabench.train.muon import Muon
from fnabench.train.segmentation_head import fit_segmentation_head

RUNS = Path("outputs/train")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the bundled CLIP is trained; every number of it is in the log."""

    steps: int = 1160
    seed: int = 0
    num_samples: int = 120_000
    """Different training scenes."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    warmup: int = 100
    decay: float = 0.182
    """The last part of the steps, in which the learning rate falls to zero."""
    average: float = 0.995
    """Decay of the moving average of the weights, which is what is kept."""


@dataclass(frozen=True, kw_only=True)
class View:
    """How a step shows its images: how many, their side in pixels, and how many patches of each."""

    batch: int
    size: int
    num_kept: int


SMALL = (View(batch=64, size=128, num_kept=64),)
WIDE = (
    View(batch=128, size=128, num_kept=64),
    View(batch=32, size=128, num_kept=256),
    View(batch=32, size=128, num_kept=256),
    View(batch=52, size=192, num_kept=160),
)
MIXED = (
    *SMALL * 2,
    View(batch=16, size=128, num_kept=256),
    *SMALL * 2,
    View(batch=26, size=192, num_kept=160),
)
PHASES = ((0.0, SMALL), (0.6405, WIDE), (0.6897, MIXED), (0.914, WIDE))
"""From which part of the steps on which views take turns: things first, whole and enlarged images later."""


def choose_view(training: Training, step: int) -> View:
    """The view of a step: those of its phase in turn."""
    views = [views for start, views in PHASES if step >= round(start * training.steps)][-1]
    return views[step % len(views)]


def learning_rate(training: Training, step: int) -> float:
    """Linear warm-up, a plateau, and a linear fall to zero over the last part."""
    left = (training.steps - step) / (training.steps * training.decay)
    return training.learning_rate * min(1.0, (step + 1) / training.warmup, left)


def collect_vocabulary() -> tuple[str, ...]:
    """Every word of the captions and the class prompts."""
    source = Scenes(split="train", limit=2000)
    texts = [text for index in range(len(source)) for text in source.captions(index)]
    texts += [prompt.format(name) for prompt in PROMPTS for name in source.class_names]
    return (*SPECIAL_WORDS, *sorted({word for text in texts for word in split_words(text)}))


class Trainer:
    """The model, its average and its optimisers, at some step."""

    def __init__(self, training: Training, config: ClipConfig, folder: Path, pool: Path) -> None:
        torch.manual_seed(training.seed)
        self.training, self.folder, self.step, self.seconds = training, folder, 0, 0.0
        self.tokenizer = Tokenizer(collect_vocabulary(), context=config.context)
        source = Scenes(split="train", limit=training.num_samples)
        self.batches = Batches(source, pool)
        self.model = Clip(config, num_words=len(self.tokenizer.vocabulary), num_mask_classes=len(source.mask_names))
        self.head = TrainingHeads(config.width, config.embed_width)
        self.average = deepcopy(self.model).requires_grad_(False).eval()
        inner = [p for blocks in self._blocks() for p in blocks.parameters() if p.ndim == 2]
        chosen = {id(parameter) for parameter in inner}
        rest = [p for p in (*self.model.parameters(), *self.head.parameters()) if id(p) not in chosen]
        self.optimizers = (
            Muon(inner, lr=0.0, weight_decay=training.weight_decay),
            torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def train_step(self) -> dict[str, float]:
        """One step; returns what the log shows."""
        begin = time.perf_counter()
        view = choose_view(self.training, self.step)
        batch = self.batches.take(self._num_seen(), view.batch).resized(view.size)
        generator = torch.Generator().manual_seed(self.training.seed * 1_000_003 + self.step)
        losses = compute_losses(
            self.model, self.head, self.tokenizer, batch, num_kept=view.num_kept, generator=generator
        )
        losses.total().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.training, self.step)
            optimizer.step()
            optimizer.zero_grad()
        decay = min(self.training.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.step += 1
        self.seconds += time.perf_counter() - begin
        named = {name: round(float(value.detach()), 4) for name, value in vars(losses).items()}
        return {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "batch": view.batch,
            "size": view.size,
            **named,
        }

    def save(self) -> None:
        """Replace the checkpoint."""
        state = {
            "training": asdict(self.training),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "average": self.average.state_dict(),
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
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def _blocks(self) -> tuple[nn.Module, nn.Module]:
        return self.model.image_tower.blocks, self.model.text_tower.blocks

    def _num_seen(self) -> int:
        return sum(choose_view(self.training, step).batch for step in range(self.step))


def finish(trainer: Trainer, target: Path) -> None:
    """Fit the segmentation head, measure on the test split at two sizes, and write the weights with their card."""
    model, tokenizer = trainer.average, trainer.tokenizer
    model.load_state_dict(round_to_half(model.state_dict()))
    fit_segmentation_head(model, trainer.batches)
    model.load_state_dict(round_to_half(model.state_dict()))
    enlarged = deepcopy(model)
    enlarged.image_tower.set_input_size(img_size=192)
    metrics = {
        "test_128px": measure_clip(model, tokenizer, Scenes(split="test")),
        "test_192px": measure_clip(enlarged, tokenizer, Scenes(split="test", image_size=192)),
    }
    card = {
        "metrics": metrics,
        "training": asdict(trainer.training) | {"seconds": round(trainer.seconds)},
        "config": asdict(model.config),
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
        "prompts": PROMPTS,
        "class_names": Scenes.class_names,
        "mask_names": Scenes.mask_names,
        "vocabulary": tokenizer.vocabulary,
    }
    write_weights(target, "clip", model.state_dict(), card)


def main() -> None:
    """Train the bundled CLIP; an interrupted run goes on where it stopped."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=RUNS / "clip", help="checkpoint and log")
    parser.add_argument("--pool", type=Path, default=RUNS / "pool", help="drawn training pictures (6 GB)")
    parser.add_argument("--target", type=Path, default=WEIGHTS, help="where the finished weights go")
    parser.add_argument("--steps", type=int, default=Training.steps)
    parser.add_argument("--learning-rate", type=float, default=Training.learning_rate)
    parser.add_argument("--stop", type=int, help="stop early, after this step")
    parser.add_argument("--measure-every", type=int, default=500)
    arguments = parser.parse_args()
    training = Training(steps=arguments.steps, learning_rate=arguments.learning_rate)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(training, ClipConfig(), arguments.folder, arguments.pool)
    trainer.resume()
    with (arguments.folder / "log.jsonl").open("a") as log:
        while trainer.step < min(training.steps, arguments.stop or training.steps):
            entry: dict[str, float] = trainer.train_step()
            last = trainer.step == training.steps
            if trainer.step % arguments.measure_every == 0 or last:
                entry |= measure_clip(trainer.average, trainer.tokenizer, Scenes(split="val", limit=400))
            if trainer.step % 20 == 0 or last:
                print(json.dumps(entry), file=log, flush=True)
            if trainer.step % 100 == 0 or last:
                trainer.save()
    if trainer.step == training.steps:
        finish(trainer, arguments.target)


if __name__ == "__main__":
    main()
