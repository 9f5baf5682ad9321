"""Transformed images kept on disk: the same to the bit, never half written, never another data set's or model's."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from builders import image_folder, watch
from hydra.utils import instantiate
from PIL import Image
from small_llava import save_llava
from small_world import RUNS, SmallWorld
from torch import Tensor

from fnabench import cli
from fnabench.data.base import Sample, Source
from fnabench.data.scenes import Scenes
from fnabench.decoded import Decoded
from fnabench.errors import BadInputError
from fnabench.experiment import Experiment
from fnabench.loader import Loader
from fnabench.models.preprocessing import square_transforms
from fnabench.store import SAMPLES, read_record
from fnabench.tiles import Tiles

FITTED = {"segmentation", "windows"}


@pytest.fixture
def world(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fnabench.data.scenes.source.NUM_TRAINING", 6)
    return SmallWorld(tmp_path, monkeypatch, capsys)


@pytest.fixture
def drawn(monkeypatch) -> list[tuple[str, int]]:
    """Split and index of every scene that is rendered."""
    indices: list[tuple[str, int]] = []
    plain = Scenes.__getitem__

    def counted(self, index):
        indices.append((self.split, index))
        return plain(self, index)

    monkeypatch.setattr(Scenes, "__getitem__", counted)
    return indices


def succeed(world: SmallWorld, **changes: str | None) -> None:
    code, _, err = world.run(**changes)
    assert code == 0, err


def files(world: SmallWorld) -> list[Path]:
    return sorted((world.results / ".decoded").glob("*.images"))


# A whole run


@pytest.mark.parametrize("name", RUNS)
def test_keys_and_every_sample_are_those_of_a_run_that_keeps_nothing(world, name):
    found = []
    for cache in ("null", "decoded"):
        world.results = world.folder / f"results of {cache}"
        succeed(world, **RUNS[name] | {"data.cache": cache, "results_dir": str(world.results)})
        assert len(files(world)) == (0 if cache == "null" else 1 + (name in FITTED))
        found.append([(read_record(folder), pq.read_table(folder / SAMPLES)) for folder in world.records()])
    assert len(found[0]) == 2
    for (plain, samples), (kept, other_samples) in zip(*found, strict=True):
        assert (plain.key, plain.identity) == (kept.key, kept.identity)
        assert (plain.scores, plain.comparisons, plain.fitted) == (kept.scores, kept.comparisons, kept.fitted)
        assert samples.equals(other_samples)
        assert (plain.config["data"]["cache"], kept.config["data"]["cache"]) == (None, "decoded")


def test_the_variant_of_a_run_is_shown_what_was_drawn_for_exact_attention(world, drawn):
    changes = RUNS["vqa"] | {"data.cache": "decoded"}
    succeed(world, **changes)
    fingerprinted = {("test", index) for index in range(4)}
    assert sorted(set(drawn)) == [("test", index) for index in range(6)]
    assert [each for each in drawn if each not in fingerprinted] == [("test", 4), ("test", 5)]
    drawn.clear()
    succeed(world, **changes | {"attention": "fna_refined"})
    assert set(drawn) == fingerprinted


def test_what_changes_the_images_has_a_file_of_its_own_and_nothing_else_has(world):
    changes = RUNS["retrieval"] | {"loader.num_workers": "0", "data.cache": "decoded", "attention": "exact"}
    for same in (
        {},
        {"attention": "fna"},
        {"loader.batch_size": "4"},
        {"dtype": "bfloat16"},
        {"task": "classification"},
    ):
        succeed(world, **changes | same)
        assert len(files(world)) == 1, same
    for number, other in enumerate(({"data.limit": "5"}, {"data.seed": "1"}, {"model.image_size": "64"}), start=2):
        succeed(world, **changes | other)
        assert len(files(world)) == number, other
    succeed(world, **changes | {"task": "segmentation"})  # which resizes the whole image
    assert len(files(world)) == 6, "and the training split's"


def test_a_variant_of_ones_own_shares_them():
    experiment = Experiment.of(*cli.compose(["task=retrieval", "data.limit=4", "device=cpu", "data.cache=decoded"]))
    mine = replace(experiment, attention=watch(experiment.attention))
    assert mine.identity["code"] != experiment.identity["code"]
    assert mine.transform_key == experiment.transform_key


def test_a_file_that_was_cut_off_is_written_again(world):
    changes = {"data.cache": "decoded", "attention": "exact"}
    succeed(world, **changes)
    (path,) = files(world)
    content = path.read_bytes()
    for length in (0, 3, 20, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        succeed(world, **changes, rerun="true")
        assert path.read_bytes() == content, length


def test_a_damaged_entry_is_told_in_one_line(world):
    changes = {"data.cache": "decoded", "attention": "exact"}
    succeed(world, **changes)
    (path,) = files(world)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    line = world.refused(**changes, rerun="true")
    assert f"{path.name} is damaged; delete it" in line
    path.unlink()
    succeed(world, **changes, rerun="true")


def test_another_value_is_refused(world):
    assert "data.cache=raw is not known; allowed: null, decoded" in world.refused(data__cache="raw")


def test_a_data_set_of_ones_own_may_ask_for_it(world):
    folder = world.folder / "conf" / "data"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        f"_target_: fnabench.data.folder.ImageFolder\nname: mine\nroot: {world.images}\ncache: decoded\n"
    )
    code, _, err = world.run("--config-dir", str(folder.parent), data="mine", data__root=None)
    assert code == 0, err
    assert len(files(world)) == 1


# The file

CROP, WHOLE = square_transforms(16, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def mean_of_rows(image: Image.Image) -> Tensor:
    """Values that no table of 256 holds."""
    pixels = torch.from_numpy(np.array(image)).float()
    return pixels.mean(0, keepdim=True).permute(2, 0, 1).expand(3, 2, -1)


def in_halves(image: Image.Image) -> Tensor:
    return CROP(image).bfloat16()


def in_grey(image: Image.Image) -> Tensor:
    return CROP(image)[:1]


def tiled(image: Image.Image) -> Tiles:
    """One tile or two, by what the image shows."""
    count = 1 + image.getpixel((0, 0))[0] % 2
    return Tiles(pixels=torch.stack([CROP(image)] * count), counts=(count,), sizes=((image.height, image.width),))


class Sizes(Source):
    """Noise in images of different shapes."""

    name = "sizes"
    provides = frozenset()  # type: ignore[assignment]
    sizes = ((40, 40), (80, 30), (30, 90))

    def check(self) -> None:
        pass

    def fingerprint(self) -> str:
        return "sizes"

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Sample:
        width, height = self.sizes[index]
        pixels = np.random.default_rng(index).integers(256, size=(height, width, 3), dtype=np.uint8)
        return Sample(id=str(index), image=Image.fromarray(pixels))


def loader(source: Source, folder: Path, transform=CROP, **options: object) -> Loader:
    settings = {"batch_size": 2, "num_workers": 0, "device": torch.device("cpu"), "dtype": torch.float32}
    decoded = Decoded(transform=transform, folder=folder / "kept", key="key")
    return Loader(source=source, transform=decoded, **settings | options)  # type: ignore[arg-type]


def kept_in(folder: Path) -> list[str]:
    return [path.suffix for path in (folder / "kept").iterdir() if path.suffix != ".lock"]


def same_to_the_bit(one: Tensor | Tiles, other: Tensor | Tiles) -> bool:
    if isinstance(one, Tiles) and isinstance(other, Tiles):
        return (one.counts, one.sizes) == (other.counts, other.sizes) and same_to_the_bit(one.pixels, other.pixels)
    assert isinstance(one, Tensor)
    assert isinstance(other, Tensor)
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(
        *(each.contiguous().view(torch.uint8) for each in (one, other))
    )


def strides(images: Tensor | Tiles) -> tuple[int, ...]:
    """The layout in memory, by which a convolution chooses its kernel."""
    return (images.pixels if isinstance(images, Tiles) else images).stride()


@pytest.mark.parametrize("transform", [CROP, WHOLE, tiled, mean_of_rows, in_halves, in_grey])
def test_an_entry_is_what_the_transform_gave_and_what_is_known(tmp_path: Path, transform) -> None:
    source = Scenes(limit=5, image_size=64)
    passes = loader(source, tmp_path, transform)
    assert len(list(passes)) == 3
    entries = passes.transform.read(source)
    assert len(entries) == 5
    for index in range(5):
        images, sample = entries[index]
        assert same_to_the_bit(images, transform(source[index].image))
        assert np.array_equal(sample.mask, source[index].mask)
        assert replace(sample, mask=None) == replace(source[index], image=None, mask=None)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("transform", [CROP, tiled])
def test_a_later_pass_gives_the_same_batches_and_draws_nothing(tmp_path, monkeypatch, transform, num_workers) -> None:
    source = Scenes(limit=5, image_size=64)
    passes = loader(source, tmp_path, transform, num_workers=num_workers)
    first, fingerprint = list(passes), source.fingerprint()
    monkeypatch.setattr(Scenes, "__getitem__", None)
    monkeypatch.setattr(Scenes, "fingerprint", lambda self: fingerprint)
    later = list(passes)
    assert [strides(batch.images) for batch in first] == [strides(batch.images) for batch in later]
    assert all(same_to_the_bit(one.images, other.images) for one, other in zip(first, later, strict=True))
    ids = [[sample.id for batch in batches for sample in batch.samples] for batches in (first, later)]
    assert ids[0] == ids[1] == [f"test-0-{index}" for index in range(5)]
    assert same_to_the_bit(passes.first(2).images, first[0].images)


def test_an_image_after_a_normalisation_takes_a_byte_a_value(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "images", size=16)
    for transform, size in ((CROP, 5 * 3 * 16 * 16), (mean_of_rows, 5 * 4 * 3 * 2 * 16)):
        passes = loader(source, tmp_path / transform.__class__.__name__, transform)
        list(passes)
        (path,) = passes.transform.folder.glob("*.images")
        assert size < path.stat().st_size < size + 6000


def test_a_pass_that_was_left_keeps_nothing(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "images")
    assert len(list(islice(loader(source, tmp_path), 2))) == 2
    (tmp_path / "images" / "4.png").write_text("no image")
    with pytest.raises(BadInputError, match=r"4\.png is not a readable image"):
        list(loader(source, tmp_path))
    assert kept_in(tmp_path) == []


def _die_in_the_second_batch(passes: Loader) -> None:
    for number, _ in enumerate(passes):
        if number:
            os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_is_never_read_and_written_over(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "images")
    killed = multiprocessing.get_context("fork").Process(
        target=_die_in_the_second_batch, args=(loader(source, tmp_path),)
    )
    killed.start()
    killed.join()
    assert kept_in(tmp_path) == [".partial"]
    passes = loader(source, tmp_path)
    assert passes.transform.read(source) is None
    batches = list(passes)
    assert kept_in(tmp_path) == [".images"]
    assert same_to_the_bit(batches[0].images[0], CROP(source[0].image))


def test_of_two_passes_at_once_one_writes_and_both_are_whole(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "images")
    for one, other in zip(loader(source, tmp_path), loader(source, tmp_path), strict=True):
        assert same_to_the_bit(one.images, other.images)
        assert kept_in(tmp_path) == [".partial"]
    assert kept_in(tmp_path) == [".images"]
    assert len(loader(source, tmp_path).transform.read(source)) == 5


def _pass(passes: Loader, results: multiprocessing.Queue) -> None:
    results.put(torch.cat([batch.images for batch in passes]).numpy().tobytes())


def test_processes_that_begin_together_all_get_every_image(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "images", labels=range(40))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_pass, args=(loader(source, tmp_path), results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert found == {torch.stack([CROP(source[index].image) for index in range(40)]).numpy().tobytes()}
    assert kept_in(tmp_path) == [".images"]


def test_a_label_of_numpy_is_kept_as_a_number(tmp_path: Path) -> None:
    class Labelled(Sizes):
        def __getitem__(self, index: int) -> Sample:
            return replace(super().__getitem__(index), label=np.int64(index))  # type: ignore[arg-type]

    passes = loader(Labelled(), tmp_path)
    list(passes)
    entries = passes.transform.read(Labelled())
    assert [entries[index][1].label for index in range(3)] == [0, 1, 2]


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "images")
    passes = loader(source, tmp_path)
    passes.transform.folder.mkdir()
    list(passes)
    (path,) = passes.transform.folder.glob("*.images")
    path.unlink()
    path.with_suffix(".partial").symlink_to("/dev/full")
    with pytest.raises(BadInputError, match=r"cannot be written: .*No space left on device; make room"):
        list(passes)


@pytest.mark.parametrize("family", ["llava_next", "llava"])
def test_the_tiles_of_a_checkpoint_come_back_as_they_were(tmp_path: Path, family: str) -> None:
    model = instantiate(
        {"_target_": "fnabench.models.hf_llava.HfLlava", "checkpoint": str(save_llava(tmp_path, family))}
    )
    transform = model.load(torch.device("cpu"), torch.float32).transform
    source = Sizes()
    passes = loader(source, tmp_path, transform)
    list(passes)
    entries = passes.transform.read(source)
    for index, size in enumerate(source.sizes):
        expected = transform(source[index].image)
        assert same_to_the_bit(entries[index][0], expected), size
        assert strides(entries[index][0]) == strides(expected)
    assert isinstance(expected, Tiles) == (family == "llava_next")
