"""BERTScore (Zhang et al. 2020, arXiv 1904.09675): two texts compared by greedy matching of contextual embeddings.

The paper's formulas, not rescaled by a baseline; the encoder's special tokens are neither matched nor counted.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import normalize

from fnabench.errors import BadInputError, ImpossibleError, reason_of
from fnabench.identity import digest
from fnabench.models.weights_file import find_folder, hash_file, load_pretrained

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

OPTION = "task.bertscore"
NEEDED = (
    ("config.json",),
    ("tokenizer.json", "vocab.txt", "tokenizer.model"),
    ("model.safetensors", "model.safetensors.index.json"),
)
BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class BertScore:
    """How well a candidate matches a reference; each at most 1."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """A text as its encoder sees it, without special tokens."""

    ids: tuple[int, ...]
    embeddings: Float[Tensor, "N E"]


def greedy_matching(
    candidate: Float[Tensor, "N E"],
    reference: Float[Tensor, "M E"],
    candidate_weights: Float[Tensor, " N"] | None = None,
    reference_weights: Float[Tensor, " M"] | None = None,
) -> BertScore:
    """Each token takes the largest cosine to any token of the other text; weighted means over the tokens of a text.

    Precision is the mean over the candidate, recall over the reference; all are 0 where a text has no token.
    """
    if not len(candidate) or not len(reference):
        return BertScore(precision=0.0, recall=0.0, f1=0.0)
    cosines = normalize(candidate.double(), dim=-1) @ normalize(reference.double(), dim=-1).mT
    precision = _weighted_mean(cosines.amax(1), candidate_weights)
    recall = _weighted_mean(cosines.amax(0), reference_weights)
    total = precision + recall
    return BertScore(precision=precision, recall=recall, f1=2 * precision * recall / total if total else 0.0)


def inverse_document_frequencies(references: Iterable[Sequence[int]]) -> Mapping[int, float]:
    """-log of the share of the references that hold a token, smoothed by one; a token of none is the rarest."""
    documents = [set(ids) for ids in references]
    counts = Counter(token for ids in documents for token in ids)
    frequencies = {token: math.log((len(documents) + 1) / (count + 1)) for token, count in counts.items()}
    return _Rarest(frequencies, rarest=math.log(len(documents) + 1))


def score_texts(
    candidates: Sequence[str], references: Sequence[Sequence[str]], encoder: TextEncoder, *, with_idf: bool = False
) -> list[BertScore]:
    """The score of each candidate against the one of its references that it matches best, by F1."""
    if with_idf and len(references) < 2:
        raise BadInputError(f"{OPTION}_idf=true needs more than one question: in a single text no token is rare")
    texts = sorted({*candidates, *(text for each in references for text in each)})
    embedded = dict(zip(texts, encoder.encode(texts), strict=True))
    rarity: Mapping[int, float] | None = None
    if with_idf:
        rarity = inverse_document_frequencies(embedded[text].ids for each in references for text in each)

    def score(candidate: Embedded, reference: Embedded) -> BertScore:
        weights = [
            None if rarity is None else each.embeddings.new_tensor([rarity[token] for token in each.ids])
            for each in (candidate, reference)
        ]
        return greedy_matching(candidate.embeddings, reference.embeddings, *weights)

    return [
        max((score(embedded[candidate], embedded[text]) for text in each), key=lambda found: found.f1)
        for candidate, each in zip(candidates, references, strict=True)
    ]


class TextEncoder:
    """An encoder of transformers from a local folder or hf-hub:owner/name@revision; nothing is loaded until used."""

    def __init__(self, checkpoint: str, layer: int | None = None) -> None:
        self.checkpoint = checkpoint
        self.layer = layer
        """Whose output the embeddings are: 0 those of words, 1 the first block's; None the last block's."""

    def check(self) -> None:
        """Raise MissingError, BadInputError or ImpossibleError where this is no encoder with such a layer."""
        from transformers import AutoConfig

        path = self._folder / "config.json"
        try:
            json.loads(path.read_text(encoding="utf-8"))
            config = AutoConfig.from_pretrained(self._folder, local_files_only=True)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise BadInputError(f"{path} cannot be read: {reason_of(error)}") from error
        depth = getattr(config, "num_hidden_layers", None)
        if depth is None or config.is_encoder_decoder:
            raise ImpossibleError(
                f"{OPTION}={self.checkpoint} is a {config.model_type}, not an encoder of text such as BERT or RoBERTa"
            )
        if self.layer is not None and not 0 <= self.layer <= depth:
            raise BadInputError(f"{OPTION}_layer={self.layer} is not there; this encoder has 0..{depth}")

    def weights_hash(self) -> str:
        """A hash over the content of weights, configuration and tokenizer."""
        kinds = (".json", ".txt", ".model", ".safetensors")
        return digest([(path.name, hash_file(path)) for path in sorted(self._folder.iterdir()) if path.suffix in kinds])

    def to(self, device: torch.device) -> TextEncoder:
        """The same encoder, loaded on a device."""
        self._module.to(device)
        return self

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[Embedded]:
        """Each text as a sentence of its own, cut at the encoder's longest."""
        found = []
        for start in range(0, len(texts), BATCH_SIZE):
            given = self._tokenizer(
                list(texts[start : start + BATCH_SIZE]),
                padding=True,
                truncation=True,
                max_length=self._longest,
                return_special_tokens_mask=True,
                return_tensors="pt",
            ).to(self._module.device)
            is_word = ~given.pop("special_tokens_mask").bool() & given["attention_mask"].bool()
            states = self._module(**given, output_hidden_states=True).hidden_states
            states = states[-1 if self.layer is None else self.layer].float().cpu()
            for ids, words, state in zip(given["input_ids"].tolist(), is_word.cpu(), states, strict=True):
                kept = words.nonzero()[:, 0]
                found.append(Embedded(ids=tuple(ids[place] for place in kept.tolist()), embeddings=state[kept]))
        return found

    @cached_property
    def _folder(self) -> Path:
        return find_folder(self.checkpoint, NEEDED, OPTION)

    @cached_property
    def _module(self) -> Any:
        from transformers import AutoModel

        module = load_pretrained(AutoModel, self._folder, optional="pooler")
        return module.float().requires_grad_(False)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._folder, local_files_only=True)

    @property
    def _longest(self) -> int:
        """Tokens of the longest text; RoBERTa keeps two of its positions for itself."""
        return min(int(self._tokenizer.model_max_length), int(self._module.config.max_position_embeddings) - 2)


class _Rarest(dict[int, float]):
    """Weights by token, and that of a token which none has."""

    def __init__(self, known: Mapping[int, float], *, rarest: float) -> None:
        super().__init__(known)
        self.rarest = rarest

    def __missing__(self, token: int) -> float:
        return self.rarest


def _weighted_mean(values: Float[Tensor, " N"], weights: Float[Tensor, " N"] | None) -> float:
    weights = torch.ones_like(values) if weights is None else weights.to(values.dtype)
    total = float(weights.sum())
    return float((weights * values).sum()) / total if total else 0.0
