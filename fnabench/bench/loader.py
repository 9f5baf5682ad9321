"""Images a second that the loader gives, beside what an encoder takes: `python -m fnabench.bench.loader [folder]`.

Timed: whole passes of the loader over a folder of images, decoded, resized and brought to the device, with more and
more worker processes; the same with data.cache=decoded, the pass that writes apart; and ViT-B/16's forward of a batch
that is already there. Without a folder, photograph-sized JPEGs are made for the occasion.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from fnabench.data.folder import ImageFolder
from fnabench.decoded import Decoded
from fnabench.device import choose_device
from fnabench.loader import Loader
from fnabench.models.preprocessing import square_transforms

NUM_IMAGES = 256
PHOTOGRAPH = (500, 375)
"""ImageNet's usual width and height."""
IMAGE_SIZE = 224
BATCH_SIZE = 32
NUM_FORWARDS = 5
ARCHITECTURE = "vit_base_patch16_224"


def main() -> None:
    """Print the rates, and how many workers keep the encoder busy."""
    device = choose_device("auto")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else make_photographs(Path(temporary), NUM_IMAGES)
        encoder = encoder_rate(device)
        table = Table(title=f"{ARCHITECTURE} on {device} takes {encoder:.0f} images/s", title_justify="left")
        for column in ("data.cache", "loader.num_workers", "images/s", "of what the encoder takes"):
            table.add_column(column, justify="right")
        enough: dict[str, int] = {}
        for cache, kept_in in (("null", None), ("decoded", Path(temporary) / "decoded")):
            if kept_in is not None:
                first = pass_rate(make_loader(folder, device, 0, kept_in))
                table.add_row("written", "0", f"{first:.0f}", f"{first / encoder:.0%}")
            for num_workers, rate in loader_rates(folder, device, kept_in):
                table.add_row(cache, str(num_workers), f"{rate:.0f}", f"{rate / encoder:.0%}")
                if rate >= encoder:
                    enough.setdefault(cache, num_workers)
    console = Console()
    console.print(table)
    for cache in ("null", "decoded"):
        most = f"loader.num_workers={enough[cache]} keeps" if cache in enough else "no number of workers here keeps"
        console.print(f"data.cache={cache}: {most} it busy")
    console.print(f"this machine has {os.cpu_count()} cores")


def make_photographs(folder: Path, count: int) -> Path:
    """JPEGs as smooth as photographs, so that decoding takes as long."""
    for number in range(count):
        coarse = np.random.default_rng(number).integers(256, size=(12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(PHOTOGRAPH, Image.Resampling.BICUBIC).save(
            folder / f"{number:04d}.jpg", quality=90
        )
    return folder


def encoder_rate(device: torch.device) -> float:
    """Images a second through a batch that is already on the device, bfloat16 on a GPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    module = timm.create_model(ARCHITECTURE).to(device, dtype).eval()
    images = torch.rand(BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE, device=device, dtype=dtype)
    with torch.inference_mode():
        module(images)
        start = _now(device)
        for _ in range(NUM_FORWARDS):
            module(images)
        return NUM_FORWARDS * BATCH_SIZE / (_now(device) - start)


def loader_rates(folder: Path, device: torch.device, kept_in: Path | None = None) -> Iterator[tuple[int, float]]:
    """Workers and images a second of a whole pass, for 0, 1, 2, 4, ... workers up to the number of cores."""
    for num_workers in (0, *(2**power for power in range((os.cpu_count() or 1).bit_length()))):
        yield num_workers, pass_rate(make_loader(folder, device, num_workers, kept_in))


def make_loader(folder: Path, device: torch.device, num_workers: int, kept_in: Path | None) -> Loader:
    """The images of a folder through CLIP's transform, which is kept if there is a folder for it."""
    transform, _ = square_transforms(IMAGE_SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Loader(
        source=ImageFolder(root=str(folder), labels=None),
        transform=Decoded(transform=transform, folder=kept_in, key="") if kept_in else transform,
        batch_size=BATCH_SIZE,
        num_workers=num_workers,
        device=device,
        dtype=torch.float32,
    )


def pass_rate(loader: Loader) -> float:
    """Images a second of a whole pass."""
    start = _now(loader.device)
    count = sum(len(batch.samples) for batch in loader)
    return count / (_now(loader.device) - start)


def _now(device: torch.device) -> float:
    """Seconds, once the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
