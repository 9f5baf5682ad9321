"""The names that open_clip gives ImageNet's classes, which the published zero-shot results were taken with."""

from __future__ import annotations

from pathlib import Path


def imagenet_names(num_classes: int) -> tuple[str, ...]:
    """All 1,000 by label; none for another number of classes."""
    names = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return tuple(names) if num_classes == len(names) else ()
