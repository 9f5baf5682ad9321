"""What can go wrong through no fault of fnabench: each message is one line that says what to type instead."""

from __future__ import annotations

from collections.abc import Iterable


class FnabenchError(Exception):
    """A mistake or a lack that the user can mend; the command line prints it as one line and exits with 2."""


class BadInputError(FnabenchError):
    """A file, an option or a value that cannot be used."""


class ImpossibleError(FnabenchError):
    """A combination of task, data, model and attention that cannot be run."""


class MissingError(FnabenchError):
    """Something that is not on this machine: weights, images, an optional package."""


class OutOfMemoryError(FnabenchError):
    """The device ran out of memory; recorded as such, never retried with a smaller batch."""


def reason_of(error: Exception) -> str:
    """What another library's error says, in one line of bounded length."""
    return " ".join(str(error).split())[:300]


def one_of(what: str, given: object, allowed: Iterable[object]) -> BadInputError:
    """The error for a value outside a closed set."""
    return BadInputError(f"{what}={given} is not known; allowed: {', '.join(map(str, allowed))}")
