"""`thinkjepa train table`: from a folder of episodes to all trials of the table."""

from __future__ import annotations

from pathlib import Path

from .. import checkpoints
from ..jepa import model
from ..thinker.qwen import Thinker
from . import cache, clips, defaults, table
from .encoder_stage import train_encoder
from .mini import cache_maker, folder_of
from .run import threads as use_threads
from .table import Lessons
from .tracks import Tracks

#: Steps in which the pose readout over the random encoder is trained.
RANDOM_STEPS = 600


def train_table(
    data: Path,
    out: Path,
    *,
    init: Path,
    thinker: Path,
    latents: Path,
    steps: int = defaults.FORECAST_STEPS,
    guide_steps: int = defaults.GUIDE_STEPS,
    batch_size: int = defaults.FORECAST_BATCH,
    lr: float = defaults.FORECAST_LR,
    guide_lr: float = defaults.GUIDE_LR,
    dtype: str = "auto",
    only: str = "",
    threads: int = 1,
) -> None:
    """Train every trial of the table that is not in `out` yet, over the model `init`.

    latents: folder of the caches: train/ (that of stage `cache`), train_random/. only: trials whose name contains this.
    Several calls at once share the trials. Raises run.Stopped, EpisodeError, ThinkerError, CheckpointError, CacheError,
    ValueError.
    """
    use_threads(threads)
    source = folder_of(data)
    mind = Thinker.load(thinker)

    def lessons(encoder: str) -> Lessons:
        shipped = encoder == "shipped"
        folder = init if shipped else _random_encoder(data, out, threads)
        net = model.load(folder)[0].eval().requires_grad_(False)
        maker = cache_maker(model.load(init)[0].eval().requires_grad_(False), mind, thinker)
        if not shipped:
            maker = cache.Maker(net, thoughts=(latents / "train", maker.made_by))
        episodes = clips.load_folder(source)
        shards = latents / ("train" if shipped else "train_random")
        cache.fill(episodes, maker, shards, title="Latents and thoughts")
        tracks = Tracks.of(episodes, cache.load(episodes, shards, maker.made_by))
        return Lessons(net, tracks, tracks.with_thoughts(table.oracle_states(episodes, tracks)))

    trials = [trial for trial in table.TRIALS if only in trial.name]
    if not trials:
        raise ValueError(f"no trial is called like {only!r}; there are {', '.join(t.name for t in table.TRIALS)}")
    describe = {"data": clips.data_hash(source, None), "thinker": mind.model_id}
    sizes = {"steps": steps, "guide_steps": guide_steps, "batch_size": batch_size}
    table.train_table(lessons, out, trials, **sizes, lr=lr, guide_lr=guide_lr, describe=describe, dtype=dtype)


def _random_encoder(data: Path, out: Path, threads: int) -> Path:
    """The control: an encoder as it was drawn, under a trained pose readout."""
    folder = out / "random_encoder"
    with table.claimed(folder, wait=True):
        if not (folder / checkpoints.MANIFEST).exists():
            run = folder / "run"
            train_encoder(data, folder, run=run, recipe="random", steps=RANDOM_STEPS, threads=threads)
    return folder
