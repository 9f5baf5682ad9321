"""`data=scenes`: a small world of coloured shapes, drawn on demand, without any download, always the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import final

from PIL import Image

from fnabench.data.base import Sample, Source
from fnabench.data.scenes.captions import describe
from fnabench.data.scenes.draw import MAX_SEED, SPLITS, Draw
from fnabench.data.scenes.questions import annotate, ask
from fnabench.data.scenes.render import Picture, render
from fnabench.data.scenes.world import COLOURS, SHAPES, Scene, compose
from fnabench.errors import BadInputError, one_of

VERSION = 1
"""Raised whenever any scene, picture, caption or question changes."""

NUM_TRAINING = 500
"""Scenes that heads and probes are fitted on."""

_NUM_FINGERPRINTED = 4


@final
@dataclass(frozen=True, kw_only=True)
class Scenes(Source):
    """Procedural scenes: sample i depends on (split, seed, i) alone; the limit only says where to stop."""

    split: str = "test"
    seed: int = 0
    limit: int = 1000
    """How many scenes."""
    image_size: int = 128

    name = "scenes"
    description = "procedural, bundled"
    class_names = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
    mask_names = ("background", *SHAPES)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise one_of("data.split", self.split, SPLITS)
        if not 0 <= self.seed <= MAX_SEED:
            raise BadInputError(f"data.seed={self.seed} must be between 0 and {MAX_SEED}")
        if self.limit < 1:
            raise BadInputError(f"data.limit={self.limit} must be at least 1")
        if not 64 <= self.image_size <= 1024:
            raise BadInputError(f"data.image_size={self.image_size} must be between 64 and 1024")

    @property
    def provides(self) -> frozenset[str]:
        return frozenset({"label", "captions", "mask", "questions"})

    def check(self) -> None:
        """Nothing can be missing: everything is drawn on demand."""

    def fingerprint(self) -> str:
        """A hash over the version, the parameters and the first few samples with their pixels."""
        digest = hashlib.sha256(json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True).encode())
        for index in range(min(_NUM_FINGERPRINTED, self.limit)):
            sample, picture = self[index], self.picture(index)
            digest.update(picture.pixels.tobytes())
            digest.update(picture.mask.tobytes())
            texts = [sample.label, sample.captions, [asdict(question) for question in sample.questions]]
            digest.update(json.dumps(texts).encode())
        return digest.hexdigest()

    def training_split(self) -> Scenes | None:
        """NUM_TRAINING scenes of the training split at the same size; that split itself has none besides."""
        return None if self.split == "train" else replace(self, split="train", limit=NUM_TRAINING)

    def __len__(self) -> int:
        return self.limit

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.limit:
            raise IndexError(index)
        scene, picture = self.scene(index), self.picture(index)
        name = f"{self.split}-{self.seed}-{index}"
        draw = self._draw("questions", index)
        questions = tuple(annotate(asked, draw, name=f"{name}-{asked.kind}") for asked in ask(scene, draw))
        return Sample(
            id=name,
            image=Image.fromarray(picture.pixels),
            label=self.class_names.index(scene.main.name),
            captions=self.captions(index),
            mask=picture.mask,
            questions=questions,
        )

    def scene(self, index: int) -> Scene:
        """What the sample shows, before anything is drawn."""
        return _scene(self.split, self.seed, index)

    def picture(self, index: int) -> Picture:
        """The pixels of the sample, and which thing owns each."""
        return render(self.scene(index), self._draw("texture", index), self.image_size)

    def captions(self, index: int) -> tuple[str, ...]:
        """The five captions of the sample."""
        return describe(self.scene(index), self._draw("captions", index))

    def _draw(self, stream: str, index: int) -> Draw:
        return Draw(split=self.split, stream=stream, seed=self.seed, index=index)


@lru_cache(maxsize=1)
def _scene(split: str, seed: int, index: int) -> Scene:
    """A sample asks for its scene several times over."""
    return compose(Draw(split=split, stream="layout", seed=seed, index=index))
