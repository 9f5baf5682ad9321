"""Suppression matrices as heat maps: who shrinks by attending to whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fnabench.figures.style import mean_of_present, new_figure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]


def of_blocks(arrays: Arrays) -> Any:
    """The suppression matrix of each block, mean over heads and images."""
    matrices = mean_of_present(arrays["suppression"].swapaxes(0, 1))  # [L, G, G]
    return _matrices(arrays, matrices, [f"block {number}" for number in range(len(matrices))])


def of_heads(arrays: Arrays) -> Any:
    """The suppression matrix of each head of the last block before tokens are looked for."""
    block = max(int(arrays["blocks"][0]) - 1, 0)
    matrices = arrays["suppression"][block]  # [H, G, G]
    return _matrices(arrays, matrices, [f"block {block}, head {head}" for head in range(len(matrices))])


def _matrices(arrays: Arrays, matrices: NDArray[Any], names: Sequence[str]) -> Any:
    """Small heat maps with one scale, orange where the row's tokens shrink."""
    columns = min(4, len(matrices))
    rows = -(-len(matrices) // columns)
    figure = new_figure(2.6 * columns + 1, 2.6 * rows + 0.6)
    panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
    groups = ["CLS" if group == "cls" else group for group in arrays["groups"].tolist()]
    limit = max(float(np.nanmax(np.abs(matrices))), 1e-9)
    for axes in panels[len(matrices) :]:
        axes.set_visible(False)
    for axes, matrix, name in zip(panels, matrices, names, strict=False):
        shown = axes.imshow(matrix, cmap="PuOr", vmin=-limit, vmax=limit)
        axes.set_title(name, fontsize=9)
        axes.set_xticks(range(len(groups)), groups, rotation=45, ha="right", fontsize=7)
        axes.set_yticks(range(len(groups)), groups, fontsize=7)
        for (row, column), value in np.ndenumerate(matrix):
            if not np.isnan(value):
                ink = "white" if abs(value) > 0.6 * limit else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    figure.supxlabel("attended token j", fontsize=9)
    figure.supylabel("attending token i", fontsize=9)
    figure.suptitle("Suppression: where it is below 0, attending to j shrinks i", fontsize=10)
    figure.colorbar(shown, ax=list(panels))
    return figure
