"""A bridge for clones: fnabench.tasks.<name> is tasks/<name>.py beside this package. The wheel packs tasks/ here."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent.parent / "tasks")]
