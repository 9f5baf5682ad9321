"""The published data sets in their official layouts: small copies are read sample by sample, broken ones refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from fnabench.data.base import IGNORE_INDEX, Source
from fnabench.errors import BadInputError, FnabenchError, MissingError
from fnabench.vqa_answers import vqa_accuracy

CONF = Path(__file__).resolve().parent.parent / "conf" / "data"
SIZE = (40, 32)


def write_image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(256, size=(SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def configured(name: str, root: Path, **changes: object) -> Any:
    """The source of a yaml, read from a small copy in `root`."""
    return instantiate(
        OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), {"root": str(root)}, changes), _convert_="all"
    )


# Small copies, in the upstream schema


def imagenet(root: Path, numbered: bool = False) -> dict[str, object]:
    folders = [str(n) for n in range(12)] if numbered else [f"n{1440764 + n:08d}" for n in range(12)]
    for position, folder in enumerate(folders):
        for copy in range(2):
            number = 12 * copy + (7 * position) % 12
            write_image(root / folder / f"ILSVRC2012_val_{number:08d}.JPEG", number)
    return {"num_classes": 12, "num_images": 24}


def imagenet_v2(root: Path) -> dict[str, object]:
    return imagenet(root, numbered=True)


def karpathy(root: Path, dataset: str, folder: str, splits: str) -> dict[str, object]:
    entries = []
    for number in range(7):
        filename = f"COCO_val2014_{number:012d}.jpg" if dataset == "coco" else f"{1000 + number}.jpg"
        write_image(root / folder / filename, number)
        captions = [f"caption {k} of {number} " for k in range(6 if number == 2 else 5)]
        entries.append(
            {
                "sentids": [10 * number + k for k in range(len(captions))],
                "imgid": number,
                "sentences": [
                    {"tokens": text.split(), "raw": text, "imgid": number, "sentid": 10 * number + k}
                    for k, text in enumerate(captions)
                ],
                "split": "test" if number < 5 else ("restval" if number == 5 else "val"),
                "filename": filename,
            }
            | ({"filepath": folder, "cocoid": number} if dataset == "coco" else {})
        )
    write_json(root / splits, {"images": entries, "dataset": dataset})
    return {"num_images": 5, "num_captions": 26}


def coco_karpathy(root: Path) -> dict[str, object]:
    return karpathy(root, "coco", "val2014", "dataset_coco.json")


def flickr30k(root: Path) -> dict[str, object]:
    return karpathy(root, "flickr30k", "flickr30k-images", "dataset_flickr30k.json")


def coco_val2017(root: Path) -> dict[str, object]:
    images = []
    for number in (139, 285, 632):
        write_image(root / "val2017" / f"{number:012d}.jpg", number)
        images.append(
            {"license": 2, "file_name": f"{number:012d}.jpg", "coco_url": "", "height": 32, "width": 40, "id": number}
        )
    annotations = [{"image_id": (139, 285, 632)[k % 3], "id": 800 + k, "caption": f"caption {k}\n"} for k in range(16)]
    write_json(
        root / "annotations" / "captions_val2017.json",
        {"info": {}, "licenses": [], "images": images, "annotations": annotations},
    )
    return {"num_images": 3, "num_captions": 16}


def ade20k(root: Path) -> dict[str, object]:
    for split, count in (("validation", 3), ("training", 2)):
        for number in range(count):
            name = f"ADE_{split[:5]}_{number:08d}"
            write_image(root / "images" / split / f"{name}.jpg", number)
            values = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
            values[4:] = 1
            values[8:] = 150
            (root / "annotations" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(root / "annotations" / split / f"{name}.png")
    return {"num_images": 3}


def voc2012(root: Path) -> dict[str, object]:
    names = [f"2007_{number:06d}" for number in range(6)]
    for number, name in enumerate(names):
        write_image(root / "JPEGImages" / f"{name}.jpg", number)
        values = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
        values[4:] = 20
        values[8:9] = 255
        labels = Image.fromarray(values, mode="P")
        labels.putpalette([channel for index in range(256) for channel in (index, 255 - index, 0)])
        (root / "SegmentationClass").mkdir(exist_ok=True)
        labels.save(root / "SegmentationClass" / f"{name}.png")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("\n".join([names[3], names[1], names[5]]) + "\n")
    (lists / "train.txt").write_text("\n".join([names[0], names[2]]) + "\n")
    return {"num_images": 3}


def vqav2_val(root: Path) -> dict[str, object]:
    questions, annotations = [], []
    for number in range(6):
        image = (262148, 42)[number % 2]
        write_image(root / "val2014" / f"COCO_val2014_{image:012d}.jpg", image)
        questions.append({"image_id": image, "question": f"question {number}?", "question_id": 1000 * image + number})
        said = [{"answer": "yes" if k else "no", "answer_confidence": "maybe", "answer_id": k + 1} for k in range(10)]
        annotations.append(
            {
                "question_type": "is the", "multiple_choice_answer": "yes", "answers": said, "image_id": image,
                "answer_type": "yes/no", "question_id": 1000 * image + number,
            }
        )  # fmt: skip
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014"}
    write_json(
        root / "v2_OpenEnded_mscoco_val2014_questions.json",
        head | {"task_type": "Open-Ended", "questions": questions},
    )
    write_json(root / "v2_mscoco_val2014_annotations.json", head | {"annotations": annotations[::-1]})
    return {"num_images": 2, "num_questions": 6}


def textvqa(root: Path) -> dict[str, object]:
    entries = []
    for number in range(5):
        image = ("003a8ae2ef43b901", "00685bc495504d61")[number % 2]
        write_image(root / "train_images" / f"{image}.jpg", number)
        entries.append(
            {
                "question": f"what is written {number}?", "image_id": image, "image_classes": ["Phone"],
                "flickr_original_url": "", "flickr_300k_url": "", "image_width": 40, "image_height": 32,
                "answers": ["nokia"] * 9 + ["no"], "question_tokens": ["what"], "question_id": 34602 + number,
                "set_name": "val",
            }
        )  # fmt: skip
    write_json(root / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_name": "textvqa", "data": entries})
    tokens = [
        {"image_id": entry["image_id"], "ocr_tokens": ["NOKIA", "12:30"], "ocr_info": []} for entry in entries[:2]
    ]
    write_json(root / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": tokens})
    return {"num_images": 2, "num_questions": 5}


def llava_bench_coco(root: Path) -> dict[str, object]:
    asked, answered = [], []
    for number in range(9):
        image = f"{(441147, 42, 7)[number // 3]:012d}.jpg"
        write_image(root / "val2014" / f"COCO_val2014_{image}", number // 3)
        kind = ("conv", "detail", "complex")[number % 3]
        asked.append({"image": image, "text": f"question {number}?", "category": kind, "question_id": number})
        answered.append({"question_id": number, "text": f"A long answer, {number}.", "answer_id": f"a{number}"})
    for name, rows in (("qa90_questions", asked), ("qa90_gpt4_answer", answered[::-1])):
        (root / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return {"num_images": 3, "num_questions": 9}


def write_parquet(path: Path, columns: dict[str, list[object]], features: dict[str, object]) -> None:
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(str(path))


def encoded(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(256, size=(SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def imagenet_hub(root: Path) -> dict[str, object]:
    import datasets

    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=[f"class {n}" for n in range(12)])}
    for part in range(2):
        numbers = range(6 * part, 6 * part + 6)
        write_parquet(
            root / "data" / f"validation-0000{part}-of-00002.parquet",
            {"image": [encoded(number) for number in numbers], "label": [(5 * number) % 12 for number in numbers]},
            features,
        )
    return {"num_classes": 12, "num_images": 12}


def scienceqa(root: Path) -> dict[str, object]:
    import datasets

    text = datasets.Value("string")
    features = {
        "image": datasets.Image(), "question": text, "choices": datasets.Sequence(text),
        "answer": datasets.Value("int8"), "hint": text, "task": text, "grade": text, "subject": text, "topic": text,
        "category": text, "skill": text, "lecture": text, "solution": text,
    }  # fmt: skip
    count = 7
    columns: dict[str, list[object]] = {
        "image": [encoded(number) if number % 3 else None for number in range(count)],
        "question": [f"Which one is {number}?" for number in range(count)],
        "choices": [["iron", "wood", "glass"][: 2 + number % 2] for number in range(count)],
        "answer": [number % 2 for number in range(count)],
        "hint": ["Look at the picture." if number == 1 else "" for number in range(count)],
        "subject": ["natural science" if number % 2 else "social science" for number in range(count)],
    }
    others = {name: ["closed choice"] * count for name in features if name not in columns}
    write_parquet(root / "data" / "test-00000-of-00001-f0e719df791966ff.parquet", columns | others, features)
    return {"num_images": 4}


LAYOUTS = {
    "imagenet": imagenet, "imagenet_v2": imagenet_v2, "imagenet_hub": imagenet_hub, "coco_karpathy": coco_karpathy,
    "coco_val2017": coco_val2017, "flickr30k": flickr30k, "ade20k": ade20k, "voc2012": voc2012,
    "vqav2_val": vqav2_val, "textvqa": textvqa, "scienceqa": scienceqa,
    "llava_bench_coco": llava_bench_coco,
}  # fmt: skip
PROVIDES = {
    "imagenet": "label", "imagenet_v2": "label", "imagenet_hub": "label", "coco_karpathy": "captions",
    "coco_val2017": "captions", "flickr30k": "captions", "ade20k": "mask", "voc2012": "mask", "vqav2_val": "questions",
    "textvqa": "questions", "scienceqa": "questions", "llava_bench_coco": "open_questions",
}  # fmt: skip


def copy_of(name: str, root: Path, **changes: object) -> Any:
    root.mkdir(exist_ok=True)
    return configured(name, root, **(LAYOUTS[name](root) | changes))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of the hub, and what datasets keeps goes away with the test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


# What all of them keep


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_small_copy_is_read_whole(name: str, tmp_path: Path) -> None:
    source: Source = copy_of(name, tmp_path / "data")
    source.check()
    samples = [source[index] for index in range(len(source))]
    assert source.provides == {PROVIDES[name]}
    assert len({sample.id for sample in samples}) == len(samples) >= 3 - (name in ("vqav2_val", "textvqa"))
    for sample in samples:
        assert sample.image is not None
        assert (sample.image.mode, sample.image.size) == ("RGB", SIZE)
        filled = {
            "label": sample.label is not None, "captions": bool(sample.captions), "mask": sample.mask is not None,
            "questions": any(len(question.answers) == 10 for question in sample.questions),
            "open_questions": any(len(question.answers) == 1 for question in sample.questions),
        }  # fmt: skip
        assert {what for what, is_filled in filled.items() if is_filled} == {PROVIDES[name]}
    assert source.fingerprint() == configured(name, tmp_path / "data", **counts(source)).fingerprint()


def counts(source: Any) -> dict[str, object]:
    names = ("num_classes", "num_images", "num_captions", "num_questions")
    return {name: getattr(source, name) for name in names if hasattr(source, name)}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_limit_takes_the_first_and_is_part_of_the_fingerprint(name: str, tmp_path: Path) -> None:
    whole = copy_of(name, tmp_path / "data")
    part = configured(name, tmp_path / "data", **counts(whole), limit=1)
    part.check()
    assert len(part) == 1
    assert part[0].id == whole[0].id
    assert part.fingerprint() != whole.fingerprint()
    with pytest.raises(BadInputError, match=r"data\.limit=10000 must be between 1 and"):
        len(configured(name, tmp_path / "data", **counts(whole), limit=10000))


@pytest.mark.parametrize("name", LAYOUTS)
def test_another_number_of_samples_is_refused(name: str, tmp_path: Path) -> None:
    source = copy_of(name, tmp_path / "data")
    official = OmegaConf.load(CONF / f"{name}.yaml")
    for what, number in counts(source).items():
        assert official[what] >= 30 or what == "num_classes", f"{name} does not guard {what}"
        if what != "num_classes":
            assert number is not None
            with pytest.raises(BadInputError, match=r"has \d+ .*, here are \d+; complete the data"):
                configured(name, tmp_path / "data", **(counts(source) | {what: 4711 % 1000})).check()


@pytest.mark.parametrize("name", LAYOUTS)
def test_data_that_is_not_there_says_where_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        FnabenchError, match=r"data\.root=.*nowhere is not a folder; (.*https?://|give the one)"
    ) as caught:
        configured(name, tmp_path / "nowhere").check()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, MissingError)


@pytest.mark.parametrize(
    "name", [name for name in LAYOUTS if name not in ("imagenet_hub", "scienceqa", "ade20k", "voc2012")]
)
def test_a_missing_image_is_named_before_any_is_read(name: str, tmp_path: Path) -> None:
    source = copy_of(name, tmp_path / "data")
    next(path for path in sorted((tmp_path / "data").rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")).unlink()
    with pytest.raises(BadInputError, match=r"1 of \d+ images in .* are not in|has 24 images, here are 23"):
        source.check()


# Classification


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


# Captions


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


# Masks


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


# Questions


def test_vqav2_gathers_questions_by_image_whatever_the_order_of_the_annotations(tmp_path: Path) -> None:
    source = copy_of("vqav2_val", tmp_path)
    first = source[0]
    assert first.id == "COCO_val2014_000000262148.jpg"
    assert [question.text for question in first.questions] == ["question 0?", "question 2?", "question 4?"]
    assert (first.questions[0].id, first.questions[0].kind) == ("262148000", "yes/no")
    assert first.questions[0].answers == ("no", *["yes"] * 9)
    assert vqa_accuracy("yes", first.questions[0].answers) == 1


def test_questions_and_annotations_of_different_splits_are_refused(tmp_path: Path) -> None:
    source = copy_of("vqav2_val", tmp_path)
    path = tmp_path / "v2_mscoco_val2014_annotations.json"
    content = json.loads(path.read_text())
    write_json(path, content | {"annotations": content["annotations"][1:]})
    with pytest.raises(BadInputError, match="do not belong together"):
        source.check()


def test_textvqa_tells_ocr_tokens_only_where_that_is_asked_for(tmp_path: Path) -> None:
    plain = copy_of("textvqa", tmp_path)
    hinted = configured("textvqa", tmp_path, **counts(plain), ocr="TextVQA_Rosetta_OCR_v0.2_val.json")
    assert plain[0].questions[0].text == "what is written 0?"
    assert hinted[0].questions[0].text == "what is written 0?\nReference OCR token: NOKIA, 12:30"
    assert plain.fingerprint() != hinted.fingerprint()


def test_scienceqa_keeps_the_questions_with_an_image_and_asks_for_a_letter(tmp_path: Path) -> None:
    source = copy_of("scienceqa", tmp_path)
    assert [source[index].id for index in range(4)] == ["1", "2", "4", "5"]
    (question,) = source[0].questions
    assert question.text == "Context: Look at the picture.\nWhich one is 1?\nA. iron\nB. wood\nC. glass"
    assert vqa_accuracy("B", question.answers, "big_vision") == 1
    (question,) = source[1].questions
    assert vqa_accuracy("A", question.answers, "big_vision") == 1
    assert vqa_accuracy("B", question.answers, "big_vision") == 0


def test_llava_bench_gives_each_question_the_one_answer_of_its_id(tmp_path: Path) -> None:
    first = copy_of("llava_bench_coco", tmp_path)[0]
    assert first.id == "COCO_val2014_000000441147.jpg"
    assert [question.kind for question in first.questions] == ["conv", "detail", "complex"]
    assert [question.answers for question in first.questions] == [(f"A long answer, {number}.",) for number in range(3)]


def test_llava_bench_refuses_files_that_are_not_whole(tmp_path: Path) -> None:
    source = copy_of("llava_bench_coco", tmp_path)
    path = tmp_path / "qa90_gpt4_answer.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[1:]))
    with pytest.raises(BadInputError, match="do not belong together: 8 is missing"):
        source.check()
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BadInputError, match="is not one JSON object a line"):
        replace(source).check()
    path.unlink()
    with pytest.raises(MissingError, match=r"qa90_gpt4_answer\.jsonl is missing; download val2014\.zip"):
        replace(source).check()


# The hub


@pytest.mark.parametrize("name", ["imagenet_hub", "scienceqa"])
def test_an_unpinned_repository_is_refused_and_an_absent_one_says_what_to_run(name: str) -> None:
    source = instantiate(OmegaConf.load(CONF / f"{name}.yaml"), _convert_="all")
    with pytest.raises(BadInputError, match=r"data\.revision=None pins nothing; give data\.revision=<commit>"):
        source.check()
    pinned = instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), {"revision": "0123"}), _convert_="all")
    with pytest.raises(
        MissingError, match=r"hf download .* --repo-type dataset --include .* --revision 0123"
    ) as caught:
        pinned.check()
    assert "\n" not in str(caught.value)


def test_a_pinned_repository_is_read_from_the_cache_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "datasets--ILSVRC--imagenet-1k" / "snapshots" / revision
    changes = imagenet_hub(snapshot) | {"revision": revision}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    source = instantiate(OmegaConf.merge(OmegaConf.load(CONF / "imagenet_hub.yaml"), changes), _convert_="all")
    source.check()
    assert [source[index].label for index in range(12)] == [(5 * number) % 12 for number in range(12)]
    assert source.fingerprint() == replace(source, root=str(snapshot)).fingerprint()


def test_a_gated_repository_says_where_its_terms_are(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    from huggingface_hub.errors import GatedRepoError

    def gated(*_: object, **__: object) -> str:
        raise GatedRepoError(
            "gated", response=httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
        )

    monkeypatch.setattr("huggingface_hub.snapshot_download", gated)
    pinned = OmegaConf.merge(OmegaConf.load(CONF / "imagenet_hub.yaml"), {"revision": "0123"})
    with pytest.raises(MissingError, match=r"accept its terms at https://huggingface\.co/datasets/ILSVRC/imagenet-1k"):
        instantiate(pinned, _convert_="all").check()


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    import datasets

    write_parquet(tmp_path / "validation-0.parquet", {"picture": ["a"]}, {"picture": datasets.Value("string")})
    with pytest.raises(BadInputError, match="lacks the column image and label; it has picture"):
        configured("imagenet_hub", tmp_path).check()


def test_an_unreadable_image_is_named_by_its_row(tmp_path: Path) -> None:
    import datasets

    write_parquet(
        tmp_path / "validation-0.parquet",
        {"image": [{"bytes": b"no image", "path": None}], "label": [0]},
        {"image": datasets.Image(decode=False), "label": datasets.Value("int64")},
    )
    with pytest.raises(BadInputError, match="row 0 of imagenet has no readable image"):
        configured("imagenet_hub", tmp_path, num_images=1)[0]
