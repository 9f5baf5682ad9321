"""fnabench: what replacing the attention of a pretrained vision transformer costs in accuracy and saves in time.

The names below are imported when they are first used, so that `import fnabench` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fnabench.attention.exact import Exact
    from fnabench.attention.fna import Fna
    from fnabench.attention.fna_refined import FnaRefined
    from fnabench.surgery import attach, detach

__all__ = ["Exact", "Fna", "FnaRefined", "attach", "detach"]
__version__ = "0.1.0"

_HOMES = {
    "Exact": "fnabench.attention.exact",
    "Fna": "fnabench.attention.fna",
    "FnaRefined": "fnabench.attention.fna_refined",
    "attach": "fnabench.surgery",
    "detach": "fnabench.surgery",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
