"""The folder source: what its samples are, what its fingerprint sees, and what is wrong with a table."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from builders import image_folder, write_table
from PIL import Image

from fnabench.data.folder import ImageFolder
from fnabench.data.image_files import NUM_HASHED
from fnabench.errors import BadInputError, FnabenchError, MissingError
from fnabench.identity import settings


def refusal(source: ImageFolder) -> str:
    """The one line with which check refuses the source."""
    with pytest.raises(FnabenchError) as caught:
        source.check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Samples


def test_the_samples_are_those_of_the_table_in_its_order(tmp_path: Path) -> None:
    source = image_folder(tmp_path, labels=(3, 1, 2))
    write_table(tmp_path, ["label", "name", "file"], [(7, "seven", "2.png"), (5, "five", "0.png")])
    source.check()
    assert len(source) == 2
    assert [(source[i].id, source[i].label) for i in range(2)] == [("2.png", 7), ("0.png", 5)]
    assert source.largest_label() == 7
    assert source.provides == {"label"}


def test_an_image_is_decoded_to_rgb(tmp_path: Path) -> None:
    source = image_folder(tmp_path, labels=(0, 1))
    Image.new("LA", (9, 5), (40, 128)).save(tmp_path / "0.png")
    image = source[0].image
    assert image is not None
    assert (image.mode, image.size) == ("RGB", (9, 5))
    assert image.getpixel((0, 0)) == (40, 40, 40)


def test_without_a_table_every_image_is_taken_by_name(tmp_path: Path) -> None:
    image_folder(tmp_path, labels=(0, 1))
    (tmp_path / "inner").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "inner" / "x.JPG", format="jpeg")
    (tmp_path / "notes.txt").write_text("no image")
    source = ImageFolder(root=str(tmp_path), labels=None)
    source.check()
    assert [source[i].id for i in range(len(source))] == ["0.png", "1.png", "inner/x.JPG"]
    assert source[0].label is None
    assert source.provides == frozenset()
    assert source.largest_label() is None


def test_a_limit_takes_the_first_samples(tmp_path: Path) -> None:
    source = image_folder(tmp_path, labels=(4, 9, 1), limit=2)
    assert len(source) == 2
    assert source.largest_label() == 9
    assert image_folder(tmp_path, labels=(4, 9, 1), limit=3).largest_label() == 9


# The fingerprint


def test_the_fingerprint_is_that_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "deeper")
    other = ImageFolder(root=str(tmp_path / "there" / "deeper"))
    assert source.fingerprint() == other.fingerprint()
    assert settings(source) == settings(other)


@pytest.mark.parametrize("change", ["label", "content", "order", "name", "limit", "one fewer"])
def test_the_fingerprint_changes_with(change: str, tmp_path: Path) -> None:
    before = image_folder(tmp_path).fingerprint()
    rows = [(f"{position}.png", position) for position in range(5)]
    source = ImageFolder(root=str(tmp_path), limit=4 if change == "limit" else None)
    if change == "label":
        rows[4] = ("4.png", 0)
    elif change == "content":
        damaged = bytearray((tmp_path / "2.png").read_bytes())
        damaged[-20] ^= 1  # the size stays the same
        (tmp_path / "2.png").write_bytes(damaged)
    elif change == "order":
        rows.reverse()
    elif change == "name":
        (tmp_path / "1.png").rename(tmp_path / "one.png")
        rows[1] = ("one.png", 1)
    elif change == "one fewer":
        rows = rows[:4]
    write_table(tmp_path, ["file", "label"], rows)
    assert source.fingerprint() != before


def test_in_a_large_folder_every_size_and_many_contents_count(tmp_path: Path) -> None:
    count = 2 * NUM_HASHED + 1
    for position in range(count):
        (tmp_path / f"{position}.png").write_bytes(bytes([position % 256]) * 4)
    write_table(tmp_path, ["file", "label"], [(f"{position}.png", 0) for position in range(count)])
    before = ImageFolder(root=str(tmp_path)).fingerprint()
    (tmp_path / "2.png").write_bytes(b"\xff" * 4)  # every second one is hashed whole
    whole = ImageFolder(root=str(tmp_path)).fingerprint()
    (tmp_path / "1.png").write_bytes(b"\xff" * 5)  # of the others the size
    sizes = ImageFolder(root=str(tmp_path)).fingerprint()
    assert len({before, whole, sizes}) == 3


# What can be wrong


def test_a_missing_folder_says_where_images_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ImageFolder(root=str(tmp_path / "none"))
    assert refusal(source).endswith("is not a folder; put the images there, or give data.root=...")
    monkeypatch.setenv("FNABENCH_ASSETS", str(tmp_path))
    assert refusal(source).endswith("put the images there, or set FNABENCH_ASSETS or give data.root=...")


def test_a_missing_table_says_which_columns_it_should_have(tmp_path: Path) -> None:
    source = image_folder(tmp_path)
    (tmp_path / "labels.csv").unlink()
    with pytest.raises(MissingError, match=r"a table with the columns file,label; data\.labels=null does without"):
        source.check()


@pytest.mark.parametrize("columns", [["file", "class"], ["image", "label"], ["file"]])
def test_a_table_without_its_columns_is_refused(columns: list[str], tmp_path: Path) -> None:
    image_folder(tmp_path)
    write_table(tmp_path, columns, [["0.png", 1][: len(columns)]])
    assert f"has the columns {', '.join(columns)}; it needs file and label" in refusal(ImageFolder(root=str(tmp_path)))


@pytest.mark.parametrize("label", ["cat", "1.5", "-1", "", " "])
def test_a_label_that_is_no_class_index_is_refused_with_its_line(label: str, tmp_path: Path) -> None:
    image_folder(tmp_path)
    write_table(tmp_path, ["file", "label"], [("0.png", 0), ("1.png", label)])
    assert f"labels.csv line 3: label={label!r} is not a class index" in refusal(ImageFolder(root=str(tmp_path)))


def test_a_line_without_a_label_is_refused(tmp_path: Path) -> None:
    image_folder(tmp_path)
    write_table(tmp_path, ["file", "label"], [("0.png",)])
    assert "line 2: label='' is not a class index" in refusal(ImageFolder(root=str(tmp_path)))


def test_an_image_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    image_folder(tmp_path)
    write_table(tmp_path, ["file", "label"], [("0.png", 0), ("1.png", 1), ("0.png", 2)])
    assert "lists 0.png more than once" in refusal(ImageFolder(root=str(tmp_path)))


def test_images_that_are_not_there_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    source = image_folder(tmp_path)
    (tmp_path / "1.png").unlink()
    (tmp_path / "3.png").unlink()
    assert "2 of 5 images" in refusal(source)
    assert refusal(source).endswith("the first is 1.png")


@pytest.mark.parametrize("damage", ["cut off", "text", "empty"])
def test_an_unreadable_image_is_named(damage: str, tmp_path: Path) -> None:
    source = image_folder(tmp_path)
    path = tmp_path / "1.png"
    path.write_bytes({"cut off": path.read_bytes()[:2000], "text": b"no image", "empty": b""}[damage])
    with pytest.raises(BadInputError, match=r"1\.png is not a readable image"):
        source[1]
    assert source[0].label == 0


@pytest.mark.parametrize("limit", [0, -1, 6])
def test_a_limit_beyond_the_samples_is_refused(limit: int, tmp_path: Path) -> None:
    assert f"data.limit={limit} must be between 1 and 5" in refusal(image_folder(tmp_path, limit=limit))


def test_an_empty_table_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path, ["file", "label"], [])
    assert "names no image" in refusal(ImageFolder(root=str(tmp_path)))
    assert "holds no image" in refusal(ImageFolder(root=str(tmp_path), labels=None))


def test_a_table_as_spreadsheets_write_it_is_read(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbffile,label\r\n0.png,3\r\n")
    source = ImageFolder(root=str(tmp_path))
    source.check()
    assert source[0].label == 3


def test_a_table_that_is_no_text_is_refused_in_one_line(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe\x00,1\n")
    assert "labels.csv is not a table in UTF-8" in refusal(ImageFolder(root=str(tmp_path)))
