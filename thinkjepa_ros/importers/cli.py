"""What `thinkjepa import` asks for. Nothing heavy is imported before it runs, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_(
    source: Annotated[str, typer.Argument(help="File or folder, or a Hugging Face id such as owner/name.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; each part gets a sub-folder of its kind.")],
    kind: Annotated[
        str | None,
        typer.Option("--as", help="Import only this kind of part, one of the last column."),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="ThinkJEPA, not in the weights: v1 (paper), v2 (causal) or grid (the plain predictor)."),
    ] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads, where the file does not say.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of the Hugging Face repository.")] = None,
    model_id: Annotated[str | None, typer.Option(help="Name of the model. Default: that of the source.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, kept in model.json.")] = "",
    force: Annotated[bool, typer.Option(help="Replace OUT, if it holds nothing but imported parts.")] = False,
) -> None:
    """Turn a published checkpoint into this package's format: model.json, model.safetensors, SHA-256.

    | what | give | parts |
    |---|---|---|
    | V-JEPA 2 | Hugging Face id or folder: facebook/vjepa2-vitl-fpc64-256, vith, vitg | encoder, mask_predictor |
    | V-JEPA 2 | Meta's vitl.pt, vith.pt, vitg.pt, vitg-384.pt | encoder, mask_predictor |
    | V-JEPA 2.1 | Meta's vjepa2_1_*.pt | encoder |
    | V-JEPA 2-AC | vjepa2-ac-vitg.pt | encoder, ac_predictor |
    | ThinkJEPA | ckpt_best.pt, ckpt_latest.pt | guided_predictor, trajectory_head |
    | any of them | .safetensors with the original tensor names | as above |

    Kinds are told from the names of the tensors. Pickles (.pt) are read without running them. OUT appears only when
    everything was written, loaded back and compared; docs/models.md says more.
    """
    from .command import run
    from .source import Options

    run(
        source,
        out,
        Options(layout, heads),
        kind=kind,
        revision=revision,
        model_id=model_id,
        licence=licence,
        force=force,
    )
