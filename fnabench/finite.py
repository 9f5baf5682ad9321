"""Outputs of a model that are no numbers: refused where they come out, before any task can score them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fnabench.errors import ImpossibleError
from fnabench.models.base import Backbone

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

    Look = Callable[[Tensor], Bool[Tensor, " B"]]
    Complain = Callable[[tuple[Any, ...], int], ImpossibleError]
    """Of what a method was given, and of a row of what it gave."""


@contextmanager
def only_finite(backbone: Backbone, attention: str, dtype: torch.dtype, *, is_exact: bool = False) -> Iterator[None]:
    """While it lasts, an output of the backbone that is not finite raises ImpossibleError, which names the sample.

    Of logits the largest must be finite: one of -inf is a class or a word that cannot be. Answers are judged by the
    logits that their words are chosen from. This waits for the device after every forward: not for what is timed.
    """
    in_dtype = f"in {dtype}".replace("torch.", "")
    wider = [] if dtype == torch.float32 else ["dtype=float32"]
    others = ["another model="] if is_exact else ["other layers=...", "another setting of attention="]

    def of_image(_: tuple[Any, ...], row: int) -> ImpossibleError:
        ids = backbone.layers.ids
        sample = ids[min(row, len(ids) - 1)]  # several windows are of one
        return _complaint(f"attention={attention} {in_dtype}", f"sample {sample}", [*wider, *others])

    def of_text(given: tuple[Any, ...], row: int) -> ImpossibleError:
        texts = given[0]
        return _complaint(f"the model {in_dtype}", f"the text {texts[row]!r}", [*wider, "another model="])

    watched: dict[str, tuple[Complain, tuple[Look, ...]]] = {
        "classify": (of_image, (_has_largest,)),
        "encode_image": (of_image, (_is_finite,)),
        "embed_and_classify": (of_image, (_is_finite, _has_largest)),
        "encode_patches": (of_image, (_is_finite,)),
        "encode_text": (of_text, (_is_finite,)),
    }
    before = dict(vars(backbone))
    for name, (complain, looks) in watched.items():
        setattr(backbone, name, _judged(getattr(backbone, name), complain, looks))
    head = backbone.decoder_head
    hook = head.register_forward_hook(partial(_judge_words, of_image)) if head is not None else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
        for name in watched:
            delattr(backbone, name)
        vars(backbone).update({name: before[name] for name in watched if name in before})


def _judged(method: Callable[..., Any], complain: Complain, looks: tuple[Look, ...]) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        output = method(*given, **named)
        _judge((*given, *named.values()), output, complain, looks)
        return output

    return call


def _judge_words(complain: Complain, _: object, given: tuple[Any, ...], logits: Tensor) -> None:
    _judge(given, logits, complain, (_has_largest,))


def _judge(given: tuple[Any, ...], output: Any, complain: Complain, looks: tuple[Look, ...]) -> None:
    outputs = output if isinstance(output, tuple) else (output,)
    for each, look in zip(outputs, looks, strict=True):
        if each is not None and (rows := (~look(each)).nonzero()).numel():
            raise complain(given, int(rows[0]))


def _is_finite(output: Tensor) -> Bool[Tensor, " B"]:
    return output.isfinite().flatten(1).all(1)


def _has_largest(logits: Tensor) -> Bool[Tensor, " B"]:
    """Whether each row, such as those of the questions about an image, has a largest logit that is finite."""
    return logits.amax(-1, keepdim=True).isfinite().flatten(1).all(1)


def _complaint(subject: str, what: str, remedies: list[str]) -> ImpossibleError:
    return ImpossibleError(f"{subject} gives values that are not finite for {what}; give {' or '.join(remedies)}")
