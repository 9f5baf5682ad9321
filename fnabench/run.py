"""One experiment from top to bottom: check, look up, evaluate, measure, record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fnabench.cost import Measurement
from fnabench.device import is_out_of_memory
from fnabench.environment import describe_environment
from fnabench.experiment import Experiment
from fnabench.memory import prepare_for_memory
from fnabench.models.base import Backbone
from fnabench.passes import choose, evaluate, fit, load, prepare, probe
from fnabench.record import Record
from fnabench.scores import Scores
from fnabench.statistics import compare, estimate
from fnabench.store import Fitted, Store, read_scores
from fnabench.text_memory import TextMemory


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
        experiment = experiment.chosen(choose(experiment, experiment.budget, store, backbone, rerun=rerun))
    twin = experiment.twin
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
        if not rerun and (known := store.find(folder, experiment.key)) is not None:
            return known, False
        found = _compute(experiment, store, backbone)
        measured = found.measurement
        timings = {"end to end": measured.end_to_end, "attention": measured.attention} if measured else {}
        return store.save(_record(experiment, exact, store, found), found.scores, timings), True


@dataclass(kw_only=True)
class _Found:
    """What a run has come to; what memory did not suffice for is missing."""

    status: str = "complete"
    fitted: Fitted | None = None
    calibration: dict[str, Any] | None = None
    scores: Scores | None = None
    fused_layers: tuple[int, ...] = ()
    measurement: Measurement | None = None


def _compute(experiment: Experiment, store: Store, backbone: Callable[[], Backbone]) -> _Found:
    found = _Found()
    try:
        found.fitted = fit(experiment, store, backbone)
        backbone().text_memory = TextMemory(store=store, key=experiment.text_key)
        if experiment.probe.num_rounds and experiment.probe.memory:
            prepare_for_memory(experiment.device)
        calibrated = prepare(experiment, backbone)
        attention, found.calibration = calibrated.attention, calibrated.found or None
        found.scores = evaluate(experiment, attention, backbone(), found.fitted.state if found.fitted else {})
        found.fused_layers = backbone().layers.fused
        found.measurement = probe(experiment, attention, backbone()) if experiment.probe.num_rounds else None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        found.status = "out of memory"
    return found


def _record(experiment: Experiment, exact: Record | None, store: Store, found: _Found) -> Record:
    comparisons, scores = {}, found.scores
    if exact is not None and scores is not None:
        for metric in exact.scores:
            theirs = read_scores(store.folder(exact), metric)
            comparisons[metric] = compare(scores.metrics[metric], theirs, experiment.seed)
    blueprint = experiment.blueprint
    return Record(
        key=experiment.key,
        exact_key=exact.key if exact else experiment.key,
        status=found.status,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        task=experiment.names["task"],
        data=experiment.names["data"],
        model=experiment.names["model"],
        attention=experiment.names["attention"],
        descriptions={"model": experiment.model.description, "data": experiment.source.description},
        identity=experiment.identity,
        config=experiment.config,
        layers=tuple(experiment.layer_indices),
        fused_layers=found.fused_layers,
        num_layers=len(blueprint.shapes),
        num_tokens=blueprint.shapes[0].num_tokens,
        image_size=blueprint.image_size,
        num_samples=len(experiment.source),
        metric=experiment.task.metric,
        scores={name: estimate(each, experiment.seed) for name, each in scores.metrics.items()} if scores else {},
        units=dict(scores.units) if scores else {},
        comparisons=comparisons,
        cost=found.measurement.cost if found.measurement else None,
        environment=describe_environment(experiment.device),
        fitted=found.fitted.sha256 if found.fitted else None,
        calibration=found.calibration,
        files={},
    )
