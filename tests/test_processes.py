"""Every task when processes share its batches: the same results, the same images kept, errors in one line."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from small_world import RUNS, SCENES, SmallWorld

from fnabench.store import SAMPLES, read_record

FIDELITY = SCENES | {"task": "fidelity", "model": "clip"}
SHARED = {"loader.batch_size": "4", "loader.num_processes": "2", "loader.num_workers": "0"}


@pytest.fixture
def world(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fnabench.data.scenes.source.NUM_TRAINING", 6)
    return SmallWorld(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("changes", [*RUNS.values(), FIDELITY], ids=[*RUNS, "fidelity"])
def test_results_are_those_of_one_process_whose_batches_are_as_large_as_theirs(world, changes):
    found = []
    for given in ({"loader.batch_size": "2", "loader.num_processes": "1"}, SHARED, SHARED | {"data.cache": "decoded"}):
        world.results = world.folder / f"results {len(found)}"
        code, _, err = world.run(**changes | given | {"results_dir": str(world.results)})
        assert code == 0, err
        found.append([(read_record(folder), pq.read_table(folder / SAMPLES)) for folder in world.records()])
    assert len(found[0]) == 2
    for alone, *shared in zip(*found, strict=True):
        for record, samples in shared:
            assert (record.scores, record.comparisons) == (alone[0].scores, alone[0].comparisons)
            assert samples.equals(alone[1])
    assert found[1][0][0].key == found[2][0][0].key
    assert list((world.folder / "results 2" / ".decoded").glob("*.images"))


def test_an_unreadable_image_is_one_line(world):
    (world.images / "3.png").write_text("no image")
    assert "3.png is not a readable image" in world.refused(**SHARED)


def test_processes_on_nothing_are_one_line(world):
    assert "loader.num_processes=0 must be at least 1" in world.refused(loader__num_processes="0")
