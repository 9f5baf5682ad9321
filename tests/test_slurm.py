"""Sweeps through launchers: a real Slurm, which tests/slurm/run.sh starts on this machine, and one that is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NAME = "fnabench-test"


@cache
def _answers(program: str) -> bool:
    """Whether the program is there and reaches its daemon."""
    if not shutil.which(program):
        return False
    try:
        return subprocess.run([program], capture_output=True, timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def needs_slurm(test: Callable[..., None]) -> Callable[..., None]:
    skip = pytest.mark.skipif(not _answers("sinfo"), reason="sinfo does not answer: make test-slurm starts a Slurm")
    return pytest.mark.slurm(skip(test))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the smallest ViT that timm has, untrained, and eight images of noise."""
    import timm  # slow to import, and most often these tests are skipped
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("inputs")
    save_file(timm.create_model("test_vit").state_dict(), folder / "weights.safetensors")
    noise = np.random.default_rng(0)
    rows = ["file,label"]
    for index in range(8):
        Image.fromarray(noise.integers(0, 256, (160, 160, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        rows.append(f"{index}.png,{index}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def _command(inputs: Path, *overrides: str) -> list[str]:
    return [
        *(sys.executable, "-m", "fnabench", "-m", "hydra/launcher=slurm"),
        *("hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2"),
        *("hydra.launcher.timeout_min=5", f"hydra.launcher.name={NAME}"),
        *("task=classification", "data=folder", f"data.root={inputs}"),
        *("model=timm", "model.architecture=test_vit", f"model.checkpoint={inputs}/weights.safetensors"),
        *("device=cpu", "probe=none", "tracker=none", "format=json"),
        *overrides,
    ]


def _environment() -> dict[str, str]:
    """The checkout is found from any folder, in the jobs too."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


def _sweep(inputs: Path, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = _command(inputs, *overrides)
    return subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, timeout=300)


def _records(folder: Path) -> list[str]:
    """The attention of each record."""
    paths = folder.glob("results/*/*/*/*/record.json")
    return sorted(json.loads(path.read_text())["attention"] for path in paths)


def _logs(folder: Path, suffix: str) -> list[str]:
    """What each job wrote to stdout (out) or stderr (err), in the order of the sweep."""
    paths = folder.glob(f"results/.sweeps/*/slurm/*/*_log.{suffix}")
    return [path.read_text() for path in sorted(paths)]


@needs_slurm
def test_a_sweep_leaves_one_record_a_job_and_computes_the_exact_twin_once(inputs: Path, tmp_path: Path) -> None:
    long_enough_to_meet = "model.image_size=960"  # seconds of exact attention, so that the jobs overlap
    done = _sweep(inputs, tmp_path, "attention=exact,fna", long_enough_to_meet)
    assert done.returncode == 0, done.stderr
    assert _records(tmp_path) == ["exact", "fna"]
    told = [json.loads(line) for log in _logs(tmp_path, "out") for line in log.splitlines() if line.startswith("{")]
    assert [each["attention"] for each in told] == ["exact", "fna"]
    assert len({each["exact_key"] for each in told}) == 1
    assert sum(log.count("accuracy, exact") for log in _logs(tmp_path, "err")) == 1
    (told_here,) = done.stderr.splitlines()
    logs = re.search(r"printed is in (\S+);", told_here)
    assert logs
    assert list((tmp_path / logs[1]).glob("*/*_log.out"))
    assert told_here.endswith("python -m fnabench leaderboard results")


@needs_slurm
def test_a_failing_job_is_named_and_the_others_finish(inputs: Path, tmp_path: Path) -> None:
    done = _sweep(inputs, tmp_path, "attention=fna", "attention.num_landmarks=1000,8")
    assert done.returncode == 2
    assert "attention.num_landmarks=1000 does not fit" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert _records(tmp_path) == ["exact", "fna"]


@needs_slurm
def test_what_the_cluster_does_not_offer_is_told_without_a_traceback(inputs: Path, tmp_path: Path) -> None:
    done = _sweep(inputs, tmp_path, "attention=exact", "hydra.launcher.partition=no_such_partition")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("fnabench: sbatch: error: invalid partition specified")
    assert "Traceback" not in done.stderr
    assert _records(tmp_path) == []


@needs_slurm
@pytest.mark.skipif(not _answers("sacct"), reason="no accounting: submitit cannot see that a job was killed")
def test_a_killed_job_is_reported(inputs: Path, tmp_path: Path) -> None:
    command = _command(inputs, "attention=exact")
    with subprocess.Popen(
        command, cwd=tmp_path, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as sweep:
        while not _logs(tmp_path, "out"):  # the job has started
            assert sweep.poll() is None
            time.sleep(0.1)
        subprocess.run(["scancel", f"--name={NAME}"], check=True)
        _, stderr = sweep.communicate(timeout=120)
    assert sweep.returncode == 2
    assert len(stderr.strip().splitlines()) == 1
    assert "state: CANCELLED" in stderr
    assert _records(tmp_path) == []


@pytest.mark.parametrize("launcher", ["slurm", "joblib"])
def test_a_launcher_that_is_not_installed_is_told_with_the_extra_that_brings_it(launcher: str, tmp_path: Path) -> None:
    script = "import hydra_plugins; hydra_plugins.__path__ = []; from fnabench.__main__ import main; main()"
    command = [sys.executable, "-c", script, "-m", f"hydra/launcher={launcher}", "attention=exact,fna"]
    done = subprocess.run(command, cwd=tmp_path, env=_environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"pip install 'fnabench[{launcher}]'" in done.stderr
