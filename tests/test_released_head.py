"""Linear segmentation heads in the form in which DINOv2 released them: read, used, refused."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_world import SmallWorld
from torch import nn

from fnabench.errors import BadInputError, MissingError
from fnabench.models.weights_file import hash_file
from fnabench.released_head import read_released_head
from fnabench.store import read_record

NUM_CLASSES, NUM_CHANNELS = 11, 64
"""CamVid's, and those of the small world's model."""


class ReleasedHead(nn.Module):
    """The modules by the names in the released files."""

    def __init__(self, num_classes: int = NUM_CLASSES, num_channels: int = NUM_CHANNELS) -> None:
        super().__init__()
        self.bn = nn.SyncBatchNorm(num_channels)
        self.conv_seg = nn.Conv2d(num_channels, num_classes, 1)
        for tensor in (self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var):
            nn.init.uniform_(tensor, 0.5, 2.0)

    def state(self) -> dict[str, torch.Tensor]:
        return OrderedDict((f"decode_head.{name}", value) for name, value in self.state_dict().items())


def save(folder: Path, state: object) -> Path:
    path = folder / "dinov2_vits14_ade20k_linear_head.pth"
    torch.save({"meta": {"epoch": 1, "CLASSES": ("wall", "sky")}, "state_dict": state}, path)
    return path


def test_the_linear_map_is_what_the_two_modules_compute(tmp_path):
    torch.manual_seed(0)
    head, tokens = ReleasedHead().eval(), torch.randn(2, 6, NUM_CHANNELS)
    found = read_released_head(save(tmp_path, head.state()))
    grid = tokens.mT.reshape(2, NUM_CHANNELS, 2, 3)
    with torch.no_grad():
        normalised = nn.functional.batch_norm(
            grid, head.bn.running_mean, head.bn.running_var, head.bn.weight, head.bn.bias, eps=head.bn.eps
        )
        expected = head.conv_seg(normalised).flatten(2).mT
    torch.testing.assert_close(tokens @ found["weight"].T + found["bias"], expected, atol=1e-5, rtol=1e-5)


def test_a_bare_state_dict_is_read_too(tmp_path):
    head = ReleasedHead()
    torch.save(head.state(), tmp_path / "bare.pth")
    wrapped, bare = (read_released_head(path) for path in (save(tmp_path, head.state()), tmp_path / "bare.pth"))
    assert torch.equal(wrapped["weight"], bare["weight"])


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in ReleasedHead().state().items() if key != name}


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (without("decode_head.bn.running_var"), "it lacks decode_head.bn.running_var"),
        ({"backbone.norm.weight": torch.ones(3)}, "it lacks decode_head.bn.weight"),
        (ReleasedHead().state() | {"decode_head.fusion.weight": torch.ones(3)}, "also holds decode_head.fusion.weight"),
        (
            ReleasedHead().state() | {"decode_head.bn.bias": torch.ones(3)},
            r"decode_head\.bn\.bias has the shape \(3,\), which is no part of a 1x1 convolution",
        ),
        (ReleasedHead().state() | {"decode_head.conv_seg.weight": torch.ones(11, 64, 3, 3)}, r"\(11, 64, 3, 3\)"),
        (ReleasedHead().state() | {"decode_head.conv_seg.weight": torch.ones(11, 64)}, r"has the shape"),
        ("nothing", "it lacks decode_head.bn.weight"),
        (
            ReleasedHead().state() | {"decode_head.conv_seg.bias": torch.full((NUM_CLASSES,), torch.nan)},
            "gives weights that are not finite",
        ),
        (
            ReleasedHead().state() | {"decode_head.bn.running_var": torch.full((NUM_CHANNELS,), -1.0)},
            "gives weights that are not finite",
        ),
    ],
)
def test_other_states_are_refused_with_the_reason(tmp_path, state, reason):
    with pytest.raises(BadInputError, match=reason) as caught:
        read_released_head(save(tmp_path, state))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_holds_no_weights_is_refused(tmp_path):
    with pytest.raises(MissingError, match=r"task\.head=.*nowhere\.pth is not a file; download it from https"):
        read_released_head(tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(BadInputError, match=r"text\.pth cannot be read as weights"):
        read_released_head(tmp_path / "text.pth")


# From the command line


@pytest.fixture
def world(tmp_path, monkeypatch, capsys):
    small = SmallWorld(tmp_path, monkeypatch, capsys)
    generator = np.random.default_rng(0)
    for folder in ("val", "valannot"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            shape = (48, 60 + number) if folder.endswith("annot") else (48, 60 + number, 3)
            values = generator.integers(NUM_CLASSES + 1 if len(shape) == 2 else 256, size=shape, dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / folder / f"{number}.png")
    return small


def segmentation(world, head: Path, **changes: str) -> dict[str, str]:
    return {
        "task": "segmentation", "data": "camvid", "data.root": str(world.folder), "task.head": str(head), **changes,
    }  # fmt: skip


@pytest.mark.parametrize("inference", ["whole", "slide"])
def test_a_released_head_is_used_and_its_hash_recorded(world, inference):
    head = save(world.folder, ReleasedHead().state())
    code, _, err = world.run(**segmentation(world, head, **{"task.inference": inference}))
    assert code == 0, err
    exact, fna = (read_record(folder) for folder in world.records())
    assert exact.fitted == fna.fitted == hash_file(head)
    assert exact.identity["fitted_file"] == hash_file(head)
    assert exact.identity["fitted_on"] is None
    assert fna.comparison is not None
    assert 0 < exact.score.value < 1
    assert not (world.results / ".fitted").exists()


def test_another_head_is_another_experiment_wherever_it_lies(world):
    changes = segmentation(world, save(world.folder, ReleasedHead().state()), attention="exact")
    world.run(**changes)
    (world.folder / "elsewhere").mkdir()
    moved = world.folder / "elsewhere" / "head.pth"
    moved.write_bytes(Path(changes["task.head"]).read_bytes())
    world.run(**(changes | {"task.head": str(moved)}))
    assert len(world.records()) == 1
    save(world.folder, ReleasedHead().state())
    world.run(**changes)
    assert len(world.records()) == 2


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ((150, NUM_CHANNELS), "knows 150 classes, this data has 11; choose the head of this data set"),
        ((NUM_CLASSES, 4 * NUM_CHANNELS), "takes 256 channels a patch, this model gives 64"),
    ],
)
def test_a_head_of_other_sizes_is_refused_before_anything_is_loaded(world, sizes, reason):
    head = save(world.folder, ReleasedHead(*sizes).state())
    assert reason in world.refused(**segmentation(world, head))
    assert world.records() == []
