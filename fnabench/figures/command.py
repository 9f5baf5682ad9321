"""fnabench figures tokens FOLDER: the pictures of one record of task=tokens."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fnabench.errors import FnabenchError


def main() -> None:
    """The command line; a mistake is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="fnabench figures", description="Pictures made from records.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    tokens = kinds.add_parser("tokens", help="massive and artifact tokens: norms, attention, suppression, token maps")
    tokens.add_argument("record", type=Path, help="the folder of a record of task=tokens")
    tokens.add_argument("--out", type=Path, help="where the pictures go (RECORD/figures)")
    tokens.add_argument("--images", type=int, default=6, help="so many images with their tokens; 0 draws none (6)")
    given = parser.parse_args()
    try:
        from fnabench.figures.tokens import draw

        for path in draw(given.record, given.out or given.record / "figures", given.images):
            print(path)
    except FnabenchError as error:
        print(f"fnabench: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
