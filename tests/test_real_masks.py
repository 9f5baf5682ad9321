"""ADE20K and VOC2012 in their official layouts: label maps become class indices."""

from __future__ import annotations

from pathlib import Path

import pytest
from layouts import copy_of

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
