"""The procedural scenes: deterministic, varied, and true by construction."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from fnabench.data.base import IGNORE_INDEX
from fnabench.data.scenes import Scenes
from fnabench.data.scenes.draw import Draw
from fnabench.data.scenes.questions import _OPPOSITE, KINDS, ask, plural
from fnabench.data.scenes.shapes import inside
from fnabench.data.scenes.source import NUM_TRAINING
from fnabench.data.scenes.world import COLOURS, RADII, SHAPES, Scene, Thing, direction
from fnabench.errors import BadInputError

GOLDEN = {
    "train": "09b87ea8e9254d23ff68cb4abc62f45a47039f7036e2949bd6bf19f3a539afd6",
    "val": "5845e01fdbe636f8b5c849be769df6e08902c170160f6a85408d6649e2ab8ef5",
    "test": "4116d565a6a887ab65d89ad71146b835e6739293c6743ccc3b74b6edf8296cfc",
}
"""sha256 of the first eight pictures and masks of each split, as drawn on every platform."""


def _things(scene: Scene) -> dict[str, Thing]:
    return {thing.name: thing for thing in scene.things}


def _asked(source: Scenes, index: int) -> dict[str, tuple[str, str]]:
    draw = Draw(split=source.split, stream="questions", seed=source.seed, index=index)
    return {asked.kind: (asked.text.rstrip("?"), asked.truth) for asked in ask(source.scene(index), draw)}


def _area(thing: Thing) -> int:
    """How many pixels of 128 x 128 the thing covers when nothing hides it."""
    down, across = (np.mgrid[0:128, 0:128].astype(np.float32) + 0.5) * 8
    cosine, sine, whole = thing.rotation
    dx, dy = across - thing.x, down - thing.y
    u, v = (dx * cosine + dy * sine) / whole, (dy * cosine - dx * sine) / whole
    return int(inside(thing.shape, u / thing.radius, v / thing.radius).sum())


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_first_pictures_are_those_of_every_platform(split: str) -> None:
    digest = hashlib.sha256()
    for index in range(8):
        picture = Scenes(split=split).picture(index)
        digest.update(picture.pixels.tobytes())
        digest.update(picture.mask.tobytes())
    assert digest.hexdigest() == GOLDEN[split]


def test_raw_draws_are_those_that_philox_defines() -> None:
    draw = Draw(split="test", stream="layout", seed=1, index=2)
    assert [draw.below(1000) for _ in range(4)] == [635, 658, 883, 520]


def test_same_sample_twice_is_equal() -> None:
    first, second = Scenes()[7], Scenes()[7]
    assert first.without_image().captions == second.captions
    assert first.questions == second.questions
    assert np.array_equal(np.asarray(first.image), np.asarray(second.image))
    assert first.mask is not None
    assert second.mask is not None
    assert np.array_equal(first.mask, second.mask)


def test_a_sample_does_not_depend_on_how_many_there_are() -> None:
    assert Scenes(limit=10)[9].captions == Scenes(limit=1000)[9].captions


def test_splits_and_seeds_share_no_scene() -> None:
    scenes = [
        repr(Scenes(split=split, seed=seed).scene(index))
        for split in ("train", "val", "test")
        for seed in (0, 1, 2**32 - 1)
        for index in range(50)
    ]
    assert len(set(scenes)) == len(scenes)


def test_no_two_streams_share_their_draws() -> None:
    streams = [
        tuple(Draw(split=split, stream=stream, seed=seed, index=index).below(2**31) for _ in range(1))
        for split in ("train", "val", "test")
        for stream in ("layout", "texture", "captions", "questions")
        for seed in (0, 1)
        for index in (0, 1)
    ]
    assert len(set(streams)) == len(streams)


def test_fingerprint_tells_sources_apart_and_reads_few_images() -> None:
    sources = [
        Scenes(),
        Scenes(split="val"),
        Scenes(seed=1),
        Scenes(limit=999),
        Scenes(image_size=192),
        Scenes(limit=10**9),
    ]
    fingerprints = [source.fingerprint() for source in sources]
    assert len(set(fingerprints)) == len(sources)
    assert Scenes().fingerprint() == fingerprints[0]


def test_every_promised_field_is_filled() -> None:
    source = Scenes(limit=20)
    assert source.provides == {"label", "captions", "mask", "questions"}
    for index in range(len(source)):
        sample = source[index]
        assert sample.image is not None
        assert sample.image.mode == "RGB"
        assert sample.image.size == (128, 128)
        assert sample.label is not None
        assert 0 <= sample.label < len(source.class_names) == 80
        assert sample.mask is not None
        assert sample.mask.shape == (128, 128)
        assert sample.mask.dtype == np.uint8


def test_heads_are_fitted_on_the_training_split() -> None:
    expected = Scenes(split="train", image_size=192, limit=NUM_TRAINING)
    assert Scenes(split="test", image_size=192, limit=5).training_split() == expected
    assert expected.training_split() is None


def test_indexing_past_the_end_stops() -> None:
    assert len(list(Scenes(limit=3))) == 3  # type: ignore[call-overload]
    with pytest.raises(IndexError):
        Scenes(limit=3)[-1]


def test_label_names_the_only_large_thing() -> None:
    source = Scenes()
    for index in range(100):
        scene = source.scene(index)
        assert [thing.size for thing in scene.things].count("large") == 1
        assert scene.main.size == "large"
        label = source[index].label
        assert label is not None
        assert source.class_names[label] == scene.main.name


def test_things_of_a_scene_have_different_names_and_lie_inside() -> None:
    for index in range(500):
        things = Scenes().scene(index).things
        assert 3 <= len(things) <= 5
        assert len({thing.name for thing in things}) == len(things)
        for thing in things:
            assert RADII[thing.size][0] <= thing.radius <= RADII[thing.size][1]
            assert thing.radius <= min(thing.x, thing.y)
            assert max(thing.x, thing.y) <= 1024 - thing.radius


def test_all_shapes_colours_and_classes_occur() -> None:
    scenes = [Scenes(split="train", limit=2000).scene(index) for index in range(2000)]
    assert {thing.shape for scene in scenes for thing in scene.things} == set(SHAPES)
    assert {thing.colour for scene in scenes for thing in scene.things} == set(COLOURS)
    assert len({scene.main.name for scene in scenes}) == 80


def test_some_things_are_partly_hidden_but_none_mostly() -> None:
    shares = []
    for index in range(150):
        source = Scenes(split="val")
        scene, owner = source.scene(index), source.picture(index).owner
        for number, thing in enumerate(scene.things):
            shares.append((owner == number).sum() / _area(thing))
    assert min(shares) > 0.5
    assert 0.03 < np.mean(np.array(shares) < 0.9) < 0.5


def test_five_captions_differ_and_name_things_that_are_there() -> None:
    for index in range(200):
        sample, scene = Scenes()[index], Scenes().scene(index)
        assert len(set(sample.captions)) == 5
        for caption in sample.captions:
            named = [thing.name for thing in scene.things if thing.name in caption]
            assert scene.main.name in caption
            assert len(named) >= 3
            mentioned = sum(f"{colour} {shape}" in caption for colour in COLOURS for shape in SHAPES)
            assert mentioned == len(named), f"{caption} names something else"


def test_captions_tell_a_thousand_images_apart() -> None:
    captions = Counter(caption for index in range(1000) for caption in Scenes().captions(index))
    assert sum(count > 1 for count in captions.values()) <= 5


def test_caption_relations_and_places_are_true() -> None:
    for index in range(200):
        things = _things(Scenes().scene(index))
        relation = Scenes().captions(index)[1]
        first, _, rest = relation.partition(" a large ")
        subject = next(name for name in things if f" {name} " in f" {first} ")
        main = Scenes().scene(index).main
        assert first.endswith(direction(things[subject], main))
        assert rest.startswith(main.name)


def test_every_outline_is_ignored_and_inner_pixels_are_not() -> None:
    for size in (128, 192):
        source = Scenes(image_size=size)
        for index in range(10):
            picture, scene = source.picture(index), source.scene(index)
            mask, owner = picture.mask, picture.owner.astype(int)
            edge = np.zeros(mask.shape, dtype=bool)
            edge[:, 1:] |= owner[:, 1:] != owner[:, :-1]
            edge[1:] |= owner[1:] != owner[:-1]
            assert (mask[edge] == IGNORE_INDEX).all()
            counted = mask != IGNORE_INDEX
            assert 0.02 < 1 - counted.mean() < 0.35
            truth = np.array([1 + SHAPES.index(thing.shape) for thing in scene.things] + [0])
            owners = np.where(owner == 255, len(scene.things), owner)
            assert (mask[counted] == truth[owners][counted]).all()


def test_larger_picture_shows_the_same_world() -> None:
    small, large = Scenes(image_size=128).picture(3), Scenes(image_size=256).picture(3)
    shrunk = large.pixels.astype(float).reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small.pixels).mean() < 4
    assert (small.owner == large.owner[::2, ::2]).mean() > 0.98


def test_questions_cover_all_kinds_with_ten_answers_and_a_true_majority() -> None:
    source = Scenes()
    for index in range(200):
        questions, truths = source[index].questions, _asked(source, index)
        assert [question.kind for question in questions] == list(KINDS)
        assert len({question.id for question in questions}) == len(questions)
        for question in questions:
            assert len(question.answers) == 10
            assert question.answers.count(truths[question.kind][1]) >= 7


def test_annotators_disagree_on_some_questions_only() -> None:
    questions = [question for index in range(300) for question in Scenes()[index].questions]
    disputed = np.mean([len(set(question.answers)) > 1 for question in questions])
    assert 0.3 < disputed < 0.5


def test_exist_answers_are_true() -> None:
    for index in range(300):
        text, truth = _asked(Scenes(), index)["exist"]
        name = text.removeprefix("is there ").split(" ", 1)[1]
        assert (name in _things(Scenes().scene(index))) == (truth == "yes")


def test_count_answers_are_true() -> None:
    for index in range(300):
        text, truth = _asked(Scenes(), index)["count"]
        things = Scenes().scene(index).things
        what = text.removeprefix("how many ").removesuffix(" are there")
        counted = [thing for thing in things if what in ("objects", plural(thing.shape), f"{thing.colour} objects")]
        assert truth == str(len(counted))


def test_colour_answers_are_true_of_exactly_one_thing() -> None:
    for index in range(300):
        text, truth = _asked(Scenes(), index)["colour"]
        what = text.removeprefix("what colour is the ")
        things = Scenes().scene(index).things
        meant = [t for t in things if what == t.shape or (what == "large object" and t.size == "large")]
        assert [thing.colour for thing in meant] == [truth]


def test_relation_answers_are_true_on_the_longer_axis() -> None:
    for index in range(300):
        text, truth = _asked(Scenes(), index)["relation"]
        stated = next(words for words in _OPPOSITE if f" {words} " in text)
        left, right = text.removeprefix("is the ").split(f" {stated} the ")
        things = _things(Scenes().scene(index))
        subject, target = things[left], things[right]
        dx, dy = subject.x - target.x, subject.y - target.y
        gap = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[stated]
        assert (gap > 0) == (truth == "yes")
        assert abs(gap) == max(abs(dx), abs(dy)) >= 80


def test_compare_answers_are_true() -> None:
    for index in range(300):
        text, truth = _asked(Scenes(), index)["compare"]
        scene = Scenes().scene(index)
        if text.startswith("are there more "):
            more, fewer = text.removeprefix("are there more ").split(" than ")
            kinds = [kind for t in scene.things for kind in (plural(t.shape), f"{t.colour} objects")]
            assert kinds.count(more) != kinds.count(fewer)
            assert (kinds.count(more) > kinds.count(fewer)) == (truth == "yes")
        else:
            one, other = text.removeprefix("is the ").split(" larger than the ")
            things = _things(scene)
            assert things[one].size != things[other].size
            assert (things[one].radius > things[other].radius) == (truth == "yes")


def test_yes_and_no_are_balanced() -> None:
    for kind in ("exist", "relation", "compare"):
        answers = [_asked(Scenes(), index)[kind][1] for index in range(600)]
        assert 0.42 < answers.count("yes") / len(answers) < 0.58


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fill_a_fair_part_of_their_square_and_stay_inside(shape: str) -> None:
    v, u = np.mgrid[-1.2:1.2:200j, -1.2:1.2:200j].astype(np.float32)
    covered = inside(shape, u, v)
    assert not covered[(np.abs(u) > 1.03) | (np.abs(v) > 1.03)].any()
    assert 0.25 < covered.sum() * (2.4 / 200) ** 2 / 4 < 0.75


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"split": "dev"}, "train, val, test"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"limit": 0}, "limit"),
        ({"image_size": 8}, "image_size"),
    ],
)
def test_impossible_parameters_are_refused_in_one_line(values: dict[str, str | int], word: str) -> None:
    with pytest.raises(BadInputError, match=word) as caught:
        Scenes(**values)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
