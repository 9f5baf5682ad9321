"""The pictures of one record of task=tokens, and its counts as a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fnabench.errors import BadInputError, MissingError
from fnabench.experiment import Experiment
from fnabench.figures import maps, suppression
from fnabench.figures.style import (
    BLACK,
    BLUE,
    FORMATS,
    GREEN,
    GREY,
    LOOK,
    ORANGE,
    log_scale,
    mean_of_present,
    new_figure,
    save,
    tidy,
)
from fnabench.record import Record
from fnabench.store import ARRAYS, RECORD, read_record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

COUNTED = ("massive_norm", "massive_cls", "artifact", "one_pass")
PERCENTILES = (5, 25, 50, 75, 95)


def draw(folder: Path, out: Path, num_images: int, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write all pictures and the tables; returns their paths. Images are no part of a record: they are read again."""
    record = _record_of_tokens(folder)
    with np.load(folder / ARRAYS) as file:
        arrays = dict(file)
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokens.md").write_text(to_markdown(record, arrays), encoding="utf-8")
    figures = {
        "growth": growth(arrays),
        "rounds": rounds(record, arrays),
        "suppression": suppression.of_blocks(arrays),
        "suppression_heads": suppression.of_heads(arrays),
        "places": maps.places(arrays),
    }
    if num_images and (images := _images(record, min(num_images, record.num_samples))):
        figures["images"] = maps.on_images(arrays, images)
    return [out / "tokens.md", *(path for name, figure in figures.items() for path in save(figure, out, name, formats))]


def latest_record(folder: Path) -> Path:
    """The folder itself if it holds a record, else the one of the latest record below it."""
    found = [path.parent for path in folder.glob(f"*/{RECORD}")]
    if (folder / RECORD).is_file() or not found:
        return folder
    # Of two records of one second the file that was written later counts.
    return max(found, key=lambda each: (read_record(each).created, (each / RECORD).stat().st_mtime_ns))


def to_markdown(record: Record, arrays: Arrays) -> str:
    """How many tokens of each kind an image has."""
    detect, start = arrays["blocks"].tolist()
    settings = record.identity["task"]
    lines = [
        f"# Massive and artifact tokens: {record.model} on {record.data}, attention={record.attention}\n",
        f"{record.num_samples} images, {record.num_tokens} tokens, {record.num_layers} blocks. Looked for in the input "
        f"of block {detect}; {settings['operator']}, {settings['pattern']} from block {start} on. one_pass: artifacts "
        "found by one forward.\n",
        "| tokens of an image | mean | " + " | ".join(f"p{p}" for p in PERCENTILES) + " | images with none |",
        "| --- " * (len(PERCENTILES) + 3) + "|",
    ]
    for name in COUNTED:
        if name in arrays:
            counts = arrays[name].sum(1)
            at = " | ".join(f"{value:g}" for value in np.percentile(counts, PERCENTILES))
            lines.append(f"| {name} | {counts.mean():.2f} | {at} | {(counts == 0).mean():.0%} |")
    if "one_pass_iou" in record.scores:
        overlap = record.scores["one_pass_iou"].times(100)
        lines.append(f"\nArtifacts of one pass and of the rounds, intersection over union: {overlap:.1f} %.")
    return "\n".join([*lines, *_by_block(arrays)]) + "\n"


def _by_block(arrays: Arrays) -> list[str]:
    """Before each block and after the last: norms of the groups, and what a token of each receives, in thousandths."""
    groups = ["CLS" if group == "cls" else group for group in arrays["groups"].tolist()]
    lines = [
        "\n| before block | " + " | ".join(f"norm {group}" for group in groups)
        + " | " + " | ".join(f"attention {group} (/1000)" for group in groups) + " |",
        "| --- " * (2 * len(groups) + 1) + "|",
    ]  # fmt: skip
    norms, received = mean_of_present(arrays["norms"]), 1000 * mean_of_present(arrays["received"])
    for block, norm in enumerate(norms):
        attention = received[block] if block < len(received) else np.full(len(groups), np.nan)
        cells = ["-" if np.isnan(value) else f"{value:.1f}" for value in (*norm, *attention)]
        name = f"{block}" if block < len(received) else "(after the last)"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def growth(arrays: Arrays) -> Any:
    """Norms of the groups and the attention that their tokens receive, block by block."""
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    for number, group in enumerate(arrays["groups"].tolist()):
        colour, marker = LOOK[group]
        for axes, name in ((left, "norms"), (right, "received")):
            values = arrays[name][:, :, number]
            if np.isnan(values).all():
                continue
            low, middle, high = _over_images(values)
            label = group if group != "cls" else "CLS"
            axes.plot(middle, color=colour, marker=marker, markersize=4, label=label)
            axes.fill_between(range(len(middle)), low, high, color=colour, alpha=0.15, linewidth=0)
    tidy(left, "Norm before each block and after the last (mean, p10 to p90)", "block", "L2 norm")
    tidy(right, "Attention that one token receives (all queries and heads)", "block", "share of the attention")
    for axes in (left, right):
        log_scale(axes)
        axes.legend(frameon=False)
    return figure


def rounds(record: Record, arrays: Arrays) -> Any:
    """The largest remaining norm block by block, and what CLS attends to, round by round."""
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    detect, start = arrays["blocks"].tolist()
    settings = record.identity["task"]
    largest = mean_of_present(arrays["round_norm_rest"])  # [R, L]
    import matplotlib as mpl

    shades = mpl.colormaps["cividis"](np.linspace(0, 0.9, len(largest)))
    for number, (norms, shade) in enumerate(zip(largest, shades, strict=True)):
        left.plot(norms, color=shade, marker="o", markersize=2.5, label=f"{number}")
    left.axvline(start, color=GREY, linestyle=":", linewidth=1)
    log_scale(left)
    tidy(
        left,
        "Largest norm of a patch that is not yet taken out",
        "block (dotted: the operator holds from here)",
        "L2 norm",
    )
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, max(len(largest) - 1, 1)), mpl.colors.ListedColormap(shades))
    figure.colorbar(scale, ax=left, label="round").locator = mpl.ticker.MaxNLocator(integer=True)
    curves = (
        ("round_attention_cls", "CLS itself", BLACK, "o"),
        ("round_attention_strongest", "strongest remaining patch", BLUE, "s"),
        ("round_attention_masked", "all patches taken out", ORANGE, "^"),
    )
    for name, label, colour, marker in curves:
        if not np.isnan(arrays[name]).all():
            right.plot(mean_of_present(arrays[name]), color=colour, marker=marker, markersize=4, label=label)
    operator = f"{settings['operator']}, {settings['pattern']}"
    tidy(right, f"What CLS attends to in block {detect} ({operator})", "round", "share of the attention")
    right.xaxis.get_major_locator().set_params(integer=True)
    taken = right.twinx()
    taken.plot(mean_of_present(arrays["round_num_tokens"]), color=GREEN, linestyle="--", linewidth=1.5)
    taken.set_ylabel("tokens taken out (dashed)", color=GREEN)
    taken.spines[["top"]].set_visible(False)
    if right.lines:
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=3, frameon=False)
    return figure


def _images(record: Record, count: int) -> list[NDArray[Any]]:
    """The first images as the model sees them, scaled to 0..1; none and a line on stderr where they are not at hand."""
    names = {kind: getattr(record, kind) for kind in ("task", "data", "model", "attention")}
    try:
        experiment = Experiment.again(record.config, names)
        experiment.source.check()
        experiment.model.check()
        transform = experiment.model.load(torch.device("cpu"), torch.float32).transform
    except (MissingError, BadInputError) as error:
        print(f"no picture of the tokens on their images: {error}", file=sys.stderr)
        return []
    images = []
    for number in range(count):
        sample = experiment.source[number]
        if sample.image is not None:
            pixels = transform(sample.image).permute(1, 2, 0).numpy()
            images.append((pixels - pixels.min()) / (np.ptp(pixels) or 1))
    return images


def _record_of_tokens(folder: Path) -> Record:
    if not (folder / RECORD).is_file():
        raise BadInputError(f"{folder} holds no record; give the folder that a run of task=tokens has printed")
    record = read_record(folder)
    if ARRAYS not in record.files:
        raise BadInputError(f"{folder} is a record of task={record.task} without {ARRAYS}; give one of task=tokens")
    return record


def _over_images(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    low, high = np.nanpercentile(values, [10, 90], axis=0)
    return low, mean_of_present(values), high
