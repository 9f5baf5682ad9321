"""ADE20K, VOC2012 and Cityscapes in their official layouts: label maps become class indices."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from layouts import copy_of
from PIL import Image

from fnabench.data.base import IGNORE_INDEX
from fnabench.errors import BadInputError, MissingError


def test_ade20k_maps_its_first_class_to_0_and_other_to_ignored(tmp_path: Path) -> None:
    source = copy_of("ade20k", tmp_path)
    mask = source[0].mask
    assert [int(mask[row, 0]) for row in (0, 4, 8)] == [IGNORE_INDEX, 0, 149]
    assert len(source.mask_names) == 150
    assert len(source.training_split()) == 2


def test_voc_reads_the_list_and_the_indices_of_a_palette(tmp_path: Path) -> None:
    source = copy_of("voc2012", tmp_path)
    assert [source[index].id for index in range(3)] == ["2007_000003.jpg", "2007_000001.jpg", "2007_000005.jpg"]
    assert [int(source[0].mask[row, 0]) for row in (0, 4, 8)] == [0, 20, IGNORE_INDEX]
    assert len(source.mask_names) == 21
    training = source.training_split()
    training.check()
    assert [training[index].id for index in range(len(training))] == ["2007_000000.jpg", "2007_000002.jpg"]


EVALUATED = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
"""Cityscapes' labelIds of the classes that count; 0..33 are in its files."""


def test_cityscapes_finds_images_and_label_maps_city_by_city(tmp_path: Path) -> None:
    source = copy_of("cityscapes", tmp_path)
    source.check()
    assert [source[index].id for index in (0, 4)] == [
        "frankfurt/frankfurt_000000_000294_leftImg8bit.png", "lindau/lindau_000001_000295_leftImg8bit.png",
    ]  # fmt: skip
    training = source.training_split()
    training.check()
    assert [training[index].id.split("/")[0] for index in range(len(training))] == ["aachen", "aachen"]


def test_cityscapes_keeps_the_classes_that_are_evaluated(tmp_path: Path) -> None:
    source = copy_of("cityscapes", tmp_path)
    classes = source[0].mask.ravel()[:34].tolist()
    assert source.mask_names == list(EVALUATED)
    for value in range(34):
        known = [number for number, label_id in enumerate(EVALUATED.values()) if label_id == value]
        assert classes[value] == (known[0] if known else IGNORE_INDEX)


def test_cityscapes_refuses_a_value_that_it_does_not_know_and_a_label_map_that_is_missing(tmp_path: Path) -> None:
    source = copy_of("cityscapes", tmp_path)
    path = tmp_path / "gtFine" / "val" / "lindau" / "lindau_000001_000295_gtFine_labelIds.png"
    before = source.fingerprint()
    Image.fromarray(np.full((32, 40), 34, dtype=np.uint8)).save(path)
    assert source.fingerprint() != before
    with pytest.raises(BadInputError, match=r"lindau_000001_000295_gtFine_labelIds\.png has the value 34.* 0\.\.33"):
        source[4]
    path.unlink()
    with pytest.raises(BadInputError, match=r"000295_leftImg8bit\.png has no label map .*000295_gtFine_labelIds\.png"):
        source.check()


@pytest.mark.parametrize("folder", ["leftImg8bit", "gtFine"])
def test_cityscapes_asks_for_the_archive_that_was_not_unpacked(folder: str, tmp_path: Path) -> None:
    source = copy_of("cityscapes", tmp_path)
    shutil.rmtree(tmp_path / folder)
    with pytest.raises(
        MissingError, match=r"val is not a folder; register at .*, download .*zip and unpack both there"
    ):
        source.check()


def test_a_list_that_is_not_there_or_lists_an_image_twice_is_refused(tmp_path: Path) -> None:
    source = copy_of("voc2012", tmp_path)
    path = tmp_path / "ImageSets" / "Segmentation" / "val.txt"
    path.write_text("2007_000001\n2007_000001\n")
    with pytest.raises(BadInputError, match="lists an image more than once"):
        source.check()
    path.write_text("2007_999999\n")
    with pytest.raises(BadInputError, match="lists 2007_999999, which is not in"):
        source.check()
    path.unlink()
    with pytest.raises(MissingError, match=r"val\.txt is missing"):
        source.check()
