"""python -m fnabench task=... data=... model=... attention=...: compose, run, print, track."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {"leaderboard": "fnabench.leaderboard", "figures": "fnabench.figures.command"}
"""Words in front that are commands of their own."""


def main() -> None:
    """The command line."""
    module = "fnabench.cli"
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        module = COMMANDS[sys.argv.pop(1)]
    import_module(module).main()


if __name__ == "__main__":
    main()
