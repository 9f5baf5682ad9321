"""python -m fnabench task=... data=... model=... attention=...: compose, run, print, track."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {"leaderboard": "fnabench.leaderboard", "figures": "fnabench.figures.command"}
"""Words in front that are commands of their own."""


def main() -> None:
    """The command line."""
    module = COMMANDS.get(" ".join(sys.argv[1:2]))
    if module:
        sys.argv[1:] = sys.argv[2:]
    import_module(module or "fnabench.cli").main()


if __name__ == "__main__":
    main()
