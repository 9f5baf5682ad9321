"""Logging of finished runs to Weights & Biases; the record on disk stays the truth.

A run is first written offline by a process of its own and only then uploaded, so that a W&B that fails, hangs or
cannot be reached neither loses nor holds up a result.
"""

from __future__ import annotations

import json
import netrc
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from fnabench.errors import BadInputError, one_of

MODES = ("auto", "online", "offline")


class Tracker(ABC):
    """Where finished runs are logged besides their record."""

    @abstractmethod
    def log(self, folder: Path) -> str:
        """Log the record in the folder; returns one line about how that went, empty when there is nothing to say."""


@dataclass(frozen=True, kw_only=True)
class NoTracker(Tracker):
    """Nowhere."""

    def log(self, folder: Path) -> str:
        return ""


@dataclass(frozen=True, kw_only=True)
class WandbTracker(Tracker):
    """Weights & Biases, online where an API key is configured and offline otherwise."""

    project: str = "fnabench"
    entity: str | None = None
    group: str | None = None
    mode: str = "auto"
    dir: str = "."
    timeout_s: float = 20.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise one_of("tracker.mode", self.mode, MODES)
        if self.timeout_s <= 0:
            raise BadInputError(f"tracker.timeout_s={self.timeout_s} must be above 0")

    def log(self, folder: Path) -> str:
        deadline = time.monotonic() + self.timeout_s
        write = [sys.executable, "-m", "fnabench.trackers", str(folder), json.dumps(asdict(self))]
        written = _run(write, self.timeout_s, {"WANDB_MODE": "offline", "WANDB_SILENT": "true"})
        if written.returncode != 0:
            return f"W&B: not logged ({_last_line(written.stderr)}); the record is whole: {folder}"
        run_folder = _last_line(written.stdout)
        later = f"wandb sync {run_folder}"
        if self.mode == "offline" or (self.mode == "auto" and not has_api_key()):
            return f"W&B: logged offline; upload it with: {later}"
        upload = [sys.executable, "-m", "wandb", "sync", run_folder]
        uploaded = _run(upload, max(1.0, deadline - time.monotonic()), {})
        if uploaded.returncode != 0:
            reason = _last_line(uploaded.stderr) or _last_line(uploaded.stdout)
            return f"W&B: logged offline, since the upload failed ({reason}); upload it with: {later}"
        return f"W&B: {_last_line(uploaded.stdout) or _last_line(uploaded.stderr)}"


def has_api_key() -> bool:
    """Whether a W&B account is configured on this machine, by WANDB_API_KEY or a netrc entry."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """Accuracy, latency and memory of a record (as parsed from its JSON) as flat numbers."""
    values: dict[str, Any] = {}
    for name, score in record["scores"].items():
        values |= {
            f"score/{name}": score["value"],
            f"score/{name}_low": score["low"],
            f"score/{name}_high": score["high"],
        }
    for name, comparison in record["comparisons"].items():
        values |= {f"exact/{name}_difference_{end}": value for end, value in comparison["difference"].items()}
        values |= {f"exact/{name}_{field}": comparison[field] for field in ("agreement", "p_value")}
    if cost := record["cost"]:
        for name in ("latency", "exact_latency", "attention_latency", "exact_attention_latency"):
            values |= {f"latency/{name}_{field}": value for field, value in (cost[name] or {}).items()}
        for name in ("latency_ratio", "attention_latency_ratio", "ceiling"):
            values |= {f"latency/{name}_{end}": value for end, value in (cost[name] or {}).items()}
        for name in ("memory", "exact_memory"):
            values |= {
                f"memory/{name}_{field}": (cost[name] or {}).get(field) for field in ("peak_mib", "reserved_mib")
            }
        values |= {f"macs/{name}": cost[name] for name in ("macs", "exact_macs")}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def write_offline(folder: Path, options: dict[str, Any]) -> Path:
    """Write the record in the folder as an offline W&B run; returns the run's own folder."""
    import pyarrow.parquet as pq
    import wandb

    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    parts = [record[kind] for kind in ("task", "data", "model", "attention")]
    run = wandb.init(
        project=options["project"],
        entity=options["entity"],
        group=options["group"],
        dir=options["dir"],
        name=f"{'-'.join(parts)}-{record['key'][:8]}",
        tags=parts,
        config=record["config"] | {"key": record["key"], "exact_key": record["exact_key"], "status": record["status"]},
        mode="offline",
        settings=wandb.Settings(console="off", x_disable_stats=True),
    )
    run.log(scalars(record))
    if (folder / "latencies.parquet").exists():
        latencies = pq.read_table(folder / "latencies.parquet")
        rows = [list(row.values()) for row in latencies.to_pylist()]
        run.log({"latencies": wandb.Table(columns=latencies.column_names, data=rows)})
    artifact = wandb.Artifact(f"record-{record['key'][:12]}", type="record")
    artifact.add_dir(str(folder))
    run.log_artifact(artifact)
    run_folder = Path(run.dir).parent
    run.finish()
    return run_folder


def _run(command: list[str], timeout_s: float, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end or to the time limit, which counts as a failure."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {timeout_s:.0f} s")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


if __name__ == "__main__":
    print(write_offline(Path(sys.argv[1]), json.loads(sys.argv[2])))
