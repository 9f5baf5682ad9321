"""The loader's rates: every number of workers reads every image, and the table says what is enough."""

from __future__ import annotations

import sys
import time

import torch
from PIL import Image

from fnabench.bench import loader

CPU = torch.device("cpu")


def test_photographs_have_the_size_and_detail_of_photographs(tmp_path):
    folder = loader.make_photographs(tmp_path, 3)
    images = [Image.open(path) for path in sorted(folder.iterdir())]
    assert [image.size for image in images] == [loader.PHOTOGRAPH] * 3
    assert all(path.stat().st_size > 4000 for path in folder.iterdir())


def test_each_number_of_workers_has_a_rate_of_its_own_pass(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    folder = loader.make_photographs(tmp_path, 6)
    start = time.perf_counter()
    rates = dict(loader.loader_rates(folder, CPU))
    seconds = time.perf_counter() - start
    assert list(rates) == [0, 1, 2]
    assert sum(6 / rate for rate in rates.values()) <= seconds


def test_what_is_kept_is_read_by_every_later_pass(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    (tmp_path / "images").mkdir()
    folder = loader.make_photographs(tmp_path / "images", 3)
    assert loader.pass_rate(loader.make_loader(folder, CPU, 0, tmp_path / "kept")) > 0
    assert len(list((tmp_path / "kept").glob("*.images"))) == 1
    monkeypatch.setattr(loader.ImageFolder, "__getitem__", None)
    assert list(dict(loader.loader_rates(folder, CPU, tmp_path / "kept"))) == [0, 1]


def test_the_command_prints_the_rates_and_what_is_enough(tmp_path, monkeypatch, capsys):
    for name, value in (("ARCHITECTURE", "test_vit"), ("IMAGE_SIZE", 160), ("BATCH_SIZE", 2), ("NUM_FORWARDS", 1)):
        monkeypatch.setattr(loader, name, value)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(sys, "argv", ["loader", str(loader.make_photographs(tmp_path, 4))])
    loader.main()
    out = capsys.readouterr().out
    assert "images/s" in out
    assert out.count("it busy") == 2
    assert "this machine has 1 cores" in out
    assert out.count("%") == 2 + 1 + 2
