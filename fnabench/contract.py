"""What a task is: a protocol over a backbone and a data set that gives scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from fnabench.data.base import Source
from fnabench.errors import ImpossibleError
from fnabench.models.base import Backbone, Blueprint, Model

if TYPE_CHECKING:
    from torch import Tensor

    from fnabench.loader import Batch, Loader
    from fnabench.scores import Scores


class Task(ABC):
    """A protocol with its metric: its subclass is one final, frozen, keyword-only dataclass."""

    whole_image: ClassVar[bool] = False
    """True where images are resized as a whole; else the model's own crop is used."""

    @property
    @abstractmethod
    def metric(self) -> str:
        """Name of the headline metric, which evaluate's scores hold."""

    @property
    @abstractmethod
    def needs_of_model(self) -> frozenset[str]:
        """Which of Model.offers the protocol uses."""

    @property
    @abstractmethod
    def needs_of_data(self) -> frozenset[str]:
        """Which of Source.provides the protocol uses."""

    def check(self, model: Model, blueprint: Blueprint, source: Source) -> None:
        """Raise ImpossibleError if the protocol cannot run on this pair; nothing has been loaded yet."""
        for what, has, needs in (
            ("model", model.offers, self.needs_of_model),
            ("data", source.provides, self.needs_of_data),
        ):
            if lacking := sorted(needs - has):
                reasons = model.lacks if what == "model" else {}
                because = "".join(f" ({reasons[each]})" for each in lacking if each in reasons)
                raise ImpossibleError(
                    f"this task needs {' and '.join(lacking)} of its {what}, which has "
                    f"{' and '.join(sorted(has)) or 'nothing of the kind'}{because}; choose another {what}= or task="
                )
        if "patches" in self.needs_of_model and any(shape.is_causal for shape in blueprint.shapes):
            raise ImpossibleError("this task looks into a vision tower, not into a decoder; give model.scope=vision")
        if self.fits(model) and source.training_split() is None:
            instead = f"give {source.training_option} or " if source.training_option else ""
            raise ImpossibleError(
                f"this task fits on a training split, which this data has not; {instead}choose another data="
            )

    def weights_hash(self) -> str | None:
        """A hash over the content of whatever weights the protocol itself uses; None where it uses none."""
        return None

    def fits(self, model: Model) -> bool:
        """Whether the protocol fits something on the data's training split first."""
        return False

    @property
    def fitted_file(self) -> Path | None:
        """A file that holds what the protocol would fit otherwise; None where there is none."""
        return None

    def read_fitted(self, path: Path) -> dict[str, Tensor]:
        """What `fit` would give, from such a file; MissingError or BadInputError where it does not hold it."""
        raise RuntimeError(f"{type(self).__name__} reads no file")

    def fit(self, backbone: Backbone, loader: Loader) -> dict[str, Tensor]:
        """What is fitted on the training split, with exact attention; kept, and never fitted again."""
        raise RuntimeError(f"{type(self).__name__} fits nothing")

    @abstractmethod
    def evaluate(self, backbone: Backbone, loader: Loader, fitted: Mapping[str, Tensor]) -> Scores:
        """Run the protocol over all samples of the loader; `fitted` is what `fit` or `read_fitted` gave, or empty."""

    @abstractmethod
    def forward(self, backbone: Backbone, batch: Batch) -> object:
        """The one call of the model whose latency and memory count as end to end."""
