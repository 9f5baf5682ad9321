"""The commands in the heads of conf/: each can be typed, and is refused for nothing but what is not on this machine."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from pathlib import Path

import pytest

from fnabench import cli
from fnabench.errors import MissingError
from fnabench.experiment import Experiment

CONF = Path(__file__).resolve().parent.parent / "conf"
OTHERS = ("leaderboard", "verify", "figures", "-m")
"""What begins another command than a single run."""


def commands() -> list[tuple[str, list[str]]]:
    """Every run that a yaml shows, by the name of its file; what stands for a commit is filled in."""
    found = []
    for path in sorted(CONF.rglob("*.yaml")):
        text = re.sub(r"\\\n#\s*", "", path.read_text(encoding="utf-8"))
        for line in re.findall(r"^# python -m fnabench (.*?)(?: {3}.*)?$", text, re.MULTILINE):
            arguments = shlex.split(re.sub(r"<\w+>", "0123", line))
            if arguments[0] not in OTHERS and "=..." not in line:
                found.append((str(path.relative_to(CONF)), arguments))
    return found


def test_there_are_commands_for_every_model_and_data_set_of_the_hub() -> None:
    shown = {name for name, _ in commands()}
    assert {str(path.relative_to(CONF)) for path in (CONF / "data").glob("*.yaml")} - shown <= {
        "data/scenes.yaml", "data/flickr_sample.yaml",
    }  # fmt: skip
    assert {str(path.relative_to(CONF)) for path in (CONF / "model").glob("*.yaml")} <= shown


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(("name", "arguments"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_command_is_possible(
    name: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FNABENCH_ASSETS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cfg, choices = cli.compose([each for each in arguments if each != "device=cuda"] + ["device=cpu"])
    with suppress(MissingError):
        Experiment.of(cfg, choices).settled().check()
