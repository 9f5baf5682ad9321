"""LLaVA, LLaVA-NeXT and LLaVA-OneVision by transformers, from a local folder or a pinned hub revision."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fnabench.errors import BadInputError, ImpossibleError, reason_of
from fnabench.identity import LOCATION, digest
from fnabench.models.base import Blueprint, Model
from fnabench.models.hf_backbone import Dialogue, LlavaBackbone, llava_blueprint
from fnabench.models.hf_layers import check_scope
from fnabench.models.preprocessing import square_transforms
from fnabench.models.weights_file import find_folder, hash_file, load_pretrained, pinned
from fnabench.tiles import Images, Tiles

if TYPE_CHECKING:
    from PIL import Image

FAMILIES = ("llava", "llava_next", "llava_onevision")
"""What config.json may name as its model_type."""
CONFIG = (
    ("config.json",),
    ("processor_config.json", "preprocessor_config.json"),
    ("tokenizer.json", "tokenizer.model"),
)
"""Files without which the sizes of a model are not known; of several any one will do."""
WEIGHTS = (("model.safetensors", "model.safetensors.index.json"),)


@dataclass(frozen=True, kw_only=True)
class HfLlava(Model):
    """A LLaVA of stock transformers classes with the processor and tokenizer of its checkpoint."""

    checkpoint: str = field(metadata=LOCATION)
    """A folder as save_pretrained writes it, or hf-hub:owner/name@revision."""
    revision: str | None = field(default=None, metadata=LOCATION)
    """Commit of a hub id that names none."""
    scope: str = "vision"
    """Where attention is replaced: in the "vision" tower, in the "decoder" while it reads the image, or in "both"."""
    prompt: str | None = None
    """What the model is told, with its image token first and {} for the question; None = the chat template of the
    checkpoint."""
    pad_to_square: bool = False
    """Whether an image is first padded to a square with the mean colour, as LLaVA-1.5 was evaluated."""
    questions_at_once: int = 16
    """So many about an image are answered in one sequence, which bounds its length and so its memory."""
    description: str = ""

    def __post_init__(self) -> None:
        check_scope(self.scope)
        if self.questions_at_once < 1:
            raise BadInputError(f"model.questions_at_once={self.questions_at_once} must be at least 1")
        if self.prompt is not None and self.prompt.count("{}") != 1:
            raise BadInputError(f"model.prompt={self.prompt!r} needs {{}} once, where the question belongs")

    @property
    def offers(self) -> frozenset[str]:
        return frozenset({"generate", "embed"} | ({"patches"} if self._is_one_grid else set()))

    @property
    def lacks(self) -> Mapping[str, str]:
        reason = f"{self._config.model_type} reads an image in tiles, not in one grid"
        return {} if self._is_one_grid else {"patches": reason}

    def check(self) -> None:
        _ = self._files

    def weights_hash(self) -> str:
        return self._hash

    def blueprint(self) -> Blueprint:
        from transformers import AutoModelForImageTextToText

        with torch.device("meta"):
            module = AutoModelForImageTextToText.from_config(self._config)
        edge = module.config.vision_config.image_size
        return llava_blueprint(module, self.scope, self._read_image.of_one_colour(edge), self._dialogue)

    def load(self, device: torch.device, dtype: torch.dtype) -> LlavaBackbone:
        from transformers import AutoModelForImageTextToText

        folder = self._files[0].parent
        module = load_pretrained(AutoModelForImageTextToText, folder, dtype=dtype, attn_implementation="sdpa")
        whole = None
        if self._is_one_grid:
            images = self._processor.image_processor
            _, whole = square_transforms(self._config.vision_config.image_size, images.image_mean, images.image_std)
        return LlavaBackbone(
            module.to(device), self.scope, self._dialogue, self._read_image, whole,
            questions_at_once=self.questions_at_once,
        )  # fmt: skip

    @property
    def _is_one_grid(self) -> bool:
        """Whether the vision tower sees an image once, as a whole; the others cut it into tiles."""
        return bool(self._config.model_type == "llava")

    @cached_property
    def _folder(self) -> Path:
        """Where everything but the weights is."""
        return find_folder(pinned(self.checkpoint, self.revision), CONFIG)

    @cached_property
    def _files(self) -> list[Path]:
        """Every file that decides what the model does."""
        folder = find_folder(pinned(self.checkpoint, self.revision), (*CONFIG, *WEIGHTS))
        return sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jinja", ".model", ".safetensors"))

    @cached_property
    def _hash(self) -> str:
        return digest([(path.name, hash_file(path)) for path in self._files])

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        path = self._folder / "config.json"
        try:
            family = json.loads(path.read_text(encoding="utf-8")).get("model_type")
            if family in FAMILIES:
                return AutoConfig.from_pretrained(self._folder, attn_implementation="sdpa", local_files_only=True)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise BadInputError(f"{path} cannot be read: {reason_of(error)}") from error
        raise ImpossibleError(
            f"{path} says model_type={family}; model=hf_llava understands {', '.join(FAMILIES)}: give a checkpoint of "
            "these in transformers' layout, as llava-hf has them"
        )

    @cached_property
    def _processor(self) -> Any:
        from transformers import AutoProcessor

        _ = self._config  # a processor of another family is not asked for
        try:
            return AutoProcessor.from_pretrained(self._folder, local_files_only=True)
        except (ValueError, KeyError, TypeError, AttributeError, ImportError, OSError) as error:
            raise BadInputError(f"the processor in {self._folder} cannot be read: {reason_of(error)}") from error

    @cached_property
    def _read_image(self) -> ReadImage:
        return ReadImage(self._processor.image_processor, pad_to_square=self.pad_to_square)

    @cached_property
    def _dialogue(self) -> PromptDialogue:
        from transformers import GenerationConfig

        prompt = self.prompt or _chat_template(self._processor, self._folder)
        ends = self._config.get_text_config().eos_token_id
        if (self._folder / "generation_config.json").is_file():
            ends = GenerationConfig.from_pretrained(self._folder, local_files_only=True).eos_token_id
        if ends is None:
            ends = self._processor.tokenizer.eos_token_id
        image = self._config.image_token_id
        return PromptDialogue(self._processor.tokenizer, prompt, image, {ends} if isinstance(ends, int) else set(ends))


class PromptDialogue(Dialogue):
    """A prompt with an image token and {} for the question, in the words of a checkpoint's tokenizer."""

    def __init__(self, tokenizer: Any, prompt: str, image_token: int, ends: set[int]) -> None:
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.image_token = image_token
        self.ends = frozenset(ends)
        ids = self._tokenize("")
        if image_token not in ids or "{}" not in prompt[prompt.find(self._image) :]:
            raise BadInputError(f"model.prompt={prompt!r} needs {self._image} before {{}}, where the image belongs")
        self.before = tuple(ids[: ids.index(image_token)])

    def encode(self, question: str) -> list[int]:
        ids = self._tokenize(question)
        return ids[ids.index(self.image_token) + 1 :]

    def decode(self, answers: Sequence[Sequence[int]]) -> list[str]:
        return [text.strip() for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]

    def _tokenize(self, question: str) -> list[int]:
        """The whole prompt: a question cut off from its prompt could be cut into other tokens."""
        starts = self.tokenizer.bos_token
        text = self.prompt.replace("{}", question)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=not (starts and text.startswith(starts)))
        return ids

    @property
    def _image(self) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(self.image_token))


class ReadImage:
    """From an image of any size to what the checkpoint's own image processor makes of it."""

    def __init__(self, processor: Any, *, pad_to_square: bool) -> None:
        self.processor = processor
        self.pad_to_square = pad_to_square

    def __call__(self, image: Image.Image) -> Images:
        found = self.processor(images=self._pad(image) if self.pad_to_square else image, return_tensors="pt")
        (pixels,) = found["pixel_values"]
        if "image_sizes" not in found:
            return pixels  # type: ignore[no-any-return]
        ((height, width),) = found["image_sizes"].tolist()
        return Tiles(pixels=pixels, counts=(len(pixels),), sizes=((height, width),))

    def of_one_colour(self, edge: int) -> Images:
        """A batch of one square image."""
        from PIL import Image

        image = self(Image.new("RGB", (edge, edge)))
        return image[None] if isinstance(image, torch.Tensor) else image

    def _pad(self, image: Image.Image) -> Image.Image:
        from PIL import ImageOps

        mean = tuple(int(255 * value) for value in self.processor.image_mean)
        edge = max(image.size)
        return ImageOps.pad(image, (edge, edge), color=mean)


def _chat_template(processor: Any, folder: Path) -> str:
    """One turn of the checkpoint's chat template, with {} for what the user asks."""
    if not processor.chat_template:
        raise BadInputError(
            f"{folder} has no chat template; give model.prompt='USER: <image> {{}} ASSISTANT:' or what the model was "
            "trained with"
        )
    content = [{"type": "image"}, {"type": "text", "text": "{}"}]
    asked = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False))
