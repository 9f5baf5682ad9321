"""Records on disk: results/<task>/<data>/<model>/<attention>-<key>/, whole or not there."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from safetensors.torch import load, save
from torch import Tensor

from fnabench.errors import BadInputError, reason_of
from fnabench.models.weights_file import hash_file
from fnabench.progress import stderr
from fnabench.record import CorruptRecordError, Record, from_json, to_json
from fnabench.scores import SampleScores, Scores
from fnabench.timing import Timings

RECORD = "record.json"
SAMPLES = "samples.parquet"
LATENCIES = "latencies.parquet"
ARRAYS = "arrays.npz"
ROWS = "rows.parquet"
SHORT_KEY = 12
"""So many digits of the key stand in the folder's name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """Tensors that every variant shares, such as what a task fitted with exact attention; frozen since."""

    state: dict[str, Tensor]
    sha256: str


@dataclass(frozen=True)
class Store:
    """The folder of all records."""

    root: Path

    def folder(self, record: Record) -> Path:
        """Where a record lies or will lie."""
        return self.place(record.task, record.data, record.model, record.attention, record.key)

    def place(self, task: str, data: str, model: str, attention: str, key: str) -> Path:
        """The folder for a run of this key."""
        return self.root / task / data / model / f"{attention}-{key[:SHORT_KEY]}"

    def find(self, folder: Path, key: str) -> Record | None:
        """The record in the folder, if it is there, whole and of this key; a corrupt one raises CorruptRecordError."""
        if not (folder / RECORD).exists():
            return None
        record = read_record(folder)
        return record if record.key == key else None

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Held by the one process that computes a key; released by the system if that process dies."""
        folder = self.root / ".locks"
        lock = FileLock(folder / f"{key[:SHORT_KEY]}.lock")
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                stderr.print(f"waiting for another process that computes {key[:SHORT_KEY]} ...")
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Tells a folder that cannot be written, such as one of another user or a full disk, in one line."""
        try:
            yield
        except OSError as error:
            raise BadInputError(
                f"results_dir={self.root} cannot be written: {reason_of(error)}; give another results_dir=..."
            ) from error

    def save(self, record: Record, scores: Scores | None, timings: Mapping[str, Timings]) -> Record:
        """Write the record with its files into a temporary folder and move it to its place, replacing an older one."""
        with self._writing():
            self.root.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.root))
            try:
                if scores is not None:
                    pq.write_table(_samples_table(scores), temporary / SAMPLES)
                    if scores.arrays:
                        np.savez_compressed(temporary / ARRAYS, **dict[str, Any](scores.arrays))
                    if scores.rows:
                        pq.write_table(pa.table(dict(scores.rows)), temporary / ROWS)
                if timings:
                    pq.write_table(_latencies_table(timings), temporary / LATENCIES)
                record = replace(record, files={path.name: hash_file(path) for path in sorted(temporary.iterdir())})
                (temporary / RECORD).write_text(to_json(record), encoding="utf-8")
                temporary.chmod(0o755)
                _move(temporary, self.folder(record))
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return record

    def find_fitted(self, key: str) -> Fitted | None:
        """What was fitted under this key, if its file is there; CorruptRecordError if it has been changed."""
        path = self._fitted(key)
        if not path.exists():
            return None
        content, expected = path.read_bytes(), path.with_suffix(".sha256")
        sha256 = hashlib.sha256(content).hexdigest()
        if not expected.is_file() or sha256 != expected.read_text():
            raise CorruptRecordError(f"{path} was changed since it was fitted; delete it")
        return Fitted(state=load(content), sha256=sha256)

    def save_fitted(self, key: str, state: dict[str, Tensor]) -> Fitted:
        """Keep what was fitted under this key."""
        path = self._fitted(key)
        content = save({name: tensor.contiguous().cpu() for name, tensor in state.items()})
        sha256 = hashlib.sha256(content).hexdigest()
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # that of another time: whoever is killed from here on leaves nothing to read
            path.with_suffix(".sha256").write_text(sha256)
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(content)
            temporary.replace(path)
        return Fitted(state=load(content), sha256=sha256)

    def _fitted(self, key: str) -> Path:
        return self.root / ".fitted" / f"{key[:SHORT_KEY]}.safetensors"

    def folders(self) -> list[Path]:
        """Every folder that holds a record, in order of its path; what a killed run left behind is none."""
        paths = sorted(self.root.glob(f"*/*/*/*/{RECORD}"))
        return [path.parent for path in paths if not path.relative_to(self.root).parts[0].startswith(".")]


def read_record(folder: Path) -> Record:
    """The record of a folder; CorruptRecordError names the folder and what is wrong with it."""
    try:
        record = from_json((folder / RECORD).read_text(encoding="utf-8"))
        for name, expected in record.files.items():
            if not (folder / name).is_file():
                raise CorruptRecordError(f"{name} is missing")
            if hash_file(folder / name) != expected:
                raise CorruptRecordError(f"{name} is not the file that was written")
    except (CorruptRecordError, OSError, UnicodeDecodeError) as error:
        raise CorruptRecordError(
            f"{folder / RECORD} is no usable record: {error}; delete the folder or give rerun=true"
        ) from error
    return record


def read_scores(folder: Path, metric: str) -> SampleScores:
    """The per-sample scores of one metric."""
    table = pq.read_table(folder / SAMPLES, filters=[("metric", "=", metric)])
    columns = table.to_pydict()
    predictions = columns["prediction"]
    return SampleScores(
        ids=tuple(columns["id"]),
        clusters=tuple(columns["cluster"]),
        numerator=np.array(columns["numerator"], dtype=np.float64),
        denominator=np.array(columns["denominator"], dtype=np.float64),
        predictions=None if predictions and predictions[0] is None else np.array(predictions),
    )


def _samples_table(scores: Scores) -> pa.Table:
    """One row a metric and sample; predictions are lists of text."""
    tables = []
    for metric, samples in scores.metrics.items():
        n = len(samples.ids)
        predictions = [None] * n
        if samples.predictions is not None:
            predictions = samples.predictions.tolist()
        columns = {
            "metric": pa.array([metric] * n),
            "id": pa.array(samples.ids),
            "cluster": pa.array(samples.clusters),
            "numerator": pa.array(samples.numerator.tolist(), pa.list_(pa.float64())),
            "denominator": pa.array(samples.denominator.tolist(), pa.list_(pa.float64())),
            "prediction": pa.array(predictions, pa.list_(pa.string())),
        }
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def _latencies_table(timings: Mapping[str, Timings]) -> pa.Table:
    """One row a timed run: what was timed, which arm, in which round."""
    rows = [
        {"what": what, "arm": r.arm, "round": r.round, "wall_ms": r.wall_ms, "device_ms": r.device_ms}
        for what, timing in timings.items()
        for r in timing.repeats
    ]
    return pa.Table.from_pylist(rows)


def _move(temporary: Path, place: Path) -> None:
    """Put the finished folder in its place in one step; an older one is moved out of the way first."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        older = temporary.with_name(temporary.name + "-older")
        place.replace(older)
        temporary.replace(place)
        shutil.rmtree(older)
    else:
        temporary.replace(place)
