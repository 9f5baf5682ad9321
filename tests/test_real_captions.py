"""COCO and Flickr30k in their official layouts: Karpathy's splits and COCO's own are told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from layouts import CONF, coco_karpathy, coco_val2017, configured, copy_of, write_json
from omegaconf import OmegaConf

from fnabench.errors import BadInputError


def test_karpathys_test_split_keeps_the_sixth_caption_and_leaves_the_other_splits(tmp_path: Path) -> None:
    source = copy_of("coco_karpathy", tmp_path)
    assert [len(source[index].captions) for index in range(5)] == [5, 5, 6, 5, 5]
    assert source[0].captions[0] == "caption 0 of 0"
    assert source[0].id == "COCO_val2014_000000000000.jpg"


def test_karpathy_is_not_val2017(tmp_path: Path) -> None:
    changes = coco_val2017(tmp_path)
    with pytest.raises(BadInputError, match=r"calls itself None, not coco; .* data=coco_val2017"):
        configured("coco_karpathy", tmp_path, splits="annotations/captions_val2017.json", **changes).check()
    coco_karpathy(tmp_path)
    with pytest.raises(BadInputError, match="another data set: use data=coco_karpathy"):
        configured("coco_val2017", tmp_path, annotations="dataset_coco.json").check()


def test_the_published_sets_are_told_apart_by_their_captions(tmp_path: Path) -> None:
    expected = {name: OmegaConf.load(CONF / f"{name}.yaml").num_captions for name in ("coco_karpathy", "coco_val2017")}
    assert expected == {"coco_karpathy": 25010, "coco_val2017": 25014}


def test_an_image_or_caption_given_twice_is_refused(tmp_path: Path) -> None:
    changes = coco_val2017(tmp_path)
    path = tmp_path / "annotations" / "captions_val2017.json"
    content = json.loads(path.read_text())
    write_json(path, content | {"annotations": [*content["annotations"], content["annotations"][0]]})
    with pytest.raises(BadInputError, match="an id to more than one image or caption"):
        configured("coco_val2017", tmp_path, **changes).check()
    changes = coco_karpathy(tmp_path)
    content = json.loads((tmp_path / "dataset_coco.json").read_text())
    write_json(tmp_path / "dataset_coco.json", content | {"images": [*content["images"], content["images"][0]]})
    with pytest.raises(BadInputError, match="lists an image of split test more than once"):
        configured("coco_karpathy", tmp_path, **changes).check()
