"""One experiment from top to bottom: check, look up, evaluate, measure, record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fnabench.attention.base import Attention, Calibrated
from fnabench.budget import Budget, Choice, Search
from fnabench.contract import Task
from fnabench.cost import Measurement, attach_alone, measure_cost
from fnabench.data.base import Sample, Source
from fnabench.decoded import Decoded
from fnabench.device import is_out_of_memory
from fnabench.environment import describe_environment
from fnabench.experiment import Experiment
from fnabench.identity import digest
from fnabench.loader import Batch, Loader
from fnabench.memory import prepare_for_memory
from fnabench.models.base import Backbone
from fnabench.models.weights_file import hash_file
from fnabench.progress import steps
from fnabench.record import Record
from fnabench.scores import Scores
from fnabench.statistics import compare, estimate
from fnabench.store import Fitted, Store, read_scores
from fnabench.text_memory import TextMemory
from fnabench.timing import MOST_WARM_UP_ROUNDS

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run gives: its record, its exact twin's, and whether anything was computed."""

    record: Record
    exact: Record
    folder: Path
    is_new: bool


def run(experiment: Experiment, store: Store, *, rerun: bool = False) -> Outcome:
    """The record of an experiment, from the store or computed now; its exact twin's is had first."""
    experiment = experiment.settled()
    experiment.check()
    backbone = cache(lambda: load(experiment, store))
    if experiment.budget is not None:
        experiment = experiment.chosen(choose(experiment, experiment.budget, store, backbone))
    twin = experiment.twin()
    exact, is_new = _obtain(twin, None, store, backbone, rerun=rerun and experiment.is_twin)
    record = exact
    if not experiment.is_twin:
        record, is_new = _obtain(experiment, exact, store, backbone, rerun=rerun)
    return Outcome(record=record, exact=exact, folder=store.folder(record), is_new=is_new)


def _obtain(
    experiment: Experiment, exact: Record | None, store: Store, backbone: Callable[[], Backbone], *, rerun: bool
) -> tuple[Record, bool]:
    """The record from the store, or computed; one process at a time computes a key, the others wait for its record."""
    names = experiment.names
    folder = store.place(names["task"], names["data"], names["model"], names["attention"], experiment.key)
    with store.lock(experiment.key):
        found = None if rerun else store.find(folder, experiment.key)
        if found is not None:
            return found, False
        fitted: Fitted | None = None
        scores: Scores | None = None
        measurement: Measurement | None = None
        calibration: dict[str, Any] | None = None
        fused_layers: tuple[int, ...] = ()
        status = "complete"
        try:
            fitted = fit(experiment, store, backbone)
            backbone().text_memory = TextMemory(store=store, key=experiment.text_key)
            if experiment.probe.num_rounds and experiment.probe.memory:
                prepare_for_memory(experiment.device)
            calibrated = prepare(experiment, backbone)
            attention, calibration = calibrated.attention, calibrated.found or None
            scores = evaluate(experiment, attention, backbone(), fitted.state if fitted else {})
            fused_layers = backbone().layers.fused
            measurement = probe(experiment, attention, backbone()) if experiment.probe.num_rounds else None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            status = "out of memory"
        record = _record(experiment, exact, store, scores, measurement, status, fitted, calibration, fused_layers)
        timings = {"end to end": measurement.end_to_end, "attention": measurement.attention} if measurement else {}
        return store.save(record, scores, timings), True


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
            with torch.inference_mode(), steps("fitting with exact attention", len(training)) as advance:
                state = experiment.task.fit(backbone(), _loader(experiment, backbone(), training, advance))
            fitted = store.save_fitted(experiment.fit_key, state)
    return fitted


def choose(experiment: Experiment, budget: Budget, store: Store, backbone: Callable[[], Backbone]) -> Choice:
    """What the budget comes to on this model and device: from the store, or found out now."""
    with store.lock(experiment.key):
        if (fitted := store.find_fitted(experiment.key)) is None:
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
    with torch.inference_mode(), steps("calibration", wanted) as advance:
        images = _loader(replace(experiment, batch_size=1), model, source, advance)
        forwards = (partial(experiment.task.forward, model, image) for image in islice(images, wanted))
        calibrated = attention.calibrate(model.layers, forwards)
    split = "scored" if source is experiment.source else "training"
    return replace(calibrated, found={"split": split} | calibrated.found)


def evaluate(experiment: Experiment, attention: Attention, backbone: Backbone, fitted: Mapping[str, Tensor]) -> Scores:
    """The accuracy pass: the task's protocol over the whole data set."""
    attach_alone(backbone, attention, [backbone.layers[index] for index in experiment.layer_indices])
    with torch.inference_mode(), steps(f"accuracy, {experiment.names['attention']}", len(experiment.source)) as advance:
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


def _record(
    experiment: Experiment,
    exact: Record | None,
    store: Store,
    scores: Scores | None,
    measurement: Measurement | None,
    status: str,
    fitted: Fitted | None,
    calibration: dict[str, Any] | None,
    fused_layers: tuple[int, ...],
) -> Record:
    comparisons = {}
    if exact is not None and scores is not None:
        for metric in exact.scores:
            theirs = read_scores(store.folder(exact), metric)
            comparisons[metric] = compare(scores.metrics[metric], theirs, experiment.seed)
    blueprint = experiment.blueprint
    return Record(
        key=experiment.key,
        exact_key=exact.key if exact else experiment.key,
        status=status,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        task=experiment.names["task"],
        data=experiment.names["data"],
        model=experiment.names["model"],
        attention=experiment.names["attention"],
        descriptions={"model": experiment.model.description, "data": experiment.source.description},
        identity=experiment.identity,
        config=experiment.config,
        layers=tuple(experiment.layer_indices),
        fused_layers=fused_layers,
        num_layers=len(blueprint.shapes),
        num_tokens=blueprint.shapes[0].num_tokens,
        image_size=blueprint.image_size,
        num_samples=len(experiment.source),
        metric=experiment.task.metric,
        scores={name: estimate(each, experiment.seed) for name, each in scores.metrics.items()} if scores else {},
        units=dict(scores.units) if scores else {},
        comparisons=comparisons,
        cost=measurement.cost if measurement else None,
        environment=describe_environment(experiment.device),
        fitted=fitted.sha256 if fitted else None,
        calibration=calibration,
        files={},
    )
