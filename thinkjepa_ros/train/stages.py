"""All stages of the shipped mini in a row: `thinkjepa train all DATA --out models/mini`.

encoder -> thinker -> cache -> forecast -> guide -> sub-goal head. Each has its folder in `run`; what is done is not
done again, so the same command after a kill or Ctrl-C goes on where it was.
"""

from __future__ import annotations

from pathlib import Path

from ..data.episode import EpisodeError
from ..thinker import folder as folders
from . import defaults, distributed, mini, subgoal, thinker
from .encoder_stage import train_encoder

#: Where the sub-goal head lies in the folder of the model.
SUBGOAL = Path("thinker") / "subgoal"


def train_all(
    data: Path,
    out: Path,
    *,
    run: Path,
    mind: Path | None = None,
    latents: Path | None = None,
    encoder_steps: int = defaults.ENCODER_STEPS,
    encoder_batch: int = defaults.ENCODER_BATCH,
    see_steps: int = defaults.SEE_STEPS,
    thinker_steps: int = defaults.THINKER_STEPS,
    thinker_batch: int = defaults.THINKER_BATCH,
    forecast_steps: int = defaults.FORECAST_STEPS,
    guide_steps: int = defaults.GUIDE_STEPS,
    forecast_batch: int = defaults.FORECAST_BATCH,
    subgoal_steps: int = defaults.SUBGOAL_STEPS,
    dtype: str = "auto",
    seed: int = 0,
    threads: int = 2,
    limit: int | None = None,
    val_limit: int | None = defaults.VAL_EPISODES,
    device: str = "cpu",
) -> None:
    """Train the mini on the episodes in `data` (folder train/) and write it to `out`. Work in progress lives in `run`.

    mind: folder of a trained thinker; without it one is trained and written to `out`/thinker. latents: folder of the
    cache, default `run`/cache. dtype: in which the predictor computes while it learns. Raises run.Stopped,
    EpisodeError, ThinkerError, CheckpointError, CacheError, ValueError.
    """
    if not (data / "train").is_dir():
        raise EpisodeError(f"{data} has no folder train/; make it with `thinkjepa data sim {data / 'train'}`.")
    if mind is not None:
        folders.find(mind)  # or it would be missed after an hour
    processes = distributed.group()
    latents = latents or run / "cache"
    common = {"seed": seed, "threads": threads, "limit": limit}
    train_encoder(
        data,
        run / "encoder_model",
        run=run / "encoder",
        steps=encoder_steps,
        batch_size=encoder_batch,
        device=device,
        **common,  # type: ignore[arg-type]
    )
    processes.wait()
    if mind is None:
        mind = out / "thinker"
        thinker.train(
            data,
            mind,
            run=run / "thinker",
            steps=thinker_steps,
            see_steps=see_steps,
            batch_size=thinker_batch,
            **common,  # type: ignore[arg-type]
        )
    mini.train_forecast(
        data,
        out,
        init=run / "encoder_model",
        run=run,
        thinker=mind,
        latents=latents,
        steps=forecast_steps,
        guide_steps=guide_steps,
        batch_size=forecast_batch,
        dtype=dtype,
        device=device,
        command="thinkjepa train all",
        **common,  # type: ignore[arg-type]
    )
    reading = subgoal.train_subgoal(
        data,
        out / SUBGOAL,
        init=out,
        run=run / "subgoal",
        thinker=mind,
        latents=latents,
        steps=subgoal_steps,
        val_limit=val_limit,
        device=device,
        **common,  # type: ignore[arg-type]
    )
    if processes.first:
        print(f"{out / SUBGOAL}: {reading.sentence}")
