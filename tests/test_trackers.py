"""W&B gets what the record says, and cannot hurt a run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from records import a_record, some_scores, some_timings

from fnabench import trackers
from fnabench.errors import BadInputError
from fnabench.store import Store, read_record
from fnabench.trackers import NoTracker, WandbTracker, has_api_key, scalars


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no netrc"))
    store = Store(tmp_path / "results")
    return store.folder(store.save(a_record(), some_scores(), {"end to end": some_timings()}))


def test_an_offline_run_read_back_is_the_record(folder, tmp_path):
    line = WandbTracker(dir=str(tmp_path), timeout_s=60).log(folder)
    run_folder = Path(line.rpartition("wandb sync ")[2])
    assert "logged offline" in line
    assert run_folder.parent == tmp_path / "wandb"
    (file,) = run_folder.glob("*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    done = subprocess.run(inspect, capture_output=True, text=True, check=True, timeout=60)
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    logged = {name: value for entry in entries for name, value in entry.get("history", {}).get("item", {}).items()}
    config = next(entry["run"]["config"]["update"] for entry in entries if entry["type"] == "run")
    artifacts = [entry["artifact"]["name"] for entry in entries if entry["type"] == "artifact"]
    record = read_record(folder)
    expected = scalars(json.loads((folder / "record.json").read_text()))
    assert len(expected) > 20
    assert {name: logged.get(name) for name in expected} == expected
    assert config["key"] == record.key
    assert {name: config.get(name) for name in record.config} == record.config
    assert f"record-{record.key[:12]}" in artifacts
    tables = list((run_folder / "files" / "media" / "table").glob("latencies*.table.json"))
    latencies = pq.read_table(folder / "latencies.parquet")
    (table,) = (json.loads(path.read_text()) for path in tables)
    assert table["columns"] == latencies.column_names
    assert table["data"] == [list(row.values()) for row in latencies.to_pylist()]


def test_accuracy_latency_and_memory_are_scalars(folder):
    values = scalars(json.loads((folder / "record.json").read_text()))
    assert values["score/top1"] == 0.75
    assert values["exact/top1_difference_value"] == -0.25
    assert values["latency/latency_ratio_value"] == 1.25
    assert values["memory/memory_peak_mib"] == 20.0


def test_a_record_without_cost_has_fewer_scalars(tmp_path):
    store = Store(tmp_path)
    record = store.save(a_record(cost=None, comparisons={}), some_scores(), {})
    names = scalars(json.loads((store.folder(record) / "record.json").read_text()))
    assert set(names) == {"score/top1", "score/top1_low", "score/top1_high"}


def test_a_tracker_that_hangs_is_left_behind_in_time(folder, tmp_path, monkeypatch):
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(trackers.sys, "executable", str(sleeper))
    start = time.monotonic()
    line = WandbTracker(dir=str(tmp_path), timeout_s=1).log(folder)
    assert time.monotonic() - start < 5
    assert "not logged" in line
    assert str(folder) in line


def test_an_upload_that_fails_says_how_to_do_it_later(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    start = time.monotonic()
    line = WandbTracker(dir=str(tmp_path), timeout_s=20).log(folder)
    assert time.monotonic() - start < 25
    assert "wandb sync" in line
    assert "upload failed" in line


def test_a_key_is_looked_for_in_the_environment_and_in_netrc(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    assert not has_api_key()
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    netrc.chmod(0o600)
    assert has_api_key()
    netrc.write_text("")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert has_api_key()


def test_no_tracker_says_nothing(folder):
    assert NoTracker().log(folder) == ""


def test_an_unknown_mode_is_refused():
    with pytest.raises(BadInputError, match="auto, online, offline"):
        WandbTracker(mode="sometimes")
