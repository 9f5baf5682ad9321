"""ROUGE-L (Lin 2004): how much of two texts is the same words in the same order."""

from __future__ import annotations

import re


def rouge_l(candidate: str, reference: str) -> float:
    """F1 of precision and recall of the longest common subsequence of lower-case words, gaps allowed."""
    ours, theirs = (re.findall(r"\w+", text.lower()) for text in (candidate, reference))
    common = _longest_common_subsequence(ours, theirs)
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def _longest_common_subsequence(a: list[str], b: list[str]) -> int:
    lengths = [0] * (len(b) + 1)  # of a's words so far with b's first n
    for word in a:
        before = 0
        for place, other in enumerate(b, start=1):
            above = lengths[place]
            lengths[place] = before + 1 if word == other else max(above, lengths[place - 1])
            before = above
    return lengths[-1]
