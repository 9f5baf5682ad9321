"""What is in a key: the code of foreign classes, and the device."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fnabench import cli, environment
from fnabench.environment import cpu_version, device_name
from fnabench.experiment import Experiment
from fnabench.identity import digest_of_code

CPU = torch.device("cpu")

# Foreign code


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a module of method, method_base or method_helpers into a folder that Python looks into."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(file: str, text: str) -> Path:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] in ("method", "method_base", "method_helpers")]:
        del sys.modules[name]


def digest_of(module: str) -> str:
    importlib.invalidate_caches()
    return digest_of_code([importlib.import_module(module).Mine()])


def is_in_the_key(path: Path, module: str) -> bool:
    before = digest_of(module)
    assert digest_of(module) == before
    path.write_text(path.read_text().replace("= 1", "= 2"))
    return digest_of(module) != before


def test_all_of_a_foreign_package_is_in_the_key(write):
    """What it imports only while it runs too."""
    write("method/mine.py", "class Mine:\n    pass\n")
    assert is_in_the_key(write("method/deep/kernels.py", "FACTOR = 1\n"), "method.mine")


def test_a_module_of_no_package_comes_with_those_beside_it(write):
    write("method.py", "import method_helpers\n\nclass Mine:\n    pass\n")
    assert is_in_the_key(write("method_helpers.py", "FACTOR = 1\n"), "method")


def test_a_foreign_base_is_in_the_key(write):
    write("method/mine.py", "from method_base.core import Core\n\nclass Mine(Core):\n    pass\n")
    assert is_in_the_key(write("method_base/core.py", "class Core:\n    factor = 1\n"), "method.mine")


def test_what_a_foreign_class_takes_from_an_installed_library_is_told_by_its_version(write, monkeypatch):
    write("method/mine.py", "import torch\n\nclass Mine(torch.nn.Module):\n    pass\n")
    read: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or read_bytes(path))
    digest_of("method.mine")
    assert any(path.name == "mine.py" for path in read)
    assert not any(path.is_relative_to(Path(torch.__file__).parent) for path in read)


# The device


def test_other_instructions_are_another_device(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    before = device_name(CPU)
    assert ", AVX2, " in before
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert device_name(CPU) != before


@pytest.mark.parametrize(
    ("cpuinfo", "name", "version"),
    [
        ({"model name": "AMD EPYC", "cpu family": "25", "model": "1"}, "AMD EPYC", "25/1"),
        ({"BogoMIPS": "243.75", "CPU implementer": "0x41", "CPU part": "0xd40"}, None, "0x41/0xd40"),
        ({}, None, ""),
    ],
)
def test_a_cpu_is_told_by_its_name_and_generation(monkeypatch, cpuinfo, name, version):
    monkeypatch.setattr(environment, "_cpuinfo", lambda: cpuinfo)
    monkeypatch.setattr(environment.platform, "processor", lambda: "aarch64")
    assert environment.cpu_name.__wrapped__() == (name or "aarch64")
    assert cpu_version.__wrapped__() == version


def test_what_linux_says_of_a_processor_is_read():
    if not Path("/proc/cpuinfo").exists():
        pytest.skip("not Linux")
    assert {"processor", "model name"} & set(environment._cpuinfo())


def test_products_in_tf32_are_another_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace(allow_tf32=True))
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=False))
    assert device_name(torch.device("cuda")) == "NVIDIA H200, TF32 convolutions"
    torch.backends.cuda.matmul.allow_tf32 = True
    assert device_name(torch.device("cuda")) == "NVIDIA H200, TF32 products, TF32 convolutions"


# The twin


def test_the_exact_twin_has_a_configuration_of_its_own():
    given = ["task=classification", "attention=fna_refined", "budget=auto", "layers=half", "device=cpu"]
    twin = Experiment.of(*cli.compose(given)).twin
    again = Experiment.again(twin.config, twin.names)
    assert again.is_twin
    assert again.key == twin.key
