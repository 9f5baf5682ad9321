"""ImageNet and ImageNetV2 in their official layouts: folders and columns become labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import saved_timm_vit
from fnabench.tasks.classification import Classification
from layouts import configured, copy_of, encoded, imagenet, write_image, write_parquet

from fnabench.errors import BadInputError, ImpossibleError

pytestmark = pytest.mark.usefixtures("no_hub")


@pytest.mark.parametrize("name", ["imagenet", "imagenet_v2"])
def test_folders_become_labels_and_the_first_images_are_of_many_classes(name: str, tmp_path: Path) -> None:
    source = copy_of(name, tmp_path / "data")
    for sample in (source[index] for index in range(24)):
        assert (7 * sample.label) % 12 == int(sample.id.removesuffix(".JPEG")[-8:]) % 12
    assert len({source[index].label for index in range(12)}) == 12
    assert source.largest_label() == 11


def test_imagenet_has_the_names_of_its_thousand_classes(tmp_path: Path) -> None:
    from open_clip import IMAGENET_CLASSNAMES

    assert configured("imagenet", tmp_path).class_names == tuple(IMAGENET_CLASSNAMES)
    assert configured("imagenet_hub", tmp_path).class_names == tuple(IMAGENET_CLASSNAMES)


def test_a_flat_folder_of_images_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "ILSVRC2012_val_00000001.JPEG", 1)
    with pytest.raises(BadInputError, match="holds 0 folders; imagenet has 1000, one for each class"):
        configured("imagenet", tmp_path).check()


def test_synset_folders_are_not_numbers(tmp_path: Path) -> None:
    changes = imagenet(tmp_path)
    with pytest.raises(BadInputError, match=r"are not named 0\.\.11"):
        configured("imagenet_v2", tmp_path, **changes).check()


def test_an_image_in_two_folders_is_refused(tmp_path: Path) -> None:
    changes = imagenet(tmp_path)
    write_image(tmp_path / "n01440765" / "ILSVRC2012_val_00000000.JPEG", 0)
    with pytest.raises(BadInputError, match="images of the same name in more than one folder"):
        configured("imagenet", tmp_path, **changes).check()


def test_a_task_that_fits_asks_for_the_training_folder(tmp_path: Path) -> None:
    model = saved_timm_vit(tmp_path)
    source = configured("imagenet", tmp_path, **imagenet(tmp_path / "val"))
    with pytest.raises(ImpossibleError, match=r"has not; give data\.training_root=\.\.\. or choose another data="):
        Classification(method="knn").check(model, model.blueprint(), source)


def test_heads_are_fitted_on_the_training_folder(tmp_path: Path) -> None:
    changes = imagenet(tmp_path / "val")
    imagenet(tmp_path / "train")
    training = configured(
        "imagenet", tmp_path / "val", training_root=str(tmp_path / "train"), **changes
    ).training_split()
    assert training is not None
    assert training.root == str(tmp_path / "train")
    assert training.training_split() is None
    assert configured("imagenet", tmp_path / "val", **changes).training_split() is None


def test_a_test_split_without_labels_is_refused(tmp_path: Path) -> None:
    import datasets

    write_parquet(
        tmp_path / "validation-0.parquet",
        {"image": [encoded(0)], "label": [-1]},
        {"image": datasets.Image(), "label": datasets.Value("int64")},
    )
    with pytest.raises(BadInputError, match=r"has the label -1; allowed are 0\.\.999"):
        configured("imagenet_hub", tmp_path, num_images=1).check()
