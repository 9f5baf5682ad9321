"""Scores kept per sample, so that two runs can be compared sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fnabench.errors import BadInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleScores:
    """A metric kept per sample: mean over columns of sum(numerator) / sum(denominator) over the samples.

    A plain mean has one column and denominators of 1; mIoU has one column a class, intersection over union.
    """

    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    """What samples share, usually the image: resampling draws whole clusters."""
    numerator: NDArray[np.float64]
    """[n, columns]"""
    denominator: NDArray[np.float64]
    """[n, columns]"""
    predictions: NDArray[Any] | None = None
    """Text [n, p], from whatever was given as [n] or [n, p]; equality with another run's gives the agreement."""

    def __post_init__(self) -> None:
        lengths = {len(self.ids), len(self.clusters), len(self.numerator), len(self.denominator)}
        if len(lengths) != 1 or self.numerator.shape != self.denominator.shape or self.numerator.ndim != 2:
            raise ValueError("ids, clusters, numerator and denominator must describe the same samples")
        if self.predictions is not None:
            text = np.asarray(self.predictions).reshape(len(self.ids), -1).astype(np.str_)
            object.__setattr__(self, "predictions", text)

    @classmethod
    def mean_of(
        cls,
        scores: NDArray[np.float64],
        ids: tuple[str, ...],
        clusters: tuple[str, ...] | None = None,
        predictions: NDArray[Any] | None = None,
    ) -> SampleScores:
        """One score a sample, averaged."""
        column = np.asarray(scores, dtype=np.float64)[:, None]
        return cls(
            ids=ids,
            clusters=clusters or ids,
            numerator=column,
            denominator=np.ones_like(column),
            predictions=predictions,
        )

    @property
    def value(self) -> float:
        """The metric over all samples."""
        return float(ratio_of_sums(self.numerator.sum(0), self.denominator.sum(0)))


def ratio_of_sums(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of numerator / denominator, leaving out columns whose denominator is 0."""
    occurs = denominator > 0
    ratios = np.divide(numerator, denominator, out=np.zeros_like(numerator, dtype=np.float64), where=occurs)
    mean: NDArray[np.float64] = ratios.sum(-1) / np.maximum(occurs.sum(-1), 1)
    return mean


@dataclass(frozen=True, kw_only=True)
class Scores:
    """All metrics of one evaluation."""

    metrics: Mapping[str, SampleScores]
    headline: str
    units: Mapping[str, str] = field(default_factory=dict)
    """Units of the metrics that are no fraction; all others are shown in per cent."""
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """What else was found, by name: kept in arrays.npz beside the record."""
    rows: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """A table of findings, by column: kept in rows.parquet beside the record."""

    def __post_init__(self) -> None:
        for metric, samples in self.metrics.items():
            for values in (samples.numerator, samples.denominator):
                if len(places := np.argwhere(~np.isfinite(values))):
                    sample, column = places[0]
                    raise BadInputError(
                        f"{metric} is {values[sample, column]} for sample {samples.ids[sample]}, which has no mean; "
                        "give dtype=float32, another model= or data without that sample"
                    )

    @property
    def main(self) -> SampleScores:
        """The metric that a run is judged by."""
        return self.metrics[self.headline]
