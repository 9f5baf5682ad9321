"""Where a run ran: machine, libraries and the state of the harness's own code."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

LIBRARIES = (
    "torch", "triton", "torchvision", "timm", "transformers", "tokenizers", "open_clip_torch", "faiss-cpu", "numpy",
    "pillow", "hydra-core",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What nvidia-smi says of the device; None where it does not say."""

    name: str
    driver: str | None
    sm_clock_mhz: str | None
    memory_clock_mhz: str | None
    throttle_reasons: str | None
    other_processes: int | None
    """Compute processes on the device besides this one."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Everything about the machine and the software that a number may depend on."""

    python: str
    platform: str
    cpu: str
    num_cpus: int
    """That this process may use."""
    num_threads: int
    gpu: Gpu | None
    libraries: dict[str, str]
    matmul_tf32: bool
    cudnn_tf32: bool
    commit: str | None
    """Of fnabench's own checkout; None when installed from a package."""
    dirty: bool | None
    """Whether its tracked files were changed, but for results/, which runs write."""


def describe_environment(device: torch.device) -> Environment:
    """The environment of a run on this device, at this moment."""
    commit, dirty = _checkout(Path(__file__).resolve())
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=cpu_name(),
        num_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        num_threads=torch.get_num_threads(),
        gpu=_gpu(device) if device.type == "cuda" else None,
        libraries=library_versions(),
        matmul_tf32=torch.backends.cuda.matmul.allow_tf32,
        cudnn_tf32=torch.backends.cudnn.allow_tf32,
        commit=commit,
        dirty=dirty,
    )


def device_name(device: torch.device) -> str:
    """The device in words, as far as a result may depend on it: of a CPU also which instructions torch uses."""
    if device.type == "cuda":
        tf32 = {"products": torch.backends.cuda.matmul.allow_tf32, "convolutions": torch.backends.cudnn.allow_tf32}
        return ", TF32 ".join(
            [torch.cuda.get_device_name(device), *(what for what, allowed in tf32.items() if allowed)]
        )
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{cpu_name()} {cpu_version()}, {instructions}, {torch.get_num_threads()} threads"


@cache
def library_versions() -> dict[str, str]:
    """The installed versions of what computes."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


@cache
def cpu_name() -> str:
    """The processor's model, as it calls itself."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


@cache
def cpu_version() -> str:
    """What tells generations of one name apart: on x86 family and model, on ARM implementer and part."""
    names = ("cpu family", "model", "CPU implementer", "CPU part")
    return "/".join(value for name in names if (value := _cpuinfo().get(name)))


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; nothing elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().partition("\n\n")[0].splitlines() if info.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _checkout(here: Path) -> tuple[str | None, bool | None]:
    """Commit and state of the checkout of this file, if it is a part of it: one installed below another is not."""
    git = partial(_output, "git", "-C", str(here.parent))
    if git("ls-files", "--error-unmatch", here.name) is None:
        return None, None
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
    return git("rev-parse", "HEAD"), None if changes is None else bool(changes)


def _gpu(device: torch.device) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    which = f"GPU-{properties.uuid}"  # torch counts the visible devices only, nvidia-smi all of them
    fields = ("driver_version", "clocks.sm", "clocks.mem", "clocks_throttle_reasons.active")
    query = _output("nvidia-smi", "-i", which, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
    driver, sm, memory, throttle = (
        [value.strip() for value in query.split(",")] if query and query.count(",") == 3 else [None] * 4
    )
    processes = _output("nvidia-smi", "-i", which, "--query-compute-apps=pid", "--format=csv,noheader")
    pids = set(processes.split()) - {str(os.getpid())} if processes is not None else None
    return Gpu(
        name=properties.name,
        driver=driver,
        sm_clock_mhz=sm,
        memory_clock_mhz=memory,
        throttle_reasons=throttle,
        other_processes=None if pids is None else len(pids),
    )


def _output(*command: str) -> str | None:
    """What a command prints, or None where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
