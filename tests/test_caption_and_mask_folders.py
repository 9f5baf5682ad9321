"""Captions and label maps beside images: read whole, or refused in one line before any image is decoded."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fnabench.data.base import IGNORE_INDEX
from fnabench.data.captions import CaptionFolder
from fnabench.data.masks import MaskFolder
from fnabench.errors import BadInputError, MissingError


@pytest.fixture
def captioned(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("b.png", "a.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / name)
    (tmp_path / "captions.csv").write_text("image,caption\nb.png,one\na.png,two\nb.png, three \n")
    return tmp_path


@pytest.fixture
def masked(tmp_path):
    for split in ("val", "train"):
        (tmp_path / split).mkdir()
        (tmp_path / f"{split}annot").mkdir()
        for number in range(2):
            Image.new("RGB", (6, 4)).save(tmp_path / split / f"{number}.jpg")
            values = np.full((4, 6), number, dtype=np.uint8)
            values[0, 0] = 11
            Image.fromarray(values).save(tmp_path / f"{split}annot" / f"{number}.png")
    return tmp_path


def masks(root, **changes):
    options = {"images": "val", "masks": "valannot", "mask_names": ("a", "b"), "ignored": 11}
    return MaskFolder(root=str(root), **options | changes)


def test_captions_are_gathered_by_image_in_the_order_of_the_table(captioned):
    source = CaptionFolder(root=str(captioned))
    source.check()
    assert [(sample.id, sample.captions) for sample in (source[0], source[1])] == [
        ("b.png", ("one", "three")),
        ("a.png", ("two",)),
    ]


def test_a_caption_of_an_image_that_is_not_there_is_refused(captioned):
    with (captioned / "captions.csv").open("a") as file:
        file.write("ghost.png,boo\n")
    with pytest.raises(BadInputError, match=r"1 of 3 images.*ghost\.png"):
        CaptionFolder(root=str(captioned)).check()


def test_an_empty_caption_is_refused_with_its_line(captioned):
    with (captioned / "captions.csv").open("a") as file:
        file.write("a.png,\n")
    with pytest.raises(BadInputError, match="line 5"):
        CaptionFolder(root=str(captioned)).check()


def test_a_changed_caption_changes_the_fingerprint(captioned):
    before = CaptionFolder(root=str(captioned)).fingerprint()
    table = captioned / "captions.csv"
    table.write_text(table.read_text().replace("two", "too"))
    assert CaptionFolder(root=str(captioned)).fingerprint() != before


def test_masks_are_read_with_the_ignored_value_mapped(masked):
    source = masks(masked)
    source.check()
    expected = np.ones((4, 6), dtype=np.uint8)
    expected[0, 0] = IGNORE_INDEX
    np.testing.assert_array_equal(source[1].mask, expected)


@pytest.mark.parametrize("value", [2, 10, 255, 256, 257])
def test_a_value_that_is_no_class_is_refused_and_not_taken_for_another(masked, value):
    values = np.ones((4, 6), dtype=np.uint16)
    values[2, 3] = value
    Image.fromarray(values).save(masked / "valannot" / "1.png")
    with pytest.raises(BadInputError, match=rf"1\.png has the value {value}; allowed are the classes 0\.\.1 and 11"):
        masks(masked)[1]


def test_a_value_below_the_first_class_is_refused(masked):
    with pytest.raises(BadInputError, match=r"0\.png has the value 0; allowed are the classes 1\.\.2 and 11"):
        masks(masked, first_value=1)[0]


def test_the_training_split_reads_the_training_folders(masked):
    assert masks(masked).training_split() is None
    source = masks(masked, training_images="train", training_masks="trainannot", limit=1)
    training = source.training_split()
    assert len(training) == 2
    assert training.training_split() is None
    assert training.fingerprint() != source.fingerprint()


def test_a_mask_of_another_size_is_refused(masked):
    Image.new("L", (5, 4)).save(masked / "valannot" / "0.png")
    with pytest.raises(BadInputError, match="5x4 pixels, its image 6x4"):
        masks(masked).check()


def test_an_image_without_mask_is_refused(masked):
    (masked / "valannot" / "1.png").unlink()
    with pytest.raises(BadInputError, match="has no label map"):
        masks(masked).check()


def test_a_changed_mask_changes_the_fingerprint(masked):
    before = masks(masked).fingerprint()
    Image.new("L", (6, 4)).save(masked / "valannot" / "0.png")
    assert masks(masked).fingerprint() != before


@pytest.mark.parametrize("make", [lambda: CaptionFolder(root="nowhere"), lambda: masks("nowhere")])
def test_a_folder_that_is_not_there_is_refused(make):
    with pytest.raises(MissingError, match="is not a folder"):
        make().check()
