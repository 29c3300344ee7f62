"""What a node needs of a thinker: the seam for another backend.

`qwen.Thinker` is the one implementation. A thinker on another machine needs none of its own: it is the same node there,
over the same topics (docs/thinker.md). Another runtime (a server, another framework) implements this protocol, and the
node's `load` makes that object instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from ..values import Frame, Guidance
from .window import Window

if TYPE_CHECKING:
    from .qwen import Report


class Backend(Protocol):
    """Looks at sparse frames over a long window and hands out guidance.

    Everything but `ask` and `forget` is called from one thread. What goes wrong in a call is a `ThinkerError` with
    words (of which `Cancelled` and `TimedOut` are two), after which the next call works.
    """

    #: Says which weights: the predictor was trained on the states of these and no others. Ends with "(untrained)".
    model_id: str
    trained: bool
    #: Exported decoder layers, ascending, and the width of their states: the shape of every pyramid.
    layers: tuple[int, ...]
    width: int
    window: Window
    #: (height, width) in pixels of what it looks at.
    image_size: tuple[int, int]
    #: Where the time of the last finished thought went; None before the first.
    report: Report | None

    @property
    def words(self) -> str:
        """How it computes, for a log."""
        ...

    @property
    def question(self) -> str:
        """The template that is asked, with {instruction} in it."""
        ...

    def ask(self, template: str) -> None:
        """Change the question from the next thought on; an empty template is the first one again. From any thread.

        ThinkerError for one that cannot be asked; the question stays as it was.
        """
        ...

    def prepare(self, frame: Frame) -> Frame:
        """The frame at the size the model looks at: what to keep in a long ring."""
        ...

    def observe(self, frame: Frame) -> None:
        """Work on a frame between thoughts, so that the next thought finds it done."""
        ...

    def scene_change(self, frames: Sequence[Frame]) -> float:
        """How much the newest frame differs from that of the last finished thought, 0 to 255; inf without one."""
        ...

    def think(
        self,
        frames: Sequence[Frame],
        instruction: str,
        *,
        max_new_tokens: int = ...,
        think_tokens: int | None = ...,
        deadline_s: float | None = ...,
        cancel: threading.Event | None = ...,
        on_text: Callable[[str], None] | None = ...,
        valid_for_s: float = ...,
        sequence: int = ...,
        epoch: int = ...,
        tokens: bool = ...,
    ) -> Guidance:
        """One thought over frames with ascending stamps. Ends within a token of `cancel` or of the deadline."""
        ...

    def forget(self) -> None:
        """Drop what is kept between thoughts. May be called from any thread."""
        ...

    def warm_up(self) -> None:
        """Make the first thought as quick as the later ones."""
        ...
