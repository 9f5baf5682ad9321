"""fnabench figures tokens|masking|fidelity: pictures of what task=tokens found, of a masking sweep, of a benchmark."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fnabench.errors import FnabenchError
from fnabench.figures.style import FORMATS


def main() -> None:
    """The command line; a mistake is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="fnabench figures", description="Pictures made from records.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    tokens = kinds.add_parser("tokens", help="massive and artifact tokens: norms, attention, suppression, token maps")
    tokens.add_argument(
        "folder", type=Path, help="the folder of a record of task=tokens, or of a data set and model: its latest record"
    )
    tokens.add_argument("--images", type=int, default=6, help="so many images with their tokens; 0 draws none (6)")
    tokens.add_argument("--masking", type=Path, help="draw the masking sweep in this folder too")
    masking = kinds.add_parser("masking", help="a metric against the block from which on tokens are masked")
    masking.add_argument("folder", type=Path, help="the folder of the records of one task, data and model")
    fidelity = kinds.add_parser("fidelity", help="error against cost of both FNA forms, beside exact attention")
    fidelity.add_argument("folder", type=Path, metavar="file", help="fidelity.json or peers.json of make bench-fna")
    for kind in (tokens, masking, fidelity):
        kind.add_argument("--out", type=Path, help="where the pictures go (a folder figures beside what is drawn)")
        kind.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="of the pictures (png svg)")
    given = parser.parse_args()
    try:
        for path in _draw(given):
            print(path)
    except FnabenchError as error:
        print(f"fnabench: {error}", file=sys.stderr)
        sys.exit(2)


def _draw(given: argparse.Namespace) -> list[Path]:
    from fnabench.figures import fidelity, masking, tokens

    if given.kind == "fidelity":
        return fidelity.draw(given.folder, given.out or given.folder.parent / "figures", given.formats)
    if given.kind == "masking":
        return masking.draw(given.folder, given.out or given.folder / "figures", given.formats)
    folder = tokens.latest_record(given.folder)
    out = given.out or folder / "figures"
    paths = tokens.draw(folder, out, given.images, given.formats)
    return paths + (masking.draw(given.masking, out, given.formats) if given.masking else [])


if __name__ == "__main__":
    main()
