"""Train the bundled CLIP: python -m fnabench.train.clip (its result: docs/model-card.md)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from fnabench.data.scenes import Scenes
from fnabench.models.bundled_towers import SPECIAL_WORDS, Clip, ClipConfig, Tokenizer, split_words
from fnabench.train.batches import IMAGE_MEAN, IMAGE_STD, Batches
from fnabench.train.clip_loss import PROMPTS, TrainingHeads, compute_losses
from fnabench.train.clip_metrics import measure_clip
from fnabench.train.course import Course, Schedule, command_line
from fnabench.train.export import round_to_half, write_weights
from fnabench.train.segmentation_head import fit_segmentation_head


@dataclass(frozen=True, kw_only=True)
class Training(Schedule):
    """How the bundled CLIP is trained; every number of it is in the log."""

    steps: int = 1160
    num_samples: int = 120_000
    warmup: int = 100
    decay: float = 0.182


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


def collect_vocabulary() -> tuple[str, ...]:
    """Every word of the captions and the class prompts."""
    source = Scenes(split="train", limit=2000)
    texts = [text for index in range(len(source)) for text in source.captions(index)]
    texts += [prompt.format(name) for prompt in PROMPTS for name in source.class_names]
    return (*SPECIAL_WORDS, *sorted({word for text in texts for word in split_words(text)}))


class Trainer(Course):
    """The course of the bundled CLIP."""

    training: Training
    model: Clip
    head: TrainingHeads

    def __init__(self, training: Training, config: ClipConfig, folder: Path, pool: Path) -> None:
        torch.manual_seed(training.seed)
        self.tokenizer = Tokenizer(collect_vocabulary(), context=config.context)
        source = Scenes(split="train", limit=training.num_samples)
        self.batches = Batches(source, pool)
        model = Clip(config, num_words=len(self.tokenizer.vocabulary), num_mask_classes=len(source.mask_names))
        head = TrainingHeads(config.width, config.embed_width)
        super().__init__(training, folder, model, head, (model.image_tower.blocks, model.text_tower.blocks))

    def losses(self, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        view = choose_view(self.training, self.step)
        batch = self.batches.take(self._num_seen(), view.batch).resized(view.size)
        found = compute_losses(
            self.model, self.head, self.tokenizer, batch, num_kept=view.num_kept, generator=generator
        )
        named = {name: round(float(value.detach()), 4) for name, value in vars(found).items()}
        return found.total(), {"batch": view.batch, "size": view.size, **named}

    def measure(self) -> dict[str, float]:
        return measure_clip(self.averaged_model(), self.tokenizer, Scenes(split="val", limit=400))

    def _num_seen(self) -> int:
        return sum(choose_view(self.training, step).batch for step in range(self.step))


def finish(trainer: Trainer, target: Path) -> None:
    """Fit the segmentation head, measure on the test split at two sizes, and write the weights with their card."""
    model, tokenizer = trainer.averaged_model(), trainer.tokenizer
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
    parser = command_line(main.__doc__, "clip", steps=Training.steps, measure_every=500)
    parser.add_argument("--learning-rate", type=float, default=Training.learning_rate)
    arguments = parser.parse_args()
    training = Training(steps=arguments.steps, learning_rate=arguments.learning_rate)
    trainer = Trainer(training, ClipConfig(), arguments.folder, arguments.pool)
    if trainer.run(stop=arguments.stop, measure_every=arguments.measure_every):
        finish(trainer, arguments.target)


if __name__ == "__main__":
    main()
