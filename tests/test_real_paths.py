"""ViT-Ti's real weights on real images through every path that accepts it beside its own head."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from small_world import SmallWorld

from fnabench.record import Record
from fnabench.store import read_record

pytestmark = pytest.mark.assets

NUM_CLASSES = 30


@pytest.fixture
def world(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> SmallWorld:
    monkeypatch.setenv("FNABENCH_ASSETS", str(assets.resolve()))
    return SmallWorld(tmp_path, monkeypatch, capsys)


def exact_and_fna(world: SmallWorld, *arguments: str) -> tuple[Record, Record]:
    given = ("model=vit_tiny", "attention=fna", "probe=none", "tracker=none", "device=cpu", *arguments)
    code, _, err = world.run_as_given(*given)
    assert code == 0, err
    exact, fna = (read_record(folder) for folder in world.records())
    return exact, fna


@pytest.mark.parametrize("method", ["knn", "linear"])
def test_what_is_fitted_on_real_images_knows_them_mirrored(method: str, assets: Path, world: SmallWorld) -> None:
    """In ImageNet's layout; each class has its image and two parts of it, and is asked for by the mirrored image."""
    with (assets / "imagenet_sample" / "labels.csv").open() as table:
        rows = list(csv.DictReader(table))[:NUM_CLASSES]
    for number, row in enumerate(rows):
        with Image.open(assets / "imagenet_sample" / row["file"]) as image:
            whole = image.convert("RGB")
            width, height = image.size
            views = [whole, whole.crop((20, 0, width, height - 20)), whole.crop((0, 20, width - 20, height))]
            places = [("train", f"{number}_{view}.JPEG", each) for view, each in enumerate(views)]
            for split, name, each in [*places, ("val", f"{number}.JPEG", ImageOps.mirror(whole))]:
                folder = world.folder / split / f"n{int(row['label']):08d}"
                folder.mkdir(parents=True, exist_ok=True)
                each.save(folder / name, quality=95)
    exact, fna = exact_and_fna(
        world, "task=classification", f"task.method={method}", "data=imagenet", f"data.root={world.folder / 'val'}",
        f"data.training_root={world.folder / 'train'}", f"data.num_classes={NUM_CLASSES}",
        f"data.num_images={NUM_CLASSES}",
    )  # fmt: skip
    assert exact.score.value > 0.85, "one of 30 by chance"
    assert fna.score.value > 0.7
    assert fna.fitted == exact.fitted is not None, "fitted with exact attention, once"


def test_a_head_fitted_on_camvid_segments_its_validation_images(assets: Path, world: SmallWorld) -> None:
    for split, count in (("train", 24), ("val", 4)):
        for folder, suffix in ((split, ".jpg"), (f"{split}annot", ".png")):
            (world.folder / "camvid" / folder).mkdir(parents=True)
            files = sorted((assets / "camvid" / folder).glob(f"*{suffix}"))
            for file in files[:: len(files) // count][:count]:
                shutil.copy(file, world.folder / "camvid" / folder)
    exact, fna = exact_and_fna(
        world, "task=segmentation", "data=camvid", f"data.root={world.folder / 'camvid'}", "model.image_size=[176,240]"
    )
    assert (exact.num_samples, exact.num_tokens) == (4, 166)
    assert exact.score.value > 0.25, "one of 11 by chance; a single class everywhere gives less than 0.05"
    assert abs(fna.score.value - exact.score.value) < 0.1
