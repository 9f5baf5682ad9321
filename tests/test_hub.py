"""Parquet files of the hub: pinned, cached, gated, broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.utils import instantiate
from layouts import CONF, configured, copy_of, imagenet_hub, write_parquet
from omegaconf import OmegaConf

from fnabench.data.base import Source
from fnabench.errors import BadInputError, MissingError

pytestmark = pytest.mark.usefixtures("no_hub")


@pytest.mark.parametrize("name", ["imagenet_hub", "scienceqa"])
def test_an_unpinned_repository_is_refused_and_an_absent_one_says_what_to_run(name: str) -> None:
    for revision in (None, "main"):
        source = OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), {"revision": revision})
        with pytest.raises(
            BadInputError, match=rf"data\.revision={revision} pins nothing; .*git ls-remote https://hug\S+/datasets/"
        ):
            instantiate(source, _convert_="all").check()
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
    (snapshot / "data" / "validation-00001-of-00002.parquet").unlink()
    with pytest.raises(BadInputError, match="imagenet has 12 images, here are 6"):
        replace(source).check()


def test_a_split_that_is_whole_in_the_cache_is_never_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(*_: object, local_files_only: bool = False, **__: object) -> str:
        asked.append(local_files_only)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    changes = imagenet_hub(tmp_path) | {"revision": "0123456789abcdef0123456789abcdef01234567"}
    source = instantiate(OmegaConf.merge(OmegaConf.load(CONF / "imagenet_hub.yaml"), changes), _convert_="all")
    source.check()
    assert asked == [True]
    (tmp_path / "data" / "validation-00001-of-00002.parquet").unlink()
    with pytest.raises(BadInputError, match="here are 6"):
        replace(source).check()
    assert asked == [True, True, False]


def test_a_limit_downloads_no_more_parts_than_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, cached = tmp_path / "hub", tmp_path / "cache"
    changes = imagenet_hub(hub) | {"revision": "0123456789abcdef0123456789abcdef01234567"}
    downloaded = []

    def snapshot(*_: object, allow_patterns: list[str], local_files_only: bool = False, **__: object) -> str:
        for path in [] if local_files_only else hub.glob(allow_patterns[0]):
            downloaded.append(path.name)
            (cached / "data").mkdir(parents=True, exist_ok=True)
            (cached / "data" / path.name).write_bytes(path.read_bytes())
        return str(cached)

    def limited(limit: int, **given: object) -> Source:
        yaml = OmegaConf.merge(OmegaConf.load(CONF / "imagenet_hub.yaml"), changes, {"limit": limit}, given)
        source: Source = instantiate(yaml, _convert_="all")
        return source

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert len(limited(6)) == 6
    assert [limited(5)[index].label for index in range(5)] == [(5 * number) % 12 for number in range(5)]
    assert downloaded == ["validation-00000-of-00002.parquet"]
    alone = limited(5).fingerprint()
    assert len(limited(7)) == 7
    assert downloaded == ["validation-00000-of-00002.parquet", "validation-00001-of-00002.parquet"]
    assert limited(5).fingerprint() == limited(5, root=str(hub)).fingerprint() == alone
    with pytest.raises(BadInputError, match=r"data\.limit=13 must be between 1 and 12"):
        limited(13).check()


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


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_that_is_not_there_is_named(streaming: bool, tmp_path: Path) -> None:
    source = configured("imagenet_hub", tmp_path, num_images=12, streaming=streaming)
    pq.write_table(pa.table({"picture": ["a"]}), tmp_path / "validation-0.parquet")
    with pytest.raises(BadInputError, match="lacks the column image and label; it has picture"):
        replace(source).check()
    imagenet_hub(tmp_path)
    last = tmp_path / "data" / "validation-00001-of-00002.parquet"
    pq.write_table(pq.read_table(last).drop_columns("label"), last)
    with pytest.raises(BadInputError, match=f"{last} lacks the column label; it has image"):
        replace(source).check()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("column", "given"),
    [("answer", -1), ("answer", 3), ("answer", None), ("choices", ["wood"] * 27), ("choices", None)],
)
def test_an_answer_that_is_none_of_the_lettered_choices_is_refused(
    column: str, given: object, streaming: bool, tmp_path: Path
) -> None:
    source = copy_of("scienceqa", tmp_path, streaming=streaming)
    (path,) = tmp_path.rglob("*.parquet")
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[0] = values[4] = given  # of these rows the second has an image
    field = table.schema.field(column)
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), path)
    with pytest.raises(BadInputError, match=r"row 4 of scienceqa has the answer (-?\d|None) and \d+ choices"):
        source.check()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["imagenet_hub", "scienceqa"])
def test_images_need_no_path_beside_their_bytes(name: str, streaming: bool, tmp_path: Path) -> None:
    with_path = copy_of(name, tmp_path / "with", streaming=streaming)
    without = copy_of(name, tmp_path / "without", streaming=streaming)
    for path in (tmp_path / "without").rglob("*.parquet"):
        table = pq.read_table(path)
        images = [each and {"bytes": each["bytes"]} for each in table["image"].to_pylist()]
        bare = pa.array(images, pa.struct([("bytes", pa.binary())]))
        pq.write_table(table.set_column(0, "image", bare).replace_schema_metadata(), path, row_group_size=2)
    without.check()
    assert len(without) == len(with_path)
    for index in range(len(without)):
        assert without[index].without_image() == with_path[index].without_image()
        assert np.array_equal(without[index].image, with_path[index].image)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["imagenet_hub", "scienceqa"])
@pytest.mark.parametrize("images", [[{"path": "a.png"}], [b"encoded"], ["a.png"]])
def test_images_that_are_not_in_the_file_are_refused(
    images: list[object], name: str, streaming: bool, tmp_path: Path
) -> None:
    source = copy_of(name, tmp_path, streaming=streaming)
    for path in tmp_path.rglob("*.parquet"):
        table = pq.read_table(path)
        column = pa.array(images * len(table))
        pq.write_table(table.set_column(0, "image", column).replace_schema_metadata(), path)
    with pytest.raises(BadInputError, match=r"has images as \S.*; allowed is a struct") as caught:
        source.check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_damaged_file_is_named(streaming: bool, limit: int | None, tmp_path: Path) -> None:
    source = copy_of("imagenet_hub", tmp_path, streaming=streaming, limit=limit)
    path = tmp_path / "data" / "validation-00000-of-00002.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:1000])
    with pytest.raises(BadInputError, match=f"{path} cannot be read as parquet: Parquet magic bytes"):
        replace(source).check()
    path.write_bytes(bytes(len(content) // 2) + content[len(content) // 2 :])
    with pytest.raises(BadInputError, match=f"{path} .*cannot be read as parquet: ") as caught:
        _ = replace(source)[0]
    assert "\n" not in str(caught.value)


def test_an_unreadable_image_is_named_by_its_row(tmp_path: Path) -> None:
    import datasets

    write_parquet(
        tmp_path / "validation-0.parquet",
        {"image": [{"bytes": b"no image", "path": None}], "label": [0]},
        {"image": datasets.Image(decode=False), "label": datasets.Value("int64")},
    )
    with pytest.raises(BadInputError, match="row 0 of imagenet has no readable image"):
        configured("imagenet_hub", tmp_path, num_images=1)[0]
