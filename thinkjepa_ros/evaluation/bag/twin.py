"""A forecaster with a twin beside it that sees the same frames, so that one can be guided and the other not.

Each has expectations of its own: the surprise of one does not rest on what the other said.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thinkjepa_ros.jepa.forecaster import Forecaster


class Paired(Forecaster):
    """A `Forecaster` that lends its frames. A frame that one of the two has encoded is not encoded by the other."""

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", dtype: str = "float32", compile: bool = False) -> Paired:
        """See `Forecaster.load`."""
        made = super().load(path, device, dtype, compile)
        assert isinstance(made, Paired)
        return made

    @property
    def reach_ns(self) -> int:
        """How far back something it keeps can matter to a forecast and its surprise: frames that were encoded together,
        and what was expected a tubelet ago.
        """
        return (self.window + self._net.config.predictor.tubelet_steps + 1) * self.step_ns

    def lend(self, stamps_ns: Sequence[int]) -> Mapping[int, Any]:
        """The frames with these stamps, which were observed, as `borrow` takes them."""
        return OrderedDict((stamp, self._frames[stamp]) for stamp in stamps_ns)

    def borrow(self, frames: Mapping[int, Any]) -> None:
        """Have these frames and no others. Another thread may use the lender meanwhile."""
        self._frames = OrderedDict(frames)

    def twin(self) -> Paired:
        """Another forecaster over the same weights, with no frames yet."""
        return Paired(self._net, self.model_id, self.domain, True, str(self._device), choice=self.choice)
