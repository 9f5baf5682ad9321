"""What a task is: a protocol over a backbone and a data set that gives scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from fnabench.data.base import Source
from fnabench.errors import ImpossibleError
from fnabench.models.base import Backbone, Blueprint, Model

if TYPE_CHECKING:
    from fnabench.loader import Batch, Loader
    from fnabench.scores import Scores


class Task(ABC):
    """A protocol with its metric: its subclass is one final, frozen, keyword-only dataclass."""

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
            if lacking := needs - has:
                raise ImpossibleError(
                    f"this task needs {' and '.join(sorted(lacking))} of its {what}, which has "
                    f"{' and '.join(sorted(has)) or 'nothing of the kind'}; choose another {what}= or task="
                )

    @abstractmethod
    def evaluate(self, backbone: Backbone, loader: Loader) -> Scores:
        """Run the protocol over all samples of the loader."""

    @abstractmethod
    def forward(self, backbone: Backbone, batch: Batch) -> object:
        """The one call of the model whose latency and memory count as end to end."""
