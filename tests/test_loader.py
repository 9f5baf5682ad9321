"""Batches: all samples, in order, once; and errors that arrive as what they are."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import image_folder
from PIL import Image
from torch import Tensor

from fnabench.data.folder import ImageFolder
from fnabench.device import is_out_of_memory
from fnabench.errors import BadInputError
from fnabench.loader import Batch, Loader

CPU = torch.device("cpu")


def to_tensor(image: Image.Image, size: int = 8) -> Tensor:
    return torch.from_numpy(np.array(image.resize((size, size)))).permute(2, 0, 1) / 255


def loader(source: ImageFolder, **options: object) -> Loader:
    settings = {"batch_size": 2, "num_workers": 0, "device": CPU, "dtype": torch.float32, "transform": to_tensor}
    return Loader(source=source, **settings | options)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_all_samples_come_once_and_in_order_and_the_last_batch_is_short(tmp_path: Path, num_workers: int) -> None:
    source = image_folder(tmp_path, labels=(4, 3, 2, 1, 0))
    batches = list(loader(source, num_workers=num_workers))
    assert [len(batch.samples) for batch in batches] == [2, 2, 1]
    assert [tuple(batch.images.shape) for batch in batches] == [(2, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 8)]
    samples = [sample for batch in batches for sample in batch.samples]
    assert [sample.id for sample in samples] == [f"{position}.png" for position in range(5)]
    assert [sample.label for sample in samples] == [4, 3, 2, 1, 0]
    images = torch.cat([batch.images for batch in batches])
    assert all(torch.equal(image, to_tensor(source[i].image)) for i, image in enumerate(images))  # type: ignore[arg-type]


def test_samples_leave_their_images_behind(tmp_path: Path) -> None:
    assert all(sample.image is None for batch in loader(image_folder(tmp_path)) for sample in batch.samples)


def test_two_passes_give_the_same(tmp_path: Path) -> None:
    batches = loader(image_folder(tmp_path))
    assert len(batches) == 5
    for one, other in zip(batches, batches, strict=True):
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_have_the_asked_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    batches = loader(image_folder(tmp_path), dtype=dtype)
    assert {batch.images.dtype for batch in batches} == {batches.first(3).images.dtype} == {dtype}


def test_a_batch_counts_as_done_once_it_has_been_used(tmp_path: Path) -> None:
    done: list[int] = []
    seen = [list(done) for _ in loader(image_folder(tmp_path), on_batch=done.append)]
    assert seen == [[], [2], [2, 2]]
    assert done == [2, 2, 1]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_arrives_as_its_own_one_line_error(tmp_path: Path, num_workers: int) -> None:
    source = image_folder(tmp_path)
    (tmp_path / "3.png").write_text("no image")
    batches = iter(loader(source, num_workers=num_workers))
    assert len(next(batches).samples) == 2
    with pytest.raises(BadInputError, match=r"3\.png is not a readable image") as caught:
        next(batches)
    assert "\n" not in str(caught.value)


def test_the_first_samples_make_one_batch(tmp_path: Path) -> None:
    source = image_folder(tmp_path)
    batch = loader(source).first(3)
    assert [sample.id for sample in batch.samples] == ["0.png", "1.png", "2.png"]
    assert torch.equal(batch.images[2], to_tensor(source[2].image))  # type: ignore[arg-type]


def test_a_short_source_is_repeated_to_fill_the_first_batch(tmp_path: Path) -> None:
    batch = loader(image_folder(tmp_path, labels=(0, 1))).first(5)
    assert [sample.id for sample in batch.samples] == ["0.png", "1.png", "0.png", "1.png", "0.png"]


def test_an_unreadable_image_in_the_first_batch_is_named(tmp_path: Path) -> None:
    source = image_folder(tmp_path)
    (tmp_path / "0.png").write_text("no image")
    with pytest.raises(BadInputError, match=r"0\.png is not a readable image"):
        loader(source).first(2)


def test_a_transform_of_ones_own_is_used(tmp_path: Path) -> None:
    batch = loader(image_folder(tmp_path), transform=partial(to_tensor, size=5)).first(1)
    assert batch.images.shape == (1, 3, 5, 5)


def sums(batch: Batch) -> Tensor:
    return batch.images.sum((1, 2, 3))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_work_is_shared_by_processes_and_comes_back_in_order(
    tmp_path: Path, num_processes: int, batch_size: int
) -> None:
    source, done = image_folder(tmp_path, labels=(6, 5, 4, 3, 2, 1, 0)), []
    shared = loader(source, batch_size=batch_size, num_processes=num_processes, on_batch=done.append).through(sums)
    labels, found = [], []
    for samples, made in shared:
        labels += [sample.label for sample in samples]
        found.append(made)
    assert labels == [6, 5, 4, 3, 2, 1, 0]
    assert torch.equal(torch.cat(found), torch.cat([sums(batch) for batch in loader(source, batch_size=7)]))
    assert sum(done) == 7


def test_processes_have_one_thread_and_what_the_caller_has_switched_on(tmp_path: Path) -> None:
    def state(batch: Batch) -> tuple[int, int, bool]:
        return os.getpid(), torch.get_num_threads(), torch.is_inference_mode_enabled()

    with torch.inference_mode():
        states = {made for _, made in loader(image_folder(tmp_path), num_processes=2).through(state)}
    processes, num_threads, inference = map(set, zip(*states, strict=True))
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert (num_threads, inference) == ({1}, {True})


def test_a_batch_is_told_of_where_it_is_worked_on(tmp_path: Path) -> None:
    told: list[str] = []
    shared = loader(
        image_folder(tmp_path), num_processes=2, before_batch=lambda samples: told.extend(each.id for each in samples)
    )
    assert [made for _, made in shared.through(lambda batch: told[-1])] == [f"{number}.png" for number in range(5)]
    assert told == []  # what a process changes is its own


@pytest.mark.parametrize("batch_size", [2, 5])
def test_a_part_of_a_tensor_is_sent_without_the_rest(tmp_path: Path, batch_size: int) -> None:
    shared = loader(image_folder(tmp_path), num_processes=2, batch_size=batch_size)
    views = [made for _, made in shared.through(lambda batch: torch.arange(1_000_000)[2:4])]
    assert all(view.tolist() == [2, 3] for view in views)
    if batch_size == 2:
        assert {view.untyped_storage().nbytes() for view in views} == {16}


def num_file_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_is_kept_of_many_batches_takes_no_file_descriptors(tmp_path: Path) -> None:
    shared = loader(image_folder(tmp_path, labels=tuple(range(40))), num_processes=2)
    before = num_file_descriptors()
    kept = [made for _, made in shared.through(sums)]
    assert len(kept) == 40
    assert num_file_descriptors() < before + 10, "more than the pipes of processes that are still ending"


def test_an_error_arrives_from_a_process_as_what_it_is(tmp_path: Path) -> None:
    source = image_folder(tmp_path)
    (tmp_path / "3.png").write_text("no image")
    with pytest.raises(BadInputError, match=r"3\.png is not a readable image") as caught:
        list(loader(source, num_processes=2).through(sums))
    assert "\n" not in str(caught.value)


def test_a_process_that_the_system_kills_is_one_without_memory(tmp_path: Path) -> None:
    shared = loader(image_folder(tmp_path), num_processes=2).through(lambda batch: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RuntimeError) as caught:
        list(shared)
    assert is_out_of_memory(caught.value)


def test_a_refused_allocation_is_known_for_one_in_a_process(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        list(loader(image_folder(tmp_path), num_processes=2).through(lambda batch: torch.empty(2**60)))
    assert is_out_of_memory(caught.value)
