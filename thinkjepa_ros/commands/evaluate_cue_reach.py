"""`thinkjepa evaluate cue-reach`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import MINI, Model, ThinkerPath, shipped


def evaluate_cue_reach(
    data: Annotated[
        Path, typer.Argument(help="Folder of test episodes (split mixed, seeds from 2000000), 500 or more.")
    ],
    train: Annotated[
        Path | None,
        typer.Option(help="Training episodes, on which mean displacement and ridge are fitted; else left out."),
    ] = None,
    model: Model = MINI,
    thinker: ThinkerPath = MINI / "thinker",
    table: Annotated[
        Path, typer.Option(help="What `thinkjepa train table` made. Rows without one are left out.")
    ] = Path("out/table"),
    cache: Annotated[
        Path, typer.Option(help="Latents and thoughts, in test/ and train/; made where they are missing.")
    ] = Path("out/cache"),
    limit: Annotated[int | None, typer.Option(min=2, help="Use only the first test episodes.")] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Instead: play episodes through the real nodes and compare with lock step.")
    ] = False,
    episodes: Annotated[int, typer.Option(min=2, help="Episodes to play with --live, about 7 s each, twice.")] = 60,
    out: Annotated[
        Path, typer.Option(help="JSON with all figures; pictures (or, with --live, recordings) beside it.")
    ] = Path("out/cue_reach/table.json"),
) -> None:
    """Does thinking help? The whole table of the cue-reach benchmark, by the protocol of docs/cue_reach_protocol.md.

    Everything is computed in lock step on cached latents; with --live the main rows come through player, thinker,
    predictor and evaluator in real time, the thinker thinking once a second beside the camera.
    """
    from ..evaluation.cue_reach.evaluate import Bench, Sources, evaluate

    sources = Sources(data, train, shipped(model), shipped(thinker), table, cache, limit)
    if not live:
        evaluate(sources, out, ["thinkjepa", *sys.argv[1:]])
        return
    import json

    from ..checkpoints import WEIGHTS, sha256_of, write_atomically
    from ..data.episode import list_episodes
    from ..demo.live import run_live
    from ..evaluation.cue_reach import against_live

    bench = Bench(sources)
    numbers = against_live.chosen(bench, episodes)
    files = list_episodes(data, limit=limit)
    play = [files[n] for n in numbers]
    until = against_live.until_ns(bench, numbers)
    runs = [
        run_live(
            play,
            out.parent / name,
            model=sources.model,
            thinker=sources.thinker,
            guided=name == "live_guided",
            until_ns=until,
        )
        for name in ("live_guided", "live_unguided")
    ]
    found = against_live.compare(bench, numbers, *runs)
    found["command"] = " ".join(["thinkjepa", *sys.argv[1:]])
    found["weights_sha256"] = bench.manifest.sha256[WEIGHTS]
    found["thinker_sha256"] = sha256_of(sources.thinker / WEIGHTS)
    against_live.show(found)
    write_atomically(out, (json.dumps(found, indent=1) + "\n").encode())
