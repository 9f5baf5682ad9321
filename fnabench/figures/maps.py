"""Token maps: where massive and artifact tokens lie among the patches, and on the images themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fnabench.figures.style import LOOK, new_figure, tidy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]


def places(arrays: Arrays) -> Any:
    """How often each place is massive or an artifact, and how many an image has."""
    figure = new_figure(11, 3.6)
    axes = figure.subplots(1, 3)
    for panel, kind in zip(axes, ("massive", "artifact"), strict=False):
        share = _on_grid(arrays, arrays[kind].mean(0))
        shown = panel.imshow(share, cmap="cividis", vmin=0, vmax=share.max() or 1)
        panel.set_title(f"Share of images: {kind}{'' if share.any() else ' (none found)'}", fontsize=10, loc="left")
        panel.set_xlabel("column of patches")
        panel.set_ylabel("row of patches")
        for axis in (panel.xaxis, panel.yaxis):
            axis.get_major_locator().set_params(integer=True)
        figure.colorbar(shown, ax=panel, shrink=0.85)
    last = max(int(arrays[kind].sum(1).max()) for kind in ("massive", "artifact"))
    for kind, shift in (("massive", -0.2), ("artifact", 0.2)):
        counts = np.bincount(arrays[kind].sum(1), minlength=last + 1)
        colour = LOOK[kind][0]
        axes[2].bar(np.arange(last + 1) + shift, counts, width=0.4, color=colour, label=kind)
    tidy(axes[2], "Tokens of an image", "tokens", "images")
    axes[2].legend(frameon=False)
    return figure


def on_images(arrays: Arrays, images: Sequence[NDArray[Any]]) -> Any:
    """The first images with their massive and artifact tokens outlined."""
    figure = new_figure(1.9 * len(images), 2.4)
    height, width = arrays["grid"].tolist()
    for number, (axes, image) in enumerate(zip(np.ravel(figure.subplots(1, len(images))), images, strict=True)):
        axes.imshow(image)
        axes.set_axis_off()
        step_y, step_x = image.shape[0] / height, image.shape[1] / width
        for kind in ("massive", "artifact"):
            rows, columns = np.nonzero(_on_grid(arrays, arrays[kind][number]))
            for edge, thickness in (("white", 4), (LOOK[kind][0], 2)):  # white below, so that it shows on any image
                _outline(axes, rows * step_y, columns * step_x, step_y, step_x, edge, thickness)
        counts = [int(arrays[kind][number].sum()) for kind in ("massive", "artifact")]
        axes.set_title(f"{counts[0]} massive, {counts[1]} artifact", fontsize=8)
    figure.suptitle("massive (orange) and artifact (blue) tokens", fontsize=10)
    return figure


def _outline(
    axes: Any, tops: NDArray[Any], lefts: NDArray[Any], height: float, width: float, colour: str, thickness: float
) -> None:
    from matplotlib.patches import Rectangle

    for top, left in zip(tops, lefts, strict=True):
        axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=thickness))


def _on_grid(arrays: Arrays, values: NDArray[Any]) -> NDArray[Any]:
    height, width = arrays["grid"].tolist()
    return values[-height * width :].reshape(height, width)
