"""Train the bundled LLaVA's projector and decoder: python -m fnabench.train.llava."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fnabench.data.scenes import Scenes
from fnabench.models.bundled_decoder import ANSWER, LlavaConfig, build_llava, vision_weights
from fnabench.models.bundled_towers import Tokenizer
from fnabench.models.bundled_weights import LoadedClip, load_clip
from fnabench.train.alignment import alignment_loss
from fnabench.train.batches import IMAGE_MEAN, IMAGE_STD
from fnabench.train.course import Course, Schedule, command_line
from fnabench.train.export import round_to_half, write_weights
from fnabench.train.features import Features
from fnabench.train.grounding import ANSWER_LAYER, NAMING_LAYER, PlaceHead, answering_loss, grounding_loss
from fnabench.train.llava_metrics import measure_llava, measure_question_only
from fnabench.train.questions import PROMPT_SUFFIX, ask_about, build_pack, collect_chat_vocabulary, start_ids

NUM_TEST = 400
"""So many test scenes, of five questions each, are measured for the card."""


@dataclass(frozen=True, kw_only=True)
class Training(Schedule):
    """How the bundled LLaVA is trained; the image tower stays as CLIP left it."""

    steps: int = 3300
    num_samples: int = 8_000
    """Each pass over them asks other questions."""
    warmup: int = 50
    decay: float = 0.39
    batch: int = 8
    series: int = 2
    """Five questions each, about every image of a batch."""
    num_kept: int = 96
    """Patches that the decoder sees of an image, until the last part of the steps."""
    whole: float = 0.1
    """The last part of the steps, in which it sees every patch of fewer images."""
    grounding: float = 0.2
    """Weight of the loss that makes naming words look at the patches of what they name."""
    alignment: float = 0.2
    """Weight of the loss that draws projected patches to the embeddings of their words."""


class Trainer(Course):
    """The course of the bundled LLaVA's projector and decoder."""

    training: Training
    head: PlaceHead

    def __init__(self, training: Training, clip: LoadedClip, folder: Path, pool: Path) -> None:
        torch.manual_seed(training.seed)
        self.config = config = LlavaConfig()
        self.tokenizer = Tokenizer(collect_chat_vocabulary(), context=config.context)
        self.clip_config = clip.model.config
        model: Any = build_llava(self.clip_config, config, num_words=len(self.tokenizer.vocabulary))
        model.model.vision_tower.load_state_dict(vision_weights(clip.model.image_tower))
        model.model.vision_tower.requires_grad_(False)
        model.model.language_model.set_attn_implementation("eager")  # the only one that shows its weights
        self.source = Scenes(split="train", limit=training.num_samples)
        self.features = Features(model, self.source, folder / "features", pool)
        super().__init__(training, folder, model, PlaceHead(config.width), (model.model.language_model.layers,))

    def losses(self, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Cross entropy of the answers, and what helps to learn them."""
        training = self.training
        is_whole = self.step >= training.steps * (1 - training.whole)
        batch = training.batch // 2 if is_whole else training.batch
        indices = [(self.step * training.batch + row) % training.num_samples for row in range(batch)]
        num_kept = self.features.num_patches if is_whole else training.num_kept
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
        answered = functional.cross_entropy(logits, wanted)
        placed = self.head(outputs.hidden_states[ANSWER_LAYER][:, -pack.ids.shape[1] :], asked, scenes)
        loss = answered + training.alignment * aligned + training.grounding * (grounded + placed)
        right = (logits.argmax(dim=-1) == wanted).float().mean()
        shown = {
            "loss": loss, "right": right, "aligned": aligned, "grounded": grounded, "answers": answered,
            "placed": placed,
        }  # fmt: skip
        return loss, {"batch": batch} | {name: round(float(value.detach()), 4) for name, value in shown.items()}

    def measure(self) -> dict[str, float]:
        return measure_llava(self.averaged_model(), self.tokenizer, Scenes(split="val", limit=100))


def finish(trainer: Trainer, target: Path) -> None:
    """Measure on the test split, beside what the questions alone give away, and write the weights with their card."""
    model, source = trainer.averaged_model(), Scenes(split="test", limit=NUM_TEST)
    model.load_state_dict(round_to_half(model.state_dict()))
    metrics = measure_llava(model, trainer.tokenizer, source) | measure_question_only(source)
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
    write_weights(target, "llava", model.state_dict(), card)


def main() -> None:
    """Train the bundled LLaVA around the CLIP in --target; an interrupted run goes on where it stopped."""
    arguments = command_line(main.__doc__, "llava", steps=Training.steps, measure_every=300).parse_args()
    training = Training(steps=arguments.steps)
    trainer = Trainer(training, load_clip(arguments.target), arguments.folder, arguments.pool)
    if trainer.run(stop=arguments.stop, measure_every=arguments.measure_every):
        finish(trainer, arguments.target)


if __name__ == "__main__":
    main()
