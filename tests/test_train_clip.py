"""Training the bundled CLIP: what its batches say is true, and an interrupted run loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fnabench.data.base import IGNORE_INDEX
from fnabench.data.scenes import Scenes
from fnabench.data.scenes.world import COLOURS, RADII, SHAPES
from fnabench.models.bundled_towers import PAD, SPECIAL_WORDS, UNKNOWN, Clip, ClipConfig, TextTower, Tokenizer
from fnabench.train.batches import Batches
from fnabench.train.clip import Trainer, Training, choose_view, collect_vocabulary
from fnabench.train.clip_loss import choose_patches, encode_kept
from fnabench.train.clip_metrics import measure_clip
from fnabench.train.course import learning_rate
from fnabench.train.muon import Muon, orthogonalize
from fnabench.train.pool import CHUNK
from fnabench.train.segmentation_head import count_pixels, fit_segmentation_head, mean_iou

TINY = ClipConfig(width=32, depth=2, num_heads=2, embed_width=16, text_width=32, text_depth=1, text_num_heads=2)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pool")


@pytest.fixture(scope="module")
def batches(pool: Path) -> Batches:
    return Batches(Scenes(split="train", limit=CHUNK), pool)


def _tiny_clip() -> Clip:
    torch.manual_seed(0)
    return Clip(TINY, num_words=10, num_mask_classes=11).eval()


def test_batch_shows_the_samples_it_names(batches: Batches) -> None:
    batch, source = batches.take(5, 3), batches.source
    for row, index in enumerate((5, 6, 7)):
        sample = source[index]
        pixels = (batch.images[row].permute(1, 2, 0) * 127.5 + 127.5).round().numpy().astype(np.uint8)
        assert np.array_equal(pixels, np.asarray(sample.image))
        assert batch.labels[row] == sample.label
        assert batch.captions[row] == sample.captions


def test_batches_start_again_at_the_end(batches: Batches) -> None:
    assert batches.take(CHUNK - 1, 2).captions[1] == batches.source.captions(0)


def test_patch_shares_are_what_the_pixels_show(batches: Batches) -> None:
    batch = batches.take(0, 4)
    assert torch.allclose(batch.shapes.sum(dim=1), torch.ones(4, 16, 16))
    assert torch.allclose(batch.colours.sum(dim=1), torch.ones(4, 16, 16))
    for row in range(4):
        scene, owner = batches.source.scene(row), batches.source.picture(row).owner
        for number, shape in enumerate(SHAPES):
            things = [n for n, thing in enumerate(scene.things) if thing.shape == shape]
            covered = np.isin(owner, things).reshape(16, 8, 16, 8).mean(axis=(1, 3))
            assert np.allclose(batch.shapes[row, 1 + number].numpy(), covered, atol=1e-6)
        main = COLOURS.index(scene.main.colour)
        assert batch.colours[row, 1 + main].sum() * 64 >= (owner == 0).sum()


@pytest.mark.parametrize("size", [128, 192])
def test_each_centre_is_in_its_patch(batches: Batches, size: int) -> None:
    found = batches.take(0, 8).resized(size).centre_sizes()
    for row in range(8):
        things = batches.source.scene(row).things
        for thing in things:
            patch = found[row, thing.y * size // 8 // 1024, thing.x * size // 8 // 1024]
            assert patch > 0
            assert patch == 1 + list(RADII).index(thing.size) or len(things) > (found[row] > 0).sum()


def test_resized_batch_keeps_its_shares_whole(batches: Batches) -> None:
    batch = batches.take(0, 2).resized(192)
    assert batch.images.shape == (2, 3, 192, 192)
    assert torch.allclose(batch.shapes.sum(dim=1), torch.ones(2, 24, 24), atol=1e-5)


def test_patches_with_things_are_kept_more_often(batches: Batches) -> None:
    batch = batches.take(0, 32)
    kept = choose_patches(batch, 64, torch.Generator().manual_seed(0))
    assert all(len(set(row.tolist())) == 64 for row in kept)
    shown = (batch.shapes[:, 0] < 0.95).flatten(1)
    assert shown.gather(1, kept).float().mean() > 2 * shown.float().mean()


@pytest.mark.parametrize("size", [128, 192])
def test_all_patches_kept_is_the_towers_own_forward(size: int) -> None:
    model = _tiny_clip()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    num_patches = (size // 8) ** 2
    tokens = encode_kept(model, images, torch.arange(num_patches).expand(2, -1))
    model.image_tower.set_input_size(img_size=size)
    assert torch.allclose(tokens, model.encode_tokens(images), atol=1e-5)


def test_padding_does_not_change_a_text() -> None:
    torch.manual_seed(0)
    tower = TextTower(TINY, num_words=10).eval()
    tokens = torch.tensor([[1, 4, 5, 6]])
    padded = torch.cat((tokens, torch.full((1, 5), PAD)), dim=1)
    assert torch.allclose(tower(tokens), tower(padded), atol=1e-6)


def test_tokenizer_marks_unknown_words_and_cuts_long_texts() -> None:
    tokenizer = Tokenizer((*SPECIAL_WORDS, "a", "red", "ring"), context=5)
    assert tokenizer.encode("A RED, ring.") == [1, 3, 4, 5]
    assert tokenizer.encode("a purple ring") == [1, 3, UNKNOWN, 5]
    assert tokenizer(["red", "a red ring a red ring"]).tolist() == [[1, 4, PAD, PAD, PAD], [1, 3, 4, 5, 3]]


def test_vocabulary_knows_every_word_of_other_splits() -> None:
    tokenizer = Tokenizer(collect_vocabulary(), context=ClipConfig().context)
    tokens = tokenizer([text for index in range(200) for text in Scenes(split="test").captions(index)])
    assert (tokens != UNKNOWN).all()
    assert tokens.shape[1] < ClipConfig().context


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    for shape in ((3, 20, 50), (3, 50, 20)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_muon_finds_the_nearest_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(8, 6, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(8, 6))
    optimizer = Muon([weight], lr=0.2)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 200)
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        optimizer.step()
    assert (weight - target).abs().max() < 0.1


def test_learning_rate_rises_stays_and_falls_to_nothing() -> None:
    training = Training(steps=1000)
    rates = [learning_rate(training, step) for step in range(1000)]
    assert rates[0] < rates[50] < rates[200] == rates[600] == training.learning_rate > rates[900] > rates[999] > 0
    assert rates[999] < 0.01 * training.learning_rate


def test_late_steps_show_whole_and_enlarged_images() -> None:
    training = Training(steps=1000)
    late = {choose_view(training, step) for step in range(900, 1000)}
    assert any(view.num_kept == 256 for view in late)
    assert any(view.size > 128 for view in late)
    assert len({choose_view(training, step) for step in range(100)}) == 1


def test_interrupted_run_ends_as_an_uninterrupted_one(pool: Path, tmp_path: Path) -> None:
    training = Training(steps=4, num_samples=CHUNK, warmup=2)
    whole = Trainer(training, TINY, tmp_path, pool)
    for _ in range(4):
        entry = whole.train_step()
    (tmp_path / "parts").mkdir()
    first = Trainer(training, TINY, tmp_path / "parts", pool)
    first.train_step()
    first.train_step()
    first.save()
    second = Trainer(training, TINY, tmp_path / "parts", pool)
    second.resume()
    assert second.step == 2
    for _ in range(2):
        resumed = second.train_step()
    assert resumed["contrast"] == entry["contrast"]
    for name, value in whole.averaged().items():
        assert torch.equal(value, second.averaged()[name])


class Quick(Trainer):
    """Measured on a few scenes."""

    def measure(self) -> dict[str, float]:
        return measure_clip(self.averaged_model(), self.tokenizer, Scenes(split="val", limit=10))


def test_a_run_that_was_stopped_goes_on_from_there_and_logs_its_scores(pool: Path, tmp_path: Path) -> None:
    training = Training(steps=3, num_samples=CHUNK, warmup=2)
    stopped = Quick(training, TINY, tmp_path / "run", pool)
    assert not stopped.run(stop=2, measure_every=500)
    rest = Quick(training, TINY, tmp_path / "run", pool)
    assert rest.run(stop=None, measure_every=500)
    assert rest.step == 3
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [2, 3]
    assert entries[1]["seconds"] > entries[0]["seconds"] > 0
    assert all({"contrast", "top1", "miou"} <= set(entry) for entry in entries)


def test_a_few_steps_teach_where_things_are(pool: Path, tmp_path: Path) -> None:
    trainer = Trainer(Training(steps=40, num_samples=CHUNK, warmup=2), TINY, tmp_path, pool)
    entries = [trainer.train_step() for _ in range(24)]
    assert entries[-1]["colours"] < 0.7 * entries[0]["colours"]


def test_fitted_head_beats_an_untrained_one(batches: Batches) -> None:
    model, tokenizer, source = _tiny_clip(), Tokenizer(SPECIAL_WORDS, context=32), Scenes(split="val", limit=20)
    before = measure_clip(model, tokenizer, source)["miou"]
    fit_segmentation_head(model, batches, num_samples=50)
    assert measure_clip(model, tokenizer, source)["miou"] > before + 3


def test_mean_iou_of_a_known_picture() -> None:
    logits = torch.zeros(1, 4, 3)
    logits[0, :, 0] = 1
    logits[0, 3] = torch.tensor([0.0, 0.0, 9.0])
    masks = torch.tensor([[[0, 1], [IGNORE_INDEX, 2]]], dtype=torch.uint8)
    confusion = count_pixels(logits, masks)
    assert confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert mean_iou(confusion) == pytest.approx((1 / 2 + 0 + 1) / 3)


def test_training_needs_no_harness_packages() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('hydra', 'omegaconf', 'faiss', 'datasets', 'wandb')));"
        "import fnabench.train.clip, fnabench.train.llava, transformers.models.llava.modeling_llava"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
