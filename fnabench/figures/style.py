"""What all pictures share: colours that colour-blind readers can tell apart, and how a figure becomes files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fnabench.errors import MissingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLACK, ORANGE, BLUE, GREY, GREEN, PURPLE = "#000000", "#D55E00", "#0072B2", "#7F7F7F", "#009E73", "#CC79A7"
"""Of the palette of Okabe and Ito."""
LOOK = {"cls": (BLACK, "o"), "massive": (ORANGE, "^"), "artifact": (BLUE, "s"), "normal": (GREY, "v")}
"""Colour and marker of each group."""
FORMATS = ("png", "svg")


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches, that needs no display."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingError("pictures need matplotlib; install it with: pip install 'fnabench[figures]'") from error
    mpl.rcParams["svg.hashsalt"] = "fnabench"  # the same picture gives the same file
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, folder: Path, name: str, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write the figure in these formats."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{form}" for form in formats]
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, facecolor="white", metadata=metadata)
        if path.suffix == ".png":
            _with_palette(path)
    return paths


def _with_palette(path: Path) -> None:
    """256 colours, chosen for the picture, take a third of the bytes."""
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(256, kmeans=1, dither=Image.Dither.NONE).save(path, optimize=True)


def tidy(axes: Any, title: str, x: str, y: str) -> None:
    """Labels and a light grid."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def log_scale(axes: Any) -> None:
    """A logarithmic y axis with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def mean_of_present(values: NDArray[Any]) -> NDArray[Any]:
    """Over the first axis, of what is no NaN; NaN where nothing is."""
    return np.asarray(np.ma.masked_invalid(values).mean(axis=0).filled(np.nan))
