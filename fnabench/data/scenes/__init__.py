"""Procedural scenes of coloured shapes: the bundled data set."""

from fnabench.data.scenes.source import Scenes

__all__ = ["Scenes"]
