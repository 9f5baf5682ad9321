"""Sliding windows: where they lie, how they are put together, and segmentation through them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fnabench.tasks.segmentation import Segmentation
from PIL import Image
from torch.nn.functional import avg_pool2d, interpolate

from fnabench.data.base import Sample
from fnabench.errors import BadInputError
from fnabench.loader import Loader
from fnabench.models.base import Backbone
from fnabench.windows import Box, cover, stitch

SLIDE = Segmentation(inference="slide", window=0.5, stride=0.5)


def test_windows_of_dinov2s_protocol_on_an_image_of_two_to_three():
    boxes = cover((512, 768), (518, 518), window=1, stride=2 / 3)
    assert boxes == [Box(0, 0, 512, 512), Box(0, 256, 512, 768)]
    boxes = cover((512, 1024), (518, 518), window=1, stride=2 / 3)
    assert [box.left for box in boxes] == [0, 341, 512]


def test_windows_have_the_proportions_of_the_models_input():
    assert cover((100, 400), (50, 100), window=1, stride=1) == [Box(0, 0, 100, 200), Box(0, 200, 100, 400)]
    assert cover((400, 100), (50, 100), window=1, stride=1)[:2] == [Box(0, 0, 50, 100), Box(50, 0, 100, 100)]


@pytest.mark.parametrize(("window", "stride"), [(1.0, 1.0), (0.5, 2 / 3), (0.31, 0.4), (0.01, 1.0), (1.3, 0.1)])
@pytest.mark.parametrize("size", [(7, 31), (40, 23), (16, 16)])
def test_windows_of_one_size_cover_every_pixel_and_stay_inside(size, window, stride):
    boxes = cover(size, (16, 24), window, stride)
    covered = np.zeros(size, dtype=int)
    for box in boxes:
        covered[box.pixels] += 1
    assert covered.min() >= 1
    assert len(set(boxes)) == len(boxes)
    assert len({(box.bottom - box.top, box.right - box.left) for box in boxes}) == 1
    assert all(0 <= box.top < box.bottom <= size[0] and 0 <= box.left < box.right <= size[1] for box in boxes)


def test_a_window_larger_than_the_image_is_the_image():
    assert cover((30, 70), (16, 16), window=5, stride=0.1) == [Box(0, 0, 30, 70)]


def test_where_windows_overlap_the_mean_counts():
    maps = torch.tensor([[[[1.0]], [[5.0]]], [[[3.0]], [[-5.0]]], [[[8.0]], [[0.0]]]])  # three windows, two classes
    stitched = stitch(maps, [Box(0, 0, 1, 2), Box(0, 1, 1, 3), Box(0, 1, 1, 3)], (1, 3))
    torch.testing.assert_close(stitched, torch.tensor([[[1.0, 4.0, 5.5]], [[5.0, 0.0, -2.5]]]))


def test_one_window_is_the_plain_upsampling():
    maps = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    plain = interpolate(maps, size=(13, 11), mode="bilinear", align_corners=False)[0]
    assert torch.equal(stitch(maps, [Box(0, 0, 13, 11)], (13, 11)), plain)


# Segmentation through windows, on a backbone whose patch tokens are mean colours


class Colours(Backbone):
    """Patches of 4 x 4 pixels."""

    seen: list[int]

    def __init__(self):
        self.seen = []

    def encode_patches(self, images):
        self.seen.append(len(images))
        return avg_pool2d(images, 4).flatten(2).mT

    def patch_grid(self, images):
        return images.shape[-2] // 4, images.shape[-1] // 4


class Scenery:
    """Images of three colours in stripes of the given width; no two images have the same size."""

    mask_names = ("red", "green", "blue")

    def __init__(self, stripe, count=3):
        self.stripe, self.count = stripe, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        stripes = (np.arange(48 + 16 * index) // self.stripe + index) % 3
        mask = np.broadcast_to(stripes, (48, len(stripes))).astype(np.uint8)
        pixels = (255 * np.eye(3))[mask].astype(np.uint8)
        return Sample(id=str(index), image=Image.fromarray(pixels), mask=mask)


def as_input(image):
    """To 16 x 16 pixels."""
    return torch.from_numpy(np.array(image.resize((16, 16), Image.Resampling.BOX))).permute(2, 0, 1).float() / 255


def loader(source, **changes):
    plain = Loader(
        source=source, transform=as_input, batch_size=2, num_workers=0, device=torch.device("cpu"), dtype=torch.float32
    )
    return replace(plain, **changes)


HEAD = {"weight": torch.eye(3), "bias": torch.zeros(3)}


def evaluate(task, source, **changes):
    return task.evaluate(Colours(), loader(source, **changes), HEAD).main


def test_a_window_larger_than_every_image_gives_what_the_whole_image_gives():
    whole, slide = (
        evaluate(task, Scenery(stripe=9)) for task in (Segmentation(), replace(SLIDE, window=9.0, stride=0.3))
    )
    assert whole.ids == slide.ids
    assert np.array_equal(whole.numerator, slide.numerator)
    assert np.array_equal(whole.denominator, slide.denominator)
    assert np.array_equal(whole.predictions, slide.predictions)
    assert 0.2 < whole.value < 1


def test_windows_see_stripes_that_the_whole_image_blurs():
    whole, slide = (evaluate(task, Scenery(stripe=4)) for task in (Segmentation(), SLIDE))
    assert slide.value > whole.value + 0.2


def test_the_score_is_taken_at_the_size_of_the_labels():
    source = Scenery(stripe=16)
    pixels = sum(source[index].mask.size for index in range(3))
    scores = evaluate(SLIDE, source)
    wrong = (scores.denominator - scores.numerator).sum() / 2  # a wrong pixel is in the union of two classes
    assert scores.numerator.sum() + wrong == pixels


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 100}, {"num_workers": 1}])
def test_neither_batches_nor_workers_change_the_score(changes):
    plain, other = evaluate(SLIDE, Scenery(stripe=5)), evaluate(SLIDE, Scenery(stripe=5), **changes)
    assert np.array_equal(plain.numerator, other.numerator)
    assert plain.ids == other.ids


def test_no_batch_is_larger_than_the_loaders():
    backbone = Colours()
    SLIDE.evaluate(backbone, loader(Scenery(stripe=5)), HEAD)
    assert max(backbone.seen) == 2
    assert sum(backbone.seen) == 3 * (3 + 5 + 6)  # 24 px wide, 12 px apart, in images of 48 x 48, 64 and 80


def test_the_head_is_fitted_on_windows_too():
    source = Scenery(stripe=6)
    fitted = {task: task.fit(Colours(), loader(source)) for task in (SLIDE, Segmentation())}
    scores = {task: SLIDE.evaluate(Colours(), loader(source), head).main for task, head in fitted.items()}
    assert scores[SLIDE].value > 0.9
    assert not torch.allclose(fitted[SLIDE]["weight"], fitted[Segmentation()]["weight"], rtol=0.1)


def test_a_wrong_way_window_or_stride_is_refused():
    with pytest.raises(BadInputError, match=r"task\.inference=crop is not known; allowed: whole, slide"):
        Segmentation(inference="crop")
    for changes in ({"window": 0.0}, {"window": "wide"}, {"stride": 0.0}, {"stride": 1.5}):
        with pytest.raises(BadInputError, match=r"must be above 0, task\.stride=.* above 0 and at most 1"):
            Segmentation(inference="slide", **changes)
    for changes in ({"window": 0.5}, {"stride": 0.5}, {"stride": "wide"}):
        with pytest.raises(
            BadInputError, match=r"=\S+ is of sliding windows; give task\.inference=slide or leave it out"
        ):
            Segmentation(**changes)


def test_without_a_window_and_a_stride_those_of_dinov2_are_used():
    source = Scenery(stripe=5)
    given, other = (evaluate(task, source) for task in (replace(SLIDE, window=1, stride=2 / 3), SLIDE))
    default = evaluate(Segmentation(inference="slide"), source)
    assert np.array_equal(default.numerator, given.numerator)
    assert not np.array_equal(default.numerator, other.numerator)
