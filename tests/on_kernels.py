"""Where the tests of kernels run them: on a CUDA device, or else in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NEEDS_KERNELS = pytest.mark.skipif(
    DEVICE.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="no CUDA device, no interpreter"
)
UNREAD_PADDING = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
"""The interpreter computes with what lies behind the end of a tensor, and throws it away."""
