"""The passes of an experiment over its data: fitting, choosing, calibration, accuracy, cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import torch

from fnabench.attention.base import Attention, Calibrated
from fnabench.budget import Budget, Choice, Search
from fnabench.contract import Task
from fnabench.cost import Measurement, attach_alone, measure_cost
from fnabench.data.base import Sample, Source
from fnabench.decoded import Decoded
from fnabench.experiment import Experiment
from fnabench.finite import only_finite
from fnabench.identity import digest
from fnabench.loader import Batch, Loader
from fnabench.models.base import Backbone
from fnabench.models.weights_file import hash_file
from fnabench.progress import steps
from fnabench.scores import Scores
from fnabench.store import Fitted, Store
from fnabench.timing import MOST_WARM_UP_ROUNDS

if TYPE_CHECKING:
    from torch import Tensor


def load(experiment: Experiment, store: Store) -> Backbone:
    """The model with its weights; with data.cache=decoded, what its transforms make of images is kept in the store."""
    backbone = experiment.model.load(experiment.device, experiment.dtype)
    if experiment.cache:
        for name in ("transform", "transform_whole"):
            key = digest([experiment.transform_key, name])
            decoded = Decoded(transform=getattr(backbone, name), folder=store.root / ".decoded", key=key)
            setattr(backbone, name, decoded)
    return backbone


def fit(experiment: Experiment, store: Store, backbone: Callable[[], Backbone]) -> Fitted | None:
    """What the task fits on the training split with exact attention, from the store or now, or what a file gives
    instead; None if it needs nothing of the kind."""
    if (path := experiment.task.fitted_file) is not None:
        return Fitted(state=experiment.task.read_fitted(path), sha256=hash_file(path))
    training = experiment.training_split
    if training is None:
        return None
    with store.lock(experiment.fit_key):
        if (fitted := store.find_fitted(experiment.fit_key)) is None:
            backbone().layers.detach()
            with (
                torch.inference_mode(),
                _only_finite(experiment.twin, backbone()),
                steps("fitting with exact attention", len(training)) as advance,
            ):
                state = experiment.task.fit(backbone(), _loader(experiment, backbone(), training, advance))
            fitted = store.save_fitted(experiment.fit_key, state)
    return fitted


def choose(
    experiment: Experiment, budget: Budget, store: Store, backbone: Callable[[], Backbone], *, rerun: bool
) -> Choice:
    """What the budget comes to on this model and device: from the store, or found out now."""
    with store.lock(experiment.key):
        if rerun or (fitted := store.find_fitted(experiment.key)) is None:
            source = experiment.calibration_images
            images = _loader(experiment, backbone(), source).first(min(budget.num_images, len(source))).images
            batch = _loader(experiment, backbone(), experiment.source).first(experiment.probe.batch_size)
            most, size = len(budget.num_landmarks) + len(backbone().layers), experiment.batch_size
            with steps("choosing landmarks and layers", most) as advance:
                search = Search(
                    backbone=backbone(),
                    attention=experiment.attention,
                    chunks=[images[start : start + size] for start in range(0, len(images), size)],
                    forward=experiment.task.forward,
                    batch=batch,
                    seed=experiment.seed,
                    on_step=lambda: advance(1),
                )
                fitted = store.save_fitted(experiment.key, search.choose(budget).state())
    return Choice.of(fitted.state)


def prepare(experiment: Experiment, backbone: Callable[[], Backbone]) -> Calibrated:
    """The variant with stored masks, or after it has seen its calibration images in the untouched model."""
    attention, masks = experiment.attention, experiment.masks
    if masks is not None:
        return Calibrated(attention=attention.with_masks(masks.ids, masks.masks), found=masks.origin)
    if not attention.num_calibration_images:
        return Calibrated(attention=attention, found={})
    model, source = backbone(), experiment.calibration_images
    wanted = min(attention.num_calibration_images, len(source))
    model.layers.detach()
    with torch.inference_mode(), _only_finite(experiment.twin, model), steps("calibration", wanted) as advance:
        images = _loader(replace(experiment, batch_size=1), model, source, advance)
        forwards = (partial(experiment.task.forward, model, image) for image in islice(images, wanted))
        calibrated = attention.calibrate(model.layers, forwards)
    split = "scored" if source is experiment.source else "training"
    return replace(calibrated, found={"split": split} | calibrated.found)


def evaluate(experiment: Experiment, attention: Attention, backbone: Backbone, fitted: Mapping[str, Tensor]) -> Scores:
    """The accuracy pass: the task's protocol over the whole data set."""
    attach_alone(backbone, attention, [backbone.layers[index] for index in experiment.layer_indices])
    with (
        torch.inference_mode(),
        _only_finite(experiment, backbone),
        steps(f"accuracy, {experiment.names['attention']}", len(experiment.source)) as advance,
    ):
        return experiment.task.evaluate(backbone, _loader(experiment, backbone, experiment.source, advance), fitted)


def probe(experiment: Experiment, attention: Attention, backbone: Backbone) -> Measurement:
    """The cost pass: exact and variant on the same batch, already on the device."""
    total = 2 * (experiment.probe.num_rounds + MOST_WARM_UP_ROUNDS)
    with steps(f"cost, {experiment.names['attention']} beside exact", total) as advance:
        return measure_cost(
            backbone,
            attention,
            [backbone.layers[index] for index in experiment.layer_indices],
            partial(_forward, experiment.task),
            _loader(experiment, backbone, experiment.source).first(experiment.probe.batch_size),
            experiment.probe,
            experiment.seed,
            on_step=lambda: advance(1),
        )


def _only_finite(experiment: Experiment, backbone: Backbone) -> AbstractContextManager[None]:
    return only_finite(
        backbone, experiment.names["attention"], experiment.dtype, is_exact=experiment.attention.is_exact
    )


def _forward(task: Task, backbone: Backbone, batch: Batch) -> object:
    _tell(backbone, batch.samples)
    return task.forward(backbone, batch)


def _tell(backbone: Backbone, samples: Sequence[Sample]) -> None:
    backbone.layers.tell([sample.id for sample in samples])


def _loader(
    experiment: Experiment, backbone: Backbone, source: Source, on_batch: Callable[[int], None] = lambda _: None
) -> Loader:
    return Loader(
        source=source,
        transform=backbone.transform_whole if experiment.task.whole_image else backbone.transform,
        batch_size=experiment.batch_size,
        num_workers=experiment.num_workers,
        num_processes=experiment.num_processes,
        device=experiment.device,
        dtype=experiment.dtype,
        before_batch=partial(_tell, backbone),
        on_batch=on_batch,
    )
