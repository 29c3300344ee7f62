"""The row "removed cue": what the thinker says when the frames with the lit lamp are not shown to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from rich.progress import track

from ...data.episode import Episode
from ...thinker.qwen import Thinker
from ...train.mini import MAX_NEW_TOKENS
from ...train.tracks import Tracks
from ...values import Frame


def without_cue(
    episodes: Sequence[Episode], tracks: Tracks, thinker: Thinker, needed: np.ndarray
) -> tuple[Tracks, np.ndarray]:
    """The tracks with other states for the thoughts `needed` (numbers) of episodes with a lamp, and which thoughts
    these are, bool [K].
    """
    pyramids, changed = tracks.pyramids.clone(), np.zeros(len(tracks.thought_ns), bool)
    for number in track(range(len(episodes)), "Thoughts without the cue", transient=True):
        episode = episodes[number]
        here = needed[(needed >= tracks.thoughts[number]) & (needed < tracks.thoughts[number + 1])]
        if episode.cue_ns is None or not len(here):
            continue
        thinker.forget()
        on, off = episode.cue_ns
        slots: dict[int, int] = {}
        for index, stamp in enumerate(episode.stamps_ns):
            if not on <= stamp < off:
                slots.setdefault(thinker.window.slot(int(stamp)), index)
        sparse = [Frame(episode.frames[i], int(episode.stamps_ns[i])) for i in slots.values()]
        for k in here:
            seen = [f for f in sparse if f.stamp_ns <= tracks.thought_ns[k]]
            if seen:
                said = thinker.think(seen, episode.instruction, max_new_tokens=MAX_NEW_TOKENS)
                pyramids[k] = torch.from_numpy(np.asarray(said.pyramid, np.float32))
                changed[k] = True
    return tracks.with_thoughts(pyramids), changed
