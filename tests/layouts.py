"""Small copies of the published data sets in their official layouts, in the upstream schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

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
    numbers = (139, 285, 632, 724, 776)
    for number in numbers:
        write_image(root / "val2017" / f"{number:012d}.jpg", number)
        images.append(
            {"license": 2, "file_name": f"{number:012d}.jpg", "coco_url": "", "height": 32, "width": 40, "id": number}
        )
    annotations = [{"image_id": numbers[k % 5], "id": 800 + k, "caption": f"caption {k}\n"} for k in range(27)]
    write_json(
        root / "annotations" / "captions_val2017.json",
        {"info": {}, "licenses": [], "images": images, "annotations": annotations},
    )
    return {"num_images": 5, "num_captions": 27}


def ade20k(root: Path) -> dict[str, object]:
    for split, count in (("validation", 5), ("training", 2)):
        for number in range(count):
            name = f"ADE_{split[:5]}_{number:08d}"
            write_image(root / "images" / split / f"{name}.jpg", number)
            values = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
            values[4:] = 1
            values[8:] = 150
            (root / "annotations" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(root / "annotations" / split / f"{name}.png")
    return {"num_images": 5}


def voc2012(root: Path) -> dict[str, object]:
    names = [f"2007_{number:06d}" for number in range(8)]
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
    (lists / "val.txt").write_text("\n".join([names[3], names[1], *names[5:]]) + "\n")
    (lists / "train.txt").write_text("\n".join([names[0], names[2]]) + "\n")
    return {"num_images": 5}


def cityscapes(root: Path) -> dict[str, object]:
    places = [("val", "lindau", 2), ("val", "frankfurt", 3), ("train", "aachen", 2)]
    for split, city, count in places:
        for number in range(count):
            name = f"{city}_{number:06d}_{294 + number:06d}"
            write_image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", number)
            values = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
            values.flat[:34] = range(34)
            folder = root / "gtFine" / split / city
            folder.mkdir(parents=True, exist_ok=True)
            for kind in ("labelIds", "instanceIds", "color"):
                Image.fromarray(values).save(folder / f"{name}_gtFine_{kind}.png")
    return {"num_images": 5}


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
    "cityscapes": cityscapes, "vqav2_val": vqav2_val, "textvqa": textvqa, "scienceqa": scienceqa,
    "llava_bench_coco": llava_bench_coco,
}  # fmt: skip
PROVIDES = {
    "imagenet": "label", "imagenet_v2": "label", "imagenet_hub": "label", "coco_karpathy": "captions",
    "coco_val2017": "captions", "flickr30k": "captions", "ade20k": "mask", "voc2012": "mask",
    "cityscapes": "mask", "vqav2_val": "questions",
    "textvqa": "questions", "scienceqa": "questions", "llava_bench_coco": "open_questions",
}  # fmt: skip


def copy_of(name: str, root: Path, **changes: object) -> Any:
    root.mkdir(exist_ok=True)
    return configured(name, root, **(LAYOUTS[name](root) | changes))


def counts(source: Any) -> dict[str, object]:
    names = ("num_classes", "num_images", "num_captions", "num_questions")
    return {name: getattr(source, name) for name in names if hasattr(source, name)}
