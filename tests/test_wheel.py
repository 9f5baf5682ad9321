"""What the wheel holds; tests/wheel.sh installs it and runs a job from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    return next(folder.glob("fnabench-*.whl"))


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(ZipFile(wheel).namelist())


def _in_checkout(pattern: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)}


def test_every_configuration_is_inside_the_package(names: set[str]) -> None:
    expected = {f"fnabench/{path}" for path in _in_checkout("conf/**/*.yaml")}
    assert {name for name in names if name.endswith(".yaml")} == expected | {"fnabench/references.yaml"}
    assert {"fnabench/conf/config.yaml", "fnabench/conf/hydra/launcher/slurm.yaml"} <= expected


def test_the_word_lists_are_inside_the_package(names: set[str]) -> None:
    expected = _in_checkout("fnabench/**/*.txt")
    assert len(expected) >= 2
    assert expected <= names


def test_every_task_is_inside_the_package_and_the_bridge_is_not(names: set[str]) -> None:
    expected = {f"fnabench/{path}" for path in _in_checkout("tasks/*.py")}
    assert {name for name in names if name.startswith("fnabench/tasks")} == expected
    assert "fnabench/tasks/classification.py" in expected


def test_every_module_of_the_package_is_there(names: set[str]) -> None:
    expected = _in_checkout("fnabench/**/*.py") - {"fnabench/tasks.py"}
    assert expected - names == set()
    assert "fnabench/__main__.py" in names


def test_nothing_stands_beside_the_package(names: set[str]) -> None:
    others = {name.partition("/")[0] for name in names} - {"fnabench"}
    assert len(others) == 1
    assert others.pop().endswith(".dist-info")


def test_it_brings_the_license_and_the_command(wheel: Path, names: set[str]) -> None:
    information = next(name for name in names if name.endswith("/METADATA")).removesuffix("METADATA")
    archive = ZipFile(wheel)
    assert "fnabench = fnabench.__main__:main" in archive.read(information + "entry_points.txt").decode()
    assert "Apache License" in archive.read(information + "licenses/LICENSE").decode()


def test_stray_folders_named_tasks_and_conf_are_not_taken_for_ours(wheel: Path, tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "folder"
    ZipFile(wheel).extractall(site)
    for name in ("tasks", "conf"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise ImportError('a stray folder')")
    script = (
        "import fnabench.cli, fnabench.tasks as tasks; from fnabench.configurations import CONF; "
        "print(CONF, *tasks.__path__)"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(site / "fnabench/conf"), str(site / "fnabench/tasks")]


def test_the_bench_finds_its_model_and_its_images_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "folder"
    ZipFile(wheel).extractall(site)
    folder.mkdir()
    script = "from fnabench.bench import peers, vit_tiny; print(vit_tiny.images(3).limit)"
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("3\n", "")
