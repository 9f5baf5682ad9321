"""Five ways to put a scene into words; each names enough things to tell it from a thousand others."""

from __future__ import annotations

from collections.abc import Sequence

from fnabench.data.scenes.draw import Draw
from fnabench.data.scenes.world import Scene, Thing, direction, place

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


def describe(scene: Scene, draw: Draw) -> tuple[str, ...]:
    """Five different captions: a list, relations, a count with the ground, places, and sizes with fills."""
    main, others = scene.main, list(scene.things[1:])
    return (
        _enumerate(draw.shuffled(scene.things)),
        _relate(main, draw.shuffled(others)),
        _count(scene, draw.shuffled(others), draw),
        _locate([main, *draw.shuffled(others)[:2]]),
        _detail(main, draw.shuffled(others), draw),
    )


def _enumerate(things: Sequence[Thing]) -> str:
    return f"a picture of {_join([thing.phrase for thing in things])}"


def _relate(main: Thing, others: Sequence[Thing]) -> str:
    first, second = others[:2]
    return (
        f"{first.phrase} {direction(first, main)} a large {main.name} and {second.phrase} {direction(second, main)} it"
    )


def _count(scene: Scene, others: Sequence[Thing], draw: Draw) -> str:
    shown = _join([thing.phrase for thing in draw.shuffled([scene.main, *others[:2]])])
    return f"{NUMBERS[len(scene.things)]} objects on a {scene.ground} background with {shown}"


def _locate(things: Sequence[Thing]) -> str:
    return _join([f"{thing.phrase} at the {place(thing)}" for thing in things])


def _detail(main: Thing, others: Sequence[Thing], draw: Draw) -> str:
    shown = draw.shuffled([main, *others[:2]])
    return f"there is {_join([f'a {thing.size} {thing.fill} {thing.name}' for thing in shown])}"


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
