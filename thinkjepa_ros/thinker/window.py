"""Which frames a thought looks at: pair-aligned sparse sampling over a long window. Pure time logic.

Qwen3-VL encodes frames in pairs. Time is cut into slots of `period_s` on the absolute grid; the first frame of a slot
stands for it, and slots 2p and 2p + 1 form pair p. So a pair, once both its frames are there, is the same pair in every
later thought, whenever that thought starts, and its vision features can be kept.

Two neighbouring frames are less than one slot and one camera period apart: with the default 0.25 s that is no more than
0.3 s for any camera of 20 Hz or more, so that a cue of half a second cannot fall between samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Pair:
    """Two frames that are encoded together: their places in the sequence given, and the number of the pair on the grid.

    Where only one slot of the pair holds a frame, that frame stands for both (`first == second`), as the official
    processor repeats an odd last frame.
    """

    number: int
    first: int
    second: int


@dataclass(frozen=True)
class Window:
    """The long window of the thinker: `window_s` seconds that end at the newest frame, one frame per `period_s`.

    ValueError unless 0 < period_s and a pair fits into the window.
    """

    window_s: float = 8.0
    period_s: float = 0.25

    def __post_init__(self) -> None:
        if not self.period_s >= 1e-3:
            raise ValueError(f"period_s must be at least 0.001 s, not {self.period_s}")
        if not 2 * self.period_s <= self.window_s <= 3600:
            raise ValueError(
                f"window_s must hold one pair ({2 * self.period_s} s) and be at most 3600 s, not {self.window_s}"
            )

    @property
    def period_ns(self) -> int:
        """Length of a slot in ns. A live ring that keeps the first frame of each slot keeps all that `choose` takes."""
        return round(self.period_s * 1e9)

    @property
    def span_ns(self) -> int:
        """Length of the window in ns: what a live ring has to keep."""
        return round(self.window_s * 1e9)

    @property
    def max_pairs(self) -> int:
        """No thought has more pairs than this."""
        return -(-self.span_ns // (2 * self.period_ns))

    def slot(self, stamp_ns: int) -> int:
        """Number of the slot on the absolute grid that holds this stamp."""
        return int(stamp_ns) // self.period_ns

    def choose(self, stamps_ns: Sequence[int]) -> list[Pair]:
        """Pairs, oldest first, out of frames with these stamps (strictly ascending, ns; ValueError otherwise).

        The window ends at the newest stamp, and a pair belongs to it when the pair's whole time does, so that the
        frames of the oldest pair cannot slide out one by one. Frames already thinned by this function are all chosen
        again.
        """
        if any(later <= earlier for earlier, later in pairwise(stamps_ns)):
            raise ValueError("the stamps of the frames must ascend strictly")
        if not len(stamps_ns):
            return []
        oldest_start = int(stamps_ns[-1]) - self.span_ns
        slots: dict[int, int] = {}
        for index, stamp in enumerate(stamps_ns):
            slots.setdefault(self.slot(stamp), index)
        pairs = []
        for number in sorted({slot // 2 for slot in slots}):
            if number * 2 * self.period_ns <= oldest_start:
                continue
            first, second = slots.get(2 * number), slots.get(2 * number + 1)
            pairs.append(Pair(number, _either(first, second), _either(second, first)))
        return pairs


def _either(wanted: int | None, other: int | None) -> int:
    chosen = wanted if wanted is not None else other
    assert chosen is not None  # a pair number exists because one of its slots does
    return chosen
