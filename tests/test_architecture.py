"""The house rules that a machine can check: who imports whom, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS = (
    ("errors",),
    ("identity", "device", "environment", "linear_head", "neighbours", "progress", "released_head", "scores"),
    ("statistics",),
    (
        "attention.base",
        "attention.landmarks",
        "attention.cells",
        "attention.inverse",
        "attention.detectors",
        "kernels.*",
    ),
    ("attention.layers", "attention.sampling", "attention.masks", "attention.refined"),
    ("attention.selection", "attention.fused"),
    ("attention.causal", "attention.register_hooks"),
    ("attention.*",),
    ("timing", "memory", "macs", "beside", "watch"),
    ("sdpa", "data.streamed"),
    ("data.base", "data.image_files", "data.imagenet_names", "data.hub", "models.base"),
    ("data.listed", "decoded"),
    (
        "data.*",
        "loader",
        "models.weights_file",
        "models.timm_layers",
        "models.hf_layers",
        "models.hf_backbone",
        "models.preprocessing",
    ),
    ("models.*",),
    ("contract", "cost", "surgery", "asking", "bertscore", "finite"),
    ("budget",),
    ("tasks.*",),
    ("record",),
    ("store", "references"),
    ("text_memory", "token_masks"),
    ("experiment",),
    ("passes",),
    ("run",),
    ("report", "trackers", "figures.*", "bench.*", "train.*", "setting_types", "leaderboard_tables"),
    ("cli", "leaderboard"),
    ("verify",),
    ("__init__",),
    ("__main__",),
)
"""From the bottom up: a module imports from the lines above its own only; the first pattern that fits counts.

What imports nothing of ours, such as mathematics that tasks share, needs no line."""

LIGHT = (
    "torch",
    "numpy",
    "hydra",
    "wandb",
    "transformers",
    "open_clip",
    "faiss",
    "datasets",
    "timm",
    "scipy",
    "pyarrow",
)
"""What `import fnabench` must not import."""

HEAVY = ("hydra", "omegaconf", "faiss", "datasets", "wandb")
"""What nobody needs for attention, its kernels, timing, training or the two lines without a command line."""

PLAIN = (
    "timing", "memory", "macs", "cost", "statistics", "surgery", "loader", "attention.*", "kernels.*", "data.*",
    "models.*", "train.*",
)  # fmt: skip


def find_modules() -> dict[str, Path]:
    """Every module by its name below fnabench; tasks/ counts as fnabench.tasks, a package as its own name."""
    found = {}
    for folder, prefix in ((ROOT / "fnabench", ""), (ROOT / "tasks", "tasks.")):
        for path in sorted(folder.rglob("*.py")):
            name = prefix + ".".join(path.relative_to(folder).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    del found["tasks"]  # the bridge and the package share this name
    return found


MODULES = find_modules()


def find_imports(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports when it runs, in functions too; those for type checkers do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "tasks":
                yield name
            elif package == "fnabench":
                yield rest if rest in MODULES else rest.rpartition(".")[0] or rest or "__init__"


def layer_of(name: str) -> int:
    """The height of a module."""
    for position, patterns in enumerate(LAYERS):
        if any(fnmatch(name, pattern) or pattern == f"{name}.*" for pattern in patterns):
            return position
    assert not list(find_imports(MODULES[name])), f"{MODULES[name]} has no place in LAYERS of this test; give it one"
    return -1


def family_of(name: str) -> str:
    """What a module may import from beside itself: its own package of files, and models that share their first word."""
    parts = name.split(".")
    if parts[0] in ("train", "bench", "figures", "kernels"):
        return parts[0]
    if parts[0] == "models":
        return ".".join([parts[0], parts[1].split("_")[0]])
    return ".".join(parts[:2])


IMPORTS = [(name, other) for name, path in MODULES.items() for other in find_imports(path)]


def test_the_imports_are_found_at_all() -> None:
    assert ("run", "cost") in IMPORTS
    assert ("tasks.classification", "contract") in IMPORTS
    assert ("data.scenes", "data.scenes.source") in IMPORTS
    assert ("attention.base", "attention.layers") not in IMPORTS, "that one is for type checkers"


@pytest.mark.parametrize(
    "name", [name for name in MODULES if "." in name or name not in ("attention", "data", "models")]
)
def test_imports_point_downwards_only(name: str) -> None:
    for other in find_imports(MODULES[name]):
        if (name, other) == ("identity", "tasks"):
            continue  # looks up where the package lies
        same_family = family_of(name) == family_of(other)
        assert layer_of(other) < layer_of(name) or same_family, f"{MODULES[name]} must not import fnabench.{other}"


@pytest.mark.parametrize("kind", ["attention", "data", "models", "tasks"])
def test_siblings_never_import_each_other(kind: str) -> None:
    shared = {
        "base",
        "layers",
        "landmarks",
        "cells",
        "sampling",
        "selection",
        "inverse",
        "masks",
        "causal",
        "refined",
        "fused",
        "register_hooks",
        "detectors",
        "timm_layers",
        "hf_layers",
        "hf_backbone",
        "preprocessing",
        "weights_file",
        "image_files",
        "imagenet_names",
        "listed",
        "hub",
        "streamed",
    }
    for name, other in IMPORTS:
        if name.startswith(f"{kind}.") and other.startswith(f"{kind}.") and other.split(".")[1] not in shared:
            assert family_of(name) == family_of(other), f"{MODULES[name]} must not import fnabench.{other}"


def test_tasks_know_nothing_of_attention_cost_or_records() -> None:
    forbidden = ("attention", "kernels", "cost", "record", "store", "run", "experiment", "macs", "timing", "memory")
    for name, other in IMPORTS:
        if name.startswith("tasks."):
            assert other.split(".")[0] not in forbidden, f"{MODULES[name]} must not import fnabench.{other}"


def test_the_package_never_imports_a_task() -> None:
    importing = {name for name, other in IMPORTS if not name.startswith("tasks.") and other.split(".")[0] == "tasks"}
    assert importing <= {"identity"}
    assert {other for name, other in IMPORTS if name == "identity"} <= {"tasks", "errors"}


def test_only_the_top_knows_hydra() -> None:
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        if "import hydra" in text or "from hydra" in text or "omegaconf" in text:
            assert name in ("cli", "setting_types", "experiment") or name.startswith("bench."), (
                f"{path} reads the configuration"
            )


def test_no_file_is_named_for_nothing() -> None:
    nothing = {"utils", "util", "helpers", "common", "manager", "handler", "misc"}
    assert not nothing & {part for name in MODULES for part in name.split(".")}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_importing_the_package_imports_nothing_heavy() -> None:
    done = run_python(f"import fnabench, fnabench.__main__, sys; print(sorted(set({LIGHT}) & set(sys.modules)))")
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_attention_timing_and_training_need_no_command_line_and_importing_them_does_nothing() -> None:
    names = [f"fnabench.{name}" for name in MODULES if any(fnmatch(name, pattern) for pattern in PLAIN)]
    if find_spec("triton") is None:  # the one optional package that modules of ours import at their head
        names = [name for name in names if not name.startswith("fnabench.kernels.programs.")]
    assert {"fnabench.attention.fna", "fnabench.timing", "fnabench.surgery"} <= set(names)
    code = f"""
import importlib, sys
for name in {HEAVY}:
    sys.modules[name] = None
import torch
threads, dtype, seed = torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed()
for name in {names}:
    importlib.import_module(name)
assert (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed()) == (threads, dtype, seed)
assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
"""
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
