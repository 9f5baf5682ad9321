"""Real images in the official layouts of the published data sets: what comes out is what the samples give."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from layouts import configured
from PIL import Image
from small_world import SmallWorld

from fnabench.data.captions import CaptionFolder
from fnabench.data.masks import MaskFolder
from fnabench.store import read_record

pytestmark = pytest.mark.assets


def test_the_sample_in_imagenets_layout_gives_its_own_accuracy(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FNABENCH_ASSETS", str(assets.resolve()))
    root = tmp_path / "val"
    for label in range(1000):
        (root / f"n{label:08d}").mkdir(parents=True)
    with (assets / "imagenet_sample" / "labels.csv").open() as table:
        for number, row in enumerate(list(csv.DictReader(table))[:100]):
            place = root / f"n{int(row['label']):08d}" / f"ILSVRC2012_val_{number:08d}.JPEG"
            shutil.copy(assets / "imagenet_sample" / row["file"], place)
    (tmp_path / "world").mkdir()
    world = SmallWorld(tmp_path / "world", monkeypatch, capsys)
    code, _, err = world.run_as_given(
        "task=classification", "data=imagenet", f"data.root={root}", "data.num_images=100", "model=vit_tiny",
        "attention=exact", "probe=none", "tracker=none",
    )  # fmt: skip
    assert code == 0, err
    (folder,) = world.records()
    assert read_record(folder).scores["top1"].value == pytest.approx(0.89), (
        "what data=imagenet_sample data.limit=100 gives"
    )


def test_real_captions_in_karpathys_and_cocos_layout_are_the_same(assets: Path, tmp_path: Path) -> None:
    own = CaptionFolder(root=str(assets / "flickr_sample"), limit=12)
    samples = [own[index] for index in range(12)]
    for folder in ("val2014", "val2017", "annotations"):
        (tmp_path / folder).mkdir()
    entries, images, captions = [], [], []
    for number, sample in enumerate(samples):
        for folder in ("val2014", "val2017"):
            shutil.copy(assets / "flickr_sample" / "images" / sample.id, tmp_path / folder / sample.id)
        sentences = [{"raw": text, "sentid": 5 * number + k} for k, text in enumerate(sample.captions)]
        entries.append({"filepath": "val2014", "filename": sample.id, "split": "test", "sentences": sentences})
        images.append({"id": number, "file_name": sample.id})
        captions += [{"id": each["sentid"], "image_id": number, "caption": each["raw"]} for each in sentences]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": entries}))
    (tmp_path / "annotations" / "captions_val2017.json").write_text(
        json.dumps({"images": images, "annotations": captions})
    )
    for name in ("coco_karpathy", "coco_val2017"):
        source = configured(name, tmp_path, num_images=12, num_captions=60)
        source.check()
        for index, sample in enumerate(samples):
            assert source[index].captions == sample.captions
            assert np.array_equal(np.array(source[index].image), np.array(sample.image))


@pytest.fixture
def camvid(assets: Path) -> MaskFolder:
    source: MaskFolder = configured("camvid", assets / "camvid", limit=5)
    return source


@pytest.mark.parametrize("name", ["ade20k", "voc2012"])
def test_real_label_maps_in_ades_and_vocs_layout_are_the_same(name: str, camvid: MaskFolder, tmp_path: Path) -> None:
    source = configured(name, tmp_path, num_images=5)
    for folder in (source.images, source.masks):
        (tmp_path / folder).mkdir(parents=True)
    for index in range(5):
        sample = camvid[index]
        assert sample.image is not None
        assert sample.mask is not None
        sample.image.save(tmp_path / source.images / sample.id)
        values = np.where(sample.mask == 255, source.ignored, sample.mask.astype(int) + source.first_value)
        Image.fromarray(values.astype(np.uint8)).save((tmp_path / source.masks / sample.id).with_suffix(".png"))
    if source.listed_in:
        (tmp_path / source.listed_in).parent.mkdir(parents=True)
        (tmp_path / source.listed_in).write_text("\n".join(Path(camvid[index].id).stem for index in range(5)))
    source.check()
    for index in range(5):
        assert np.array_equal(source[index].mask, camvid[index].mask)
        assert len(np.unique(source[index].mask)) > 5


def test_real_label_maps_in_cityscapes_layout_are_the_same(camvid: MaskFolder, tmp_path: Path) -> None:
    label_ids = np.array([23, 11, 17, 7, 8, 21, 20, 13, 26, 24, 33] + [3] * 245)  # 3 does not count
    train_ids = np.array([10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 18] + [255] * 245)
    source = configured("cityscapes", tmp_path, num_images=5)
    for index in range(5):
        sample = camvid[index]
        assert sample.image is not None
        assert sample.mask is not None
        for folder, ending, image in (
            (source.images, "leftImg8bit", sample.image),
            (source.masks, "gtFine_labelIds", Image.fromarray(label_ids[sample.mask].astype(np.uint8))),
        ):
            (tmp_path / folder / "cambridge").mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / folder / "cambridge" / f"cambridge_000000_{index:06d}_{ending}.png")
    source.check()
    for index in range(5):
        expected = camvid[index]
        assert np.array_equal(source[index].mask, train_ids[expected.mask])
        assert np.array_equal(np.array(source[index].image), np.array(expected.image))
        assert len(np.unique(source[index].mask)) > 5
