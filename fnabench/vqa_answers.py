"""How answers to visual questions are made comparable and scored; the VQA evaluation's rules, with its quirks.

Sources: the VQA v2 evaluation of 2017 (official: vqaEval.py of GT-Vision-Lab/VQA), and Big Vision's and EvalAI's
versions of it, which differ in when they apply.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

NORMALISATIONS = ("official", "big_vision", "evalai")

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ARTICLES = ("a", "an", "the")
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
    who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905  one word list reads better than 80 strings
"""Without those of "I", which the official list has in capitals: it is asked for words in lower case."""
_WORDS = (
    {word[:at] + word[at + 1 :]: word for word in _CONTRACTIONS for at, letter in enumerate(word) if letter == "'"}
    | {number: str(value) for value, number in enumerate(_NUMBERS)}
    | {"none": "0"}
)


_remembered = lru_cache(maxsize=2**16)
"""Data sets repeat few answers very often."""


def vqa_accuracy(prediction: str, answers: Sequence[str], normalisation: str = "official") -> float:
    """Mean over the leave-one-out sets of annotators of min(matches / 3, 1).

    official: the prediction is always normalised, the answers only where they differ, and then only their punctuation.
    big_vision: both, only where the answers differ. evalai: both, always.
    """
    prediction, answers = normalised(prediction, answers, normalisation)
    matches = [answer == prediction for answer in answers]
    total = sum(matches)
    return sum(min((total - match) / 3, 1) for match in matches) / len(matches)


def normalised(prediction: str, answers: Sequence[str], normalisation: str) -> tuple[str, list[str]]:
    """Prediction and answers as they are compared."""
    prediction, answers = _one_line(prediction), [_one_line(answer) for answer in answers]
    differ = len(set(answers)) > 1
    if normalisation == "official":
        return _words(_punctuation(prediction)), [_punctuation(answer) if differ else answer for answer in answers]
    if normalisation == "big_vision":
        if not differ:
            return prediction, answers
        return _words(_punctuation(prediction)), [_words(_punctuation(answer)) for answer in answers]
    if normalisation == "evalai":
        return _evalai(prediction), [_evalai(answer) for answer in answers]
    raise ValueError(f"normalisation={normalisation} is none of {', '.join(NORMALISATIONS)}")


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@_remembered
def _punctuation(text: str) -> str:
    """A mark goes if it stands at a word's edge anywhere in the text as given, every mark if a number there holds a
    comma; else it becomes a space."""
    has_thousands = re.search(r"\d,\d", text) is not None
    plain = text
    for mark in _PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if at_edge or has_thousands else " ")
    return re.sub(r"\.(?!\d)", "", plain)


@_remembered
def _words(text: str) -> str:
    """Lower case, numbers in digits, no articles, contractions with their apostrophe."""
    words = [_WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(word for word in words if word not in _ARTICLES)


@_remembered
def _evalai(text: str) -> str:
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return _words(_punctuation(text.strip())).strip()
