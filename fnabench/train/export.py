"""What the package carries of a trained model: float16 weights and a card with their checksum, in one folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor


def round_to_half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as float32 numbers that float16 can hold, to measure exactly what is shipped."""
    return {name: value.detach().half().float() for name, value in weights.items()}


def write_weights(folder: Path, name: str, weights: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write name.safetensors and name.json; the card gets the sha256 and the number of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    content = save({key: value.detach().half().contiguous().clone() for key, value in weights.items()})
    (folder / f"{name}.safetensors").write_bytes(content)
    size = {"num_parameters": sum(value.numel() for value in weights.values())}
    text = json.dumps({"sha256": hashlib.sha256(content).hexdigest(), **size, **card}, indent=2)
    (folder / f"{name}.json").write_text(text + "\n")
