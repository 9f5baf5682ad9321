"""The Hydra entry: what a composed configuration does, and how mistakes are told."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from fnabench.configurations import CONF
from fnabench.errors import FnabenchError, OutOfMemoryError, one_of
from fnabench.setting_types import PARTS, check_settings, not_known

DEBUG = "FNABENCH_DEBUG"
"""With this variable, or HYDRA_FULL_ERROR, set to 1 a mistake shows its traceback."""
FORMATS = ("table", "json")
USER_ERRORS = (FnabenchError, HydraException, OmegaConfBaseException)

_UNKNOWN_CHOICE = re.compile(
    r"Could not find '(?P<group>.*?)/(?P<name>[^'/]*)' Available options in '.*?': (?P<all>.*?)( Config|$)"
)
_MISSING_LAUNCHER = re.compile(r"Could not (?:load|find) 'hydra/launcher/(?:submitit_)?(?P<extra>slurm|joblib)'")
_NO_NAME = "Config group override must be a string"
_ADDED = re.compile(r"unexpected keyword argument '(?P<name>\w+)'.*full_key: (?P<part>\S+)", re.DOTALL)
_ASIDE = re.compile(
    r",? (full_key|Config search path|[Ss]et (the environment|env var)|(No )?(output/)?[Ee]rror stream produced).*"
)
_failed_jobs: list[int] = []


def main() -> None:
    """Compose and run one job or a sweep; exit code 2 when a job failed by a mistake of the user."""
    if os.environ.get("HYDRA_FULL_ERROR"):
        os.environ[DEBUG] = "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing them
    tell_mistakes(hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job))
    if _failed_jobs:
        sys.exit(2)


def tell_mistakes(command: Callable[[], None]) -> None:
    """Run a command; a mistake of the user becomes one line on stderr and exit code 2."""
    try:
        command()
    except BrokenPipeError:  # whoever reads our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("fnabench: interrupted; what was recorded is whole", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if os.environ.get(DEBUG) or not _is_mistake(error):
            raise
        sys.exit(_tell(error))


def compose(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """The configuration of one job as its command line would compose it, and the chosen name of each part."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", overrides=list(overrides), return_hydra_config=True)
    check_settings(cfg)
    choices = {str(kind): str(name) for kind, name in cfg.hydra.runtime.choices.items()}
    return OmegaConf.masked_copy(cfg, [name for name in cfg if name != "hydra"]), choices


def job(cfg: DictConfig) -> None:
    """One run. In a sweep that runs here, a mistake is told at once and the next job goes on."""
    try:
        _run(cfg)
    except USER_ERRORS as error:
        here = HydraConfig.get().launcher._target_.endswith("BasicLauncher")
        if not here or os.environ.get(DEBUG):
            raise
        _failed_jobs.append(_tell(error))


def _run(cfg: DictConfig) -> None:
    from fnabench.experiment import Experiment
    from fnabench.report import print_table, to_json
    from fnabench.run import run
    from fnabench.store import Store

    check_settings(cfg)
    if cfg.format not in FORMATS:
        raise one_of("format", cfg.format, FORMATS)
    tracker = hydra.utils.instantiate(cfg.tracker)
    experiment = Experiment.of(cfg, HydraConfig.get().runtime.choices)
    outcome = run(experiment, Store(Path(cfg.results_dir)), rerun=cfg.rerun)
    print_table(outcome, to_stderr=cfg.format == "json")
    if cfg.format == "json":
        print(to_json(outcome), flush=True)
    if outcome.is_new and (line := tracker.log(outcome.folder)):
        print(line, file=sys.stderr)
    if outcome.record.status != "complete":
        raise OutOfMemoryError(
            f"out of memory with loader.batch_size={experiment.batch_size} and "
            f"probe.batch_size={experiment.probe.batch_size}; "
            f"recorded in {outcome.folder}; choose smaller ones, a smaller model.image_size or another device"
        )


class TellEnd(Callback):  # type: ignore[misc]
    """Where to look, after a sweep whose jobs printed into files."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra, unless the sweep has failed."""
        if config.hydra.launcher._target_.endswith("SlurmLauncher"):
            print(
                f"fnabench: every job has its record in {config.results_dir}, what they printed is in "
                f"{config.hydra.sweep.dir}/slurm; all in one table: python -m fnabench leaderboard "
                f"{config.results_dir}",
                file=sys.stderr,
            )


def _tell(error: Exception) -> int:
    """Print a mistake as one line on stderr; returns the exit code for it."""
    print(f"fnabench: {_one_line(error)}", file=sys.stderr, flush=True)
    return 2


def _is_mistake(error: Exception) -> bool:
    """Whether one line tells it, also where a Slurm job was refused or killed: submitit's errors are known by their
    module, since it is optional."""
    is_from_cluster = type(error).__module__ == "submitit.core.utils"
    return isinstance(error, USER_ERRORS) or is_from_cluster or str(error).startswith(_NO_NAME)


def _one_line(error: BaseException) -> str:
    """What went wrong in one line: our own errors as they are, Hydra's without its search path."""
    if added := _ADDED.search(str(error)):
        name = f"{added['part']}.{added['name']}"
        return f"{name} is not known to its class; leave it out (without a + the allowed ones are told)"
    while not isinstance(error, FnabenchError) and isinstance(error.__cause__, (*USER_ERRORS, TypeError)):
        error = error.__cause__
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)) and error.parent_node is not None:
        return not_known(str(error.full_key), map(str, error.parent_node))
    text = " ".join(str(error).split())
    if text.startswith(_NO_NAME):
        return f"{', '.join(PARTS)} are chosen by name, such as data=scenes; null and numbers name none"
    if launcher := _MISSING_LAUNCHER.search(text):
        extra = launcher["extra"]
        return f"hydra/launcher={extra} is an optional part; install it with: pip install 'fnabench[{extra}]'"
    if missing := _UNKNOWN_CHOICE.search(text):
        return str(one_of(missing["group"], missing["name"], missing["all"].split()))
    if word := re.search(r"Error parsing override '([^'=]*)' missing EQUAL", text):
        return f"{word[1]} is neither a command (figures, leaderboard, verify) nor a setting (name=value); see --help"
    if mandatory := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{mandatory[1]} has no default; give {mandatory[1]}=..."
    return _ASIDE.sub("", text)
