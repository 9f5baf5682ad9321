"""python -m fnabench task=... data=... model=... attention=...: compose, run, print, track."""

from __future__ import annotations

import sys
from importlib import import_module

import fnabench

COMMANDS = {
    "figures": "fnabench.figures.command",
    "leaderboard": "fnabench.leaderboard",
    "verify": "fnabench.verify",
}
"""Words in front that are commands of their own."""


def main() -> None:
    """The command line; a word in front, such as `leaderboard` or `verify`, is a command of its own."""
    if sys.argv[1:] == ["--version"]:
        print(f"fnabench {fnabench.__version__}")
        return
    module = "fnabench.cli"
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        module = COMMANDS[sys.argv.pop(1)]
    import_module(module).main()


if __name__ == "__main__":
    main()
