"""Text features are kept across attention variants: computed once, equal to the bit, never for another model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_world import SmallWorld

from fnabench.models.bundled_clip import BundledClipBackbone
from fnabench.record import CorruptRecordError
from fnabench.store import Store, read_record, read_scores
from fnabench.text_memory import TextMemory

LINES = {
    "task": "retrieval", "model": "clip", "data": "scenes", "data.limit": "8", "data.root": None,
    "model.architecture": None, "model.checkpoint": None, "model.num_classes": None, "model.image_size": None,
}  # fmt: skip


@pytest.fixture
def encoded(monkeypatch) -> list[str]:
    """Every text that goes through the bundled text tower."""
    texts: list[str] = []
    plain = BundledClipBackbone.encode_text

    def counted(self, given):
        texts.extend(given)
        return plain(self, given)

    monkeypatch.setattr(BundledClipBackbone, "encode_text", counted)
    return texts


def scores_of(world: SmallWorld, attention: str, **changes: str) -> dict[str, np.ndarray]:
    code, _, err = world.run(**(LINES | {"attention": attention} | changes))
    assert code == 0, err
    (folder,) = [path for path in world.records() if path.name.startswith(f"{attention}-")]
    metrics = read_record(folder).scores
    scores = {name: read_scores(folder, name) for name in metrics}
    found = {name: each.numerator for name, each in scores.items()}
    return found | {f"{name} predictions": each.predictions for name, each in scores.items()}


@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_the_text_tower_runs_once_and_the_numbers_are_those_without_the_memory(world, encoded, task):
    scores_of(world, "exact", task=task)
    assert encoded
    encoded.clear()
    kept = scores_of(world, "fna", task=task)
    scores_of(world, "fna_refined", task=task, **{"attention.num_landmarks": None})
    assert encoded == []
    (path,) = (world.results / ".fitted").glob("*.safetensors")
    path.unlink()
    computed = scores_of(world, "fna", task=task, rerun="true")
    assert encoded
    assert kept.keys() == computed.keys()
    assert all(np.array_equal(kept[name], computed[name]) for name in kept)


def test_other_texts_and_another_model_are_computed(world, encoded):
    scores_of(world, "exact")
    for changes in ({"data.limit": "7"}, {"model.image_size": "64"}, {"dtype": "bfloat16"}):
        encoded.clear()
        code, _, err = world.run(**(LINES | {"attention": "exact"} | changes))
        assert code == 0, err
        assert encoded, changes
    assert len(list((world.results / ".fitted").glob("*.safetensors"))) == 4


def test_a_changed_file_is_told_in_one_line(world):
    scores_of(world, "exact")
    (path,) = (world.results / ".fitted").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    line = world.refused(**(LINES | {"attention": "fna"}))
    assert f"{path.name} was changed since it was fitted; delete it" in line
    path.unlink()
    scores_of(world, "fna")


def test_a_file_without_its_hash_counts_as_changed(tmp_path):
    store = Store(tmp_path)
    store.save_fitted("key", {"texts": torch.ones(2)})
    assert store.find_fitted("key") is not None
    assert store.find_fitted("another") is None
    next((tmp_path / ".fitted").glob("*.sha256")).unlink()
    with pytest.raises(CorruptRecordError, match="was changed since it was fitted"):
        store.find_fitted("key")


def test_rows_and_means_of_the_same_words_are_kept_apart(tmp_path):
    memory = TextMemory(store=Store(tmp_path), key="model")
    assert memory(["a", "b"], lambda: torch.zeros(2)).tolist() == [0, 0]
    assert memory([["a", "b"]], lambda: torch.ones(1)).tolist() == [1]
    assert memory(["a", "b"], lambda: torch.full((2,), 9.0)).tolist() == [0, 0]
