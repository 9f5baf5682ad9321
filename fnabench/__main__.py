"""python -m fnabench task=... data=... model=... attention=...: compose, run, print, track."""

from __future__ import annotations

import sys


def main() -> None:
    """The command line; a word in front, such as `leaderboard` or `verify`, is a command of its own."""
    first = sys.argv[1:2]
    if first in (["leaderboard"], ["verify"]):
        del sys.argv[1]
    if first == ["leaderboard"]:
        from fnabench.leaderboard import main as command
    elif first == ["verify"]:
        from fnabench.verify import main as command
    else:
        from fnabench.cli import main as command
    command()


if __name__ == "__main__":
    main()
