"""Records on disk: whole, unchanged, or refused."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from records import a_cost, a_record, some_scores, some_timings

from fnabench.errors import BadInputError
from fnabench.record import CorruptRecordError, from_json, to_json
from fnabench.statistics import Estimate
from fnabench.store import Store, read_record, read_scores


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def saved(store):
    record = store.save(a_record(), some_scores(), {"end to end": some_timings()})
    return record, store.folder(record)


def test_a_record_survives_being_written_and_read():
    record = a_record()
    assert from_json(to_json(record)) == record


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("scores.top1.low", lambda value: {"scores": {"top1": Estimate(value=0.5, low=value, high=1.0)}}),
        ("cost.ceiling_macs", lambda value: {"cost": replace(a_cost(), ceiling_macs=value)}),
        ("config.task.sizes.1", lambda value: {"config": {"task": {"sizes": [1.0, value]}}}),
    ],
)
def test_a_record_with_what_is_no_number_is_refused_before_it_is_kept(store, name, of, value):
    with pytest.raises(BadInputError, match=f"^{re.escape(name)} is {value}, which no record can hold"):
        store.save(a_record(**of(value)), some_scores(), {})
    assert store.folders() == []


def test_a_saved_record_is_found_by_its_key_only(store):
    record, folder = saved(store)
    assert store.find(folder, record.key) == record
    assert store.find(folder, "another key") is None
    assert store.find(folder.with_name("exact-none"), record.key) is None


def test_per_sample_scores_survive(store):
    _, folder = saved(store)
    scores, read = some_scores().main, read_scores(folder, "top1")
    assert read.ids == scores.ids
    assert read.clusters == scores.clusters
    np.testing.assert_array_equal(read.numerator, scores.numerator)
    np.testing.assert_array_equal(read.predictions, scores.predictions)


def test_no_temporary_folder_is_left(store):
    saved(store)
    assert [path.name for path in store.root.iterdir() if path.name.startswith(".tmp")] == []


def test_a_write_that_fails_leaves_no_record_and_keeps_the_older(store, monkeypatch):
    record, folder = saved(store)
    monkeypatch.setattr("fnabench.store.to_json", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        saved(store)
    assert read_record(folder) == record
    assert [path.name for path in store.root.iterdir() if path.name.startswith(".tmp")] == []


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    unwritable = Store(tmp_path / "file")
    with pytest.raises(BadInputError, match=r"file cannot be written: .* give another results_dir="):
        saved(unwritable)
    with pytest.raises(BadInputError, match="Not a directory"), unwritable.lock("0" * 64):
        pass
    with pytest.raises(BadInputError, match=r"file cannot be written: .* give another results_dir="):
        unwritable.save_fitted("0" * 64, {"weight": torch.zeros(2)})


def test_a_disk_that_is_full_while_something_fitted_is_kept_is_told_in_one_line(store, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BadInputError, match=r"cannot be written: .*No space left on device"):
        store.save_fitted("0" * 64, {"weight": torch.zeros(2)})
    assert store.find_fitted("0" * 64) is None


def test_what_was_fitted_again_and_not_kept_is_fitted_once_more(store, monkeypatch):
    store.save_fitted("0" * 64, {"weight": torch.zeros(2)})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save_fitted("0" * 64, {"weight": torch.ones(2)})
    assert store.find_fitted("0" * 64) is None


def test_a_process_killed_while_writing_leaves_nothing_that_is_read(store):
    _, folder = saved(store)
    half = store.root / ".tmp-killed" / "a" / "b" / "c"
    half.mkdir(parents=True)
    (half / "record.json").write_text('{"schema": 1')
    assert store.folders() == [folder]


def test_saving_again_replaces_the_record(store):
    saved(store)
    again = store.save(a_record(status="out of memory", scores={}), None, {})
    assert read_record(store.folder(again)).status == "out of memory"
    assert sorted(path.name for path in store.folder(again).iterdir()) == ["record.json"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"num_samples": 4', '"num_samples": 5', "digest"),
        ('"schema": 1', '"schema": 99', "schema 99"),
        ('"key":', '"kex":', "digest"),
    ],
)
def test_an_edited_record_is_refused(store, old, new, reason):
    _, folder = saved(store)
    text = (folder / "record.json").read_text()
    assert old in text
    (folder / "record.json").write_text(text.replace(old, new, 1))
    with pytest.raises(CorruptRecordError, match=reason):
        read_record(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}'])
def test_a_truncated_record_is_refused(text):
    with pytest.raises(CorruptRecordError):
        from_json(text)


def test_a_record_with_a_wrong_type_is_refused_even_if_its_digest_fits():
    from fnabench.identity import digest

    body = json.loads(to_json(a_record()))
    del body["digest"]
    body["num_samples"] = "many"
    with pytest.raises(CorruptRecordError, match="num_samples"):
        from_json(json.dumps(body | {"digest": digest(body)}))


def test_a_changed_or_missing_file_beside_the_record_is_noticed(store):
    _, folder = saved(store)
    content = (folder / "samples.parquet").read_bytes()
    (folder / "samples.parquet").write_bytes(content[:-1])
    with pytest.raises(CorruptRecordError, match=r"samples\.parquet is not the file"):
        read_record(folder)
    (folder / "samples.parquet").unlink()
    with pytest.raises(CorruptRecordError, match="missing"):
        read_record(folder)


def test_the_names_decide_the_place_and_the_key_the_folder(store):
    record = a_record()
    assert store.folder(record) == store.root / "classification/folder/timm" / f"fna-{record.key[:12]}"
    assert store.folder(record) != store.folder(replace(record, key="0" * 64))


def test_a_second_process_waits_for_the_first(store):
    context = multiprocessing.get_context("spawn")
    with store.lock("some key"):
        waiter = context.Process(target=_take_lock, args=(store,))
        waiter.start()
        time.sleep(3)
        assert waiter.is_alive()
        assert not (store.root / "taken").exists()
    waiter.join(30)
    assert waiter.exitcode == 0
    assert (store.root / "taken").exists()


def _take_lock(store):
    with store.lock("some key"):
        (store.root / "taken").touch()
