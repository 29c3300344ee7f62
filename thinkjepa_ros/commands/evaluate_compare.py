"""`thinkjepa evaluate compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def evaluate_compare(
    folders: Annotated[list[Path], typer.Argument(help="Two or more folders made by `thinkjepa evaluate bag`.")],
    out: Annotated[Path, typer.Option(help="The page; the figures are written beside it as .json.")] = Path(
        "compare.html"
    ),
) -> None:
    """Evaluations of the same recordings side by side, with paired differences to the first.

    Pairs are forecasts over the same images of the same recordings (by SHA-256 and stamp); intervals are over stretches
    of 2 s.

    Example: thinkjepa evaluate compare out/before out/after --out out/compare.html
    """
    from ..evaluation.bag.compare import compare
    from ..evaluation.bag.pairing import CompareError

    if out.suffix.lower() not in (".html", ".htm"):
        raise SystemExit(f"{out} is no page; give --out a name that ends in .html")
    try:
        figures = compare(folders, out)
    except CompareError as error:
        raise SystemExit(str(error)) from None
    except OSError as error:
        raise SystemExit(f"{out} cannot be written ({error.strerror}); give another --out") from None
    for sentence in figures["summary"]:
        print(sentence)
    if figures["surprise"]:
        print(figures["surprise"])
    print(f"page: {out}")
    print(f"figures: {out.with_suffix('.json')}", file=sys.stdout)
