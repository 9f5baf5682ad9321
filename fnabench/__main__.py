"""python -m fnabench task=... data=... model=... attention=...: compose, run, print, track."""

from __future__ import annotations

import sys


def main() -> None:
    """The command line; a word in front, such as `leaderboard`, is a command of its own."""
    if sys.argv[1:2] == ["leaderboard"]:
        from fnabench.leaderboard import main as command

        sys.argv[1:] = sys.argv[2:]
    else:
        from fnabench.cli import main as command
    command()


if __name__ == "__main__":
    main()
