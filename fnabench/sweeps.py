"""What a sweep says when all of it is done."""

from __future__ import annotations

import sys
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


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
