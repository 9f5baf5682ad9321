"""Train the bundled LLaVA's projector and decoder: python -m fnabench.train.llava."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fnabench.data.scenes import Scenes
from fnabench.models.bundled_decoder import ANSWER, LlavaConfig, build_llava, vision_weights
from fnabench.models.bundled_towers import Tokenizer
from fnabench.models.bundled_weights import WEIGHTS, LoadedClip, load_clip
from fnabench.train.alignment import alignment_loss
from fnabench.train.batches import IMAGE_MEAN, IMAGE_STD
from fnabench.train.export import round_to_half, write_weights
from fnabench.train.features import Features
from fnabench.train.grounding import ANSWER_LAYER, NAMING_LAYER, PlaceHead, answering_loss, grounding_loss
from fnabench.train.llava_metrics import measure_llava, measure_question_only
from fnabench.train.muon import Muon
from fnabench.train.questions import PROMPT_SUFFIX, ask_about, build_pack, collect_chat_vocabulary, start_ids

RUNS = Path("outputs/train")
NUM_TEST = 400
"""So many test scenes, of five questions each, are measured for the card."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the bundled LLaVA is trained; the image tower stays as CLIP left it."""

    steps: int = 3300
    seed: int = 0
    num_samples: int = 8_000
    """Different training scenes; each pass over them asks other questions."""
    batch: int = 8
    series: int = 2
    """Five questions each, about every image of a batch."""
    num_kept: int = 96
    """Patches that the decoder sees of an image, until the last part of the steps."""
    whole: float = 0.1
    """The last part of the steps, in which it sees every patch of fewer images."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    warmup: int = 50
    decay: float = 0.39
    """The last part of the steps, in which the learning rate falls to zero."""
    average: float = 0.995
    grounding: float = 0.2
    """Weight of the loss that makes naming words look at the patches of what they name."""
    alignment: float = 0.2
    """Weight of the loss that draws projected patches to the embeddings of their words."""


class Trainer:
    """The model, its average and its optimisers, at some step."""

    def __init__(self, training: Training, clip: LoadedClip, folder: Path, pool: Path) -> None:
        torch.manual_seed(training.seed)
        self.training, self.folder, self.step, self.seconds = training, folder, 0, 0.0
        self.config = config = LlavaConfig()
        self.tokenizer = Tokenizer(collect_chat_vocabulary(), context=config.context)
        self.clip_config = clip.model.config
        self.model = build_llava(self.clip_config, config, num_words=len(self.tokenizer.vocabulary))
        self.model.model.vision_tower.load_state_dict(vision_weights(clip.model.image_tower))
        self.model.model.vision_tower.requires_grad_(False)
        self.model.model.language_model.set_attn_implementation("eager")  # the only one that shows its weights
        self.source = Scenes(split="train", limit=training.num_samples)
        self.features = Features(self.model, self.source, folder / "features", pool)
        self.trained: list[Tensor] = [p for p in self.model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.trained]
        inner = [p for p in self.model.model.language_model.layers.parameters() if p.ndim == 2]
        chosen = {id(parameter) for parameter in inner}
        rest = [p for p in self.trained if id(p) not in chosen]
        self.places = PlaceHead(config.width)
        self.optimizers = (
            Muon(inner, lr=0.0, weight_decay=training.weight_decay),
            torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0),
            torch.optim.AdamW(self.places.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def train_step(self) -> dict[str, float]:
        """One step; returns what the log shows."""
        begin = time.perf_counter()
        training = self.training
        whole = self.step >= training.steps * (1 - training.whole)
        batch = training.batch // 2 if whole else training.batch
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + self.step)
        loss, right = self._loss(
            [(self.step * training.batch + row) % training.num_samples for row in range(batch)],
            num_kept=self.features.num_patches if whole else training.num_kept,
            generator=generator,
        )
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        left = (training.steps - self.step) / (training.steps * training.decay)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * min(1.0, (self.step + 1) / training.warmup, left)
            optimizer.step()
            optimizer.zero_grad()
        decay = min(training.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.trained, 1 - decay)
        self.step += 1
        self.seconds += time.perf_counter() - begin
        values = {"loss": round(float(loss.detach()), 4), "right": round(float(right), 4)}
        return {"step": self.step, "seconds": round(self.seconds, 1), "batch": batch, **values, **self.parts}

    def _loss(self, indices: list[int], *, num_kept: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Cross entropy of the answers, and how many answer words are right."""
        training = self.training
        passes = self.step * training.batch // training.num_samples
        series = range(passes * training.series, (passes + 1) * training.series)
        scenes = [self.source.scene(index) for index in indices]
        asked = [
            [one for number in series for one in ask_about(scene, index=index, series=number)]
            for index, scene in zip(indices, scenes, strict=True)
        ]
        features, kept = self.features.take(indices, num_kept=num_kept, generator=generator)
        pack = build_pack(self.tokenizer, asked, kept, num_patches=self.features.num_patches, suffix=self.step % 4 == 3)
        embed = self.model.get_input_embeddings()
        visual = self.model.model.multi_modal_projector(features)
        inputs = torch.cat((embed(start_ids(len(indices))), visual, embed(pack.ids)), dim=1)
        outputs = self.model.model.language_model(
            inputs_embeds=inputs,
            attention_mask=torch.zeros(pack.visible.shape).masked_fill(~pack.visible, -1e9),
            position_ids=pack.positions,
            use_cache=False,
            output_attentions=True,
            output_hidden_states=True,
        )
        hidden = outputs.last_hidden_state[:, -pack.ids.shape[1] :]
        answers = pack.targets != -100
        logits, wanted = self.model.lm_head(hidden[answers]), pack.targets[answers]
        words = self.features.name(indices, kept, scenes)
        aligned = alignment_loss(visual, words, embed.weight, self.tokenizer)
        grounded = grounding_loss(outputs.attentions[NAMING_LAYER], asked, scenes, words.things)
        grounded = grounded + answering_loss(outputs.attentions[ANSWER_LAYER], asked, scenes, pack.ids == ANSWER)
        self.parts = {"aligned": round(float(aligned.detach()), 4), "grounded": round(float(grounded.detach()), 4)}
        loss = functional.cross_entropy(logits, wanted)
        self.parts["answers"] = round(float(loss.detach()), 4)
        placed = self.places(outputs.hidden_states[ANSWER_LAYER][:, -pack.ids.shape[1] :], asked, scenes)
        self.parts["placed"] = round(float(placed.detach()), 4)
        loss = loss + training.alignment * aligned + training.grounding * (grounded + placed)
        return loss, (logits.argmax(dim=-1) == wanted).float().mean()

    def averaged(self) -> dict[str, Tensor]:
        """The weights to keep: the average where something was trained, the tower's own elsewhere."""
        names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        weights: dict[str, Tensor] = self.model.state_dict()
        return weights | dict(zip(names, self.average, strict=True))

    def save(self) -> None:
        """Replace the checkpoint."""
        state = {
            "training": asdict(self.training),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "places": self.places.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        unfinished = self.folder / "checkpoint.unfinished"
        torch.save(state, unfinished)
        unfinished.rename(self.folder / "checkpoint.pt")

    def resume(self) -> None:
        """Go on from the checkpoint if there is one."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.step, self.seconds, self.average = state["step"], state["seconds"], state["average"]
        self.model.load_state_dict(state["model"])
        self.places.load_state_dict(state["places"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def finish(trainer: Trainer, target: Path) -> None:
    """Measure on the test split, beside what the questions alone give away, and write the weights with their card."""
    weights, source = round_to_half(trainer.averaged()), Scenes(split="test", limit=NUM_TEST)
    metrics = measure_llava(trainer.model, weights, trainer.tokenizer, source) | measure_question_only(source)
    card = {
        "metrics": {f"first_{NUM_TEST}_of_test_128px": metrics},
        "training": asdict(trainer.training) | {"seconds": round(trainer.seconds)},
        "config": asdict(trainer.config),
        "clip_config": asdict(trainer.clip_config),
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
        "prompt_suffix": PROMPT_SUFFIX,
        "vocabulary": trainer.tokenizer.vocabulary,
    }
    write_weights(target, "llava", weights, card)


def main() -> None:
    """Train the bundled LLaVA; an interrupted run goes on where it stopped."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=RUNS / "llava", help="checkpoint, log and features")
    parser.add_argument("--pool", type=Path, default=RUNS / "pool", help="drawn training pictures")
    parser.add_argument("--target", type=Path, default=WEIGHTS, help="where CLIP's weights are and LLaVA's go")
    parser.add_argument("--steps", type=int, default=Training.steps)
    parser.add_argument("--stop", type=int, help="stop early, after this step")
    parser.add_argument("--measure-every", type=int, default=300)
    arguments = parser.parse_args()
    training = Training(steps=arguments.steps)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(training, load_clip(arguments.target), arguments.folder, arguments.pool)
    trainer.resume()
    with (arguments.folder / "log.jsonl").open("a") as log:
        while trainer.step < min(training.steps, arguments.stop or training.steps):
            entry: dict[str, float] = trainer.train_step()
            last = trainer.step == training.steps
            if trainer.step % arguments.measure_every == 0 or last:
                weights = trainer.averaged()
                entry |= measure_llava(trainer.model, weights, trainer.tokenizer, Scenes(split="val", limit=100))
            if trainer.step % 20 == 0 or last:
                print(json.dumps(entry), file=log, flush=True)
            if trainer.step % 100 == 0 or last:
                trainer.save()
    if trainer.step == training.steps:
        finish(trainer, arguments.target)


if __name__ == "__main__":
    main()
