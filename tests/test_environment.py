"""What a record says of the machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fnabench.environment import _checkout, describe_environment

UUID = "c1f0a3b2-0000-4d5e-8f00-123456789abc"
NVIDIA_SMI = f"""#!/bin/sh
[ "$2" = "GPU-{UUID}" ] || exit 1
case "$3" in
    --query-gpu=*) echo "580.1, 1980, 2619, 0x0000000000000000" ;;
    --query-compute-apps=*) echo "{os.getpid()}"; echo 99999 ;;
esac
"""


def test_the_gpu_is_asked_for_by_its_own_name_whatever_its_number_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text(NVIDIA_SMI)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    properties = SimpleNamespace(name="NVIDIA H200", uuid=UUID)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    gpu = describe_environment(torch.device("cuda", 1)).gpu
    assert gpu is not None
    assert (gpu.name, gpu.driver, gpu.sm_clock_mhz, gpu.other_processes) == ("NVIDIA H200", "580.1", "1980", 1)


def test_a_gpu_of_which_nothing_is_known_has_its_name_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    properties = SimpleNamespace(name="NVIDIA H200", uuid=UUID)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    gpu = describe_environment(torch.device("cuda")).gpu
    assert gpu is not None
    assert (gpu.name, gpu.driver, gpu.throttle_reasons, gpu.other_processes) == ("NVIDIA H200", None, None, None)


def test_a_checkout_is_changed_by_its_code_and_not_by_results(tmp_path: Path) -> None:
    def git(*command: str) -> None:
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *command], check=True)

    module, result = tmp_path / "package" / "module.py", tmp_path / "results" / "LEADERBOARD.md"
    for path in (module, result):
        path.parent.mkdir()
        path.write_text("old")
    git("init", "--quiet")
    assert _checkout(module) == (None, None)
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    commit, dirty = _checkout(module)
    assert commit is not None
    assert dirty is False
    result.write_text("new")
    assert _checkout(module) == (commit, False)
    module.write_text("new")
    assert _checkout(module) == (commit, True)
