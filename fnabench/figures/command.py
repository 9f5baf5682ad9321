"""fnabench figures tokens|masking FOLDER: pictures of one record of task=tokens, or of a masking sweep."""

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
    tokens.add_argument("folder", type=Path, help="the folder of a record of task=tokens")
    tokens.add_argument("--images", type=int, default=6, help="so many images with their tokens; 0 draws none (6)")
    masking = kinds.add_parser("masking", help="a metric against the block from which on tokens are masked")
    masking.add_argument("folder", type=Path, help="the folder of the records of one task, data and model")
    for kind in (tokens, masking):
        kind.add_argument("--out", type=Path, help="where the pictures go (FOLDER/figures)")
    given = parser.parse_args()
    try:
        for path in _draw(given):
            print(path)
    except FnabenchError as error:
        print(f"fnabench: {error}", file=sys.stderr)
        sys.exit(2)


def _draw(given: argparse.Namespace) -> list[Path]:
    out = given.out or given.folder / "figures"
    if given.kind == "tokens":
        from fnabench.figures.tokens import draw as draw_tokens

        return draw_tokens(given.folder, out, given.images)
    from fnabench.figures.masking import draw as draw_masking

    return draw_masking(given.folder, out)


if __name__ == "__main__":
    main()
