"""The variant that CONTRIBUTING.md shows in full runs as it says there, from outside the repository."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from builders import attention_inputs, key_mask, on_meta, shape_of, softmax_attention
from small_world import SmallWorld

from fnabench.attention.base import Attention
from fnabench.errors import ImpossibleError
from fnabench.macs import count_macs
from fnabench.store import read_record

PAGE = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1
    return found[0]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """my_package/strided.py and my_conf/attention/strided.yaml in a folder that Python looks into."""
    for name, text in (
        ("my_package/strided.py", block("python")),
        ("my_conf/attention/strided.yaml", block("yaml").replace("fnabench.attention.", "my_package.")),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my_package", "my_package.strided"):  # of the test before
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.fixture
def strided(package: Path) -> Attention:
    variant: Attention = importlib.import_module("my_package.strided").Strided(stride=3)
    return variant


def test_its_keys_are_the_prefix_and_every_third_patch(strided: Attention) -> None:
    inputs = attention_inputs(num_prefix=2)
    kept = [0, 1, 2, 5, 8, 11, 14]
    expected = softmax_attention(inputs.q, inputs.k[:, :, kept], inputs.v[:, :, kept], inputs.scale)
    torch.testing.assert_close(strided(inputs).double(), expected, atol=1e-5, rtol=0)


def test_it_counts_its_macs_and_refuses_masks(strided: Attention) -> None:
    inputs = attention_inputs(batch=1)
    assert strided.macs(shape_of(inputs), 1) == count_macs(lambda: strided(on_meta(inputs)))
    for given in (attention_inputs(is_causal=True), attention_inputs(mask=key_mask([0, 1], [0, 1]))):
        with pytest.raises(ImpossibleError, match="cannot be honoured"):
            strided(given)
    with pytest.raises(ImpossibleError, match="a causal mask"):
        strided.check(shape_of(attention_inputs(is_causal=True)))


def test_it_runs_from_outside_the_repository(package: Path, world: SmallWorld) -> None:
    code, _, err = world.run("--config-dir", str(package / "my_conf"), attention="strided")
    assert code == 0, err
    _, record = (read_record(folder) for folder in world.records())
    assert record.attention == "strided"
    assert record.identity["attention"] == {"class": "my_package.strided.Strided", "stride": 2}
