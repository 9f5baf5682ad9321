"""Streamed parquet files: samples and records of downloaded ones, and nothing fetched but what is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub_server import COMMIT, Served, hub_of
from hydra.utils import instantiate
from layouts import CONF, LAYOUTS, encoded, write_parquet
from omegaconf import OmegaConf
from small_world import NUM_CLASSES, SmallWorld
from torchvision.transforms.functional import to_tensor

from fnabench.data.base import Sample, Source
from fnabench.data.hub import HASHED_BYTES
from fnabench.errors import BadInputError, MissingError
from fnabench.identity import settings
from fnabench.loader import Loader
from fnabench.store import SAMPLES, read_record

NAMES = ("imagenet_hub", "scienceqa")
ROW_GROUP = 2


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub may be asked; where its libraries keep things, which is nowhere."""
    kept = tmp_path / "kept"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(kept / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(kept / "datasets"))
    return kept


@pytest.fixture
def hub(online: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    (tmp_path / "served").mkdir()
    with hub_of(tmp_path / "served") as served:
        ask(served, monkeypatch)
        yield served


def ask(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    address = served.address
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )


def of_yaml(name: str, **changes: object) -> Source:
    source: Source = instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), changes), _convert_="all")
    return source


def in_row_groups(folder: Path) -> None:
    for path in folder.rglob("*.parquet"):
        pq.write_table(pq.read_table(path), path, row_group_size=ROW_GROUP)


def pair(name: str, folder: Path, **changes: object) -> tuple[Any, Any]:
    """The data set of a yaml, small, in row groups: from its folder, and streamed from the hub that serves it."""
    given = LAYOUTS[name](folder) | {"revision": COMMIT} | changes
    in_row_groups(folder)
    return of_yaml(name, **given, root=str(folder)), of_yaml(name, **given, streaming=True)


def known(sample: Sample) -> tuple[object, ...]:
    return sample.without_image(), np.array(sample.image).tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", [None, 3])
def test_samples_fingerprint_and_settings_are_those_of_the_files(
    name: str, limit: int | None, tmp_path: Path, hub: Served, online: Path
) -> None:
    own, streamed = pair(name, tmp_path / "served", limit=limit)
    streamed.check()
    samples = [known(streamed[index]) for index in range(len(streamed))]
    fingerprint = streamed.fingerprint()
    assert hub.fetched
    assert not online.exists(), "nothing is kept on disk"
    local = replace(own, streaming=True)
    assert samples == [known(own[index]) for index in range(len(own))]
    assert samples == [known(local[index]) for index in range(len(local))]
    assert fingerprint == own.fingerprint() == local.fingerprint()
    assert settings(streamed) == settings(own)


def test_a_row_group_is_one_request_and_no_other_is_touched(tmp_path: Path, hub: Served) -> None:
    _, streamed = pair("imagenet_hub", tmp_path / "served", limit=3)
    path = tmp_path / "served" / "data" / "validation-00000-of-00002.parquet"
    starts = [pq.read_metadata(path).row_group(group).column(0).dictionary_page_offset for group in range(3)]
    streamed.check()
    del hub.fetched[:]
    for index in (0, 1, 2, 1, 0):
        _ = streamed[index]
    assert [(name, first) for name, first, _ in hub.fetched] == [(path.name, starts[group]) for group in (0, 1, 0)]
    assert all(first + length <= starts[2] for _, first, length in hub.fetched)


@pytest.mark.parametrize("name", NAMES)
def test_the_checks_read_no_image(name: str, tmp_path: Path, hub: Served) -> None:
    _, streamed = pair(name, tmp_path / "served")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "served").rglob("*.parquet")}
    streamed.check()
    inside = [length for file, first, length in hub.fetched if first + length < sizes[file]]
    assert 0 < sum(inside) < 1000, "an image alone has 4,000 bytes"


def test_where_no_row_lacks_its_image_the_file_says_so(tmp_path: Path, hub: Served) -> None:
    _, streamed = pair("scienceqa", tmp_path / "served", num_images=1)
    (path,) = (tmp_path / "served").rglob("*.parquet")
    with_image = pq.read_table(path).slice(1, 1)
    bare = with_image["image"].combine_chunks().field("bytes")
    pq.write_table(with_image.set_column(0, "image", pa.StructArray.from_arrays([bare], ["bytes"])), path)
    streamed.check()
    inside = [length for _, first, length in hub.fetched if first + length < path.stat().st_size]
    assert sum(inside) < 1000, "the image has 4,000 bytes"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_passes_over_them_more_than_once(num_workers: int, tmp_path: Path, hub: Served) -> None:
    own, streamed = pair("imagenet_hub", tmp_path / "served")
    passes = [
        Loader(
            source=source, transform=to_tensor, batch_size=5, num_workers=num_workers, device=torch.device("cpu"),
            dtype=torch.float32,
        )
        for source in (own, streamed)
    ]  # fmt: skip
    for _ in range(2):
        expected, given = ([batch.images for batch in each] for each in passes)
        assert torch.equal(torch.cat(expected), torch.cat(given))


def test_a_run_has_the_key_and_the_scores_of_a_run_on_the_files(
    tmp_path: Path, hub: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    folder = tmp_path / "served"
    classes = datasets.ClassLabel(names=[f"class {n}" for n in range(NUM_CLASSES)])
    write_parquet(
        folder / "data" / "validation-00000-of-00001.parquet",
        {"image": [encoded(n) for n in range(9)], "label": [n % NUM_CLASSES for n in range(9)]},
        {"image": datasets.Image(), "label": classes},
    )
    in_row_groups(folder)
    world = SmallWorld(tmp_path, monkeypatch, capsys)
    given = {"data": "imagenet_hub", "data__num_classes": str(NUM_CLASSES), "data__num_images": "9"}
    given |= {"data__revision": COMMIT, "loader.num_workers": "1"}
    found = {}
    streamed = {"data__root": None, "data__streaming": "true"}
    fetched = []
    for place in ({"data__root": str(folder)}, streamed, streamed | {"data__cache": "decoded"}):
        del hub.fetched[:]
        world.results = tmp_path / f"results {len(found)}"
        code, _, err = world.run(**given | place, results_dir=str(world.results))
        assert code == 0, err
        found[len(found)] = {
            each.name: (read_record(each).scores, (each / SAMPLES).read_bytes()) for each in world.records()
        }
        fetched.append(sum(4000 < length < HASHED_BYTES for _, _, length in hub.fetched))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 2, "exact and fna"
    assert fetched == [0, 10, 5], "five row groups in each of two passes, or in the first alone"


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_streamed_is_told_in_one_line(
    name: str, tmp_path: Path, hub: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, streamed = pair(name, tmp_path / "served")
    with pytest.raises(BadInputError, match=r"data\.revision=main pins nothing"):
        replace(streamed, revision="main").check()
    with pytest.raises(
        MissingError,
        match=r"cannot be streamed .*; where there is a network, run: hf download .* and leave out data\.streaming",
    ):
        replace(streamed, revision="abcdef").check()
    with pytest.raises(BadInputError, match=r"has 4,711 .*, here are \d"):
        replace(streamed, num_images=4711).check()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    streamed = replace(streamed, revision="0123")
    with pytest.raises(
        MissingError, match=rf"{own.repository} .* cannot be streamed \(OfflineModeIsEnabled\)"
    ) as caught:
        streamed.check()
    assert "\n" not in str(caught.value)


def test_a_gated_repository_says_where_its_terms_are(
    online: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "served").mkdir()
    with hub_of(tmp_path / "served", status=403) as served:
        ask(served, monkeypatch)
        _, streamed = pair("imagenet_hub", tmp_path / "served")
        with pytest.raises(MissingError, match=r"accept its terms at https://huggingface\.co/datasets/ILSVRC"):
            streamed.check()
