"""When a recorded message is due, and what time it is then."""

from __future__ import annotations

from dataclasses import dataclass, replace

NS = 1_000_000_000


@dataclass(frozen=True)
class Schedule:
    """Maps the times of a recording to the times of its playback.

    recorded_ns: recording time at which the playback begins; stamp_ns: header stamp of the first camera image and
    image_ns when that was recorded (header clocks and the recorder's clock may differ by years). rate: speed.
    begin_s: monotonic time of the beginning, begin_ns: the same moment on the wall clock.
    """

    recorded_ns: int
    image_ns: int
    stamp_ns: int
    rate: float
    begin_s: float = 0.0
    begin_ns: int = 0

    def due_s(self, recorded_ns: int) -> float:
        """Monotonic time at which a message recorded at `recorded_ns` is to be published."""
        return self.begin_s + (recorded_ns - self.recorded_ns) / NS / self.rate

    def wall_stamp(self, stamp_ns: int) -> int:
        """The header stamp as if the recording began now: the first image carries the moment it is due.

        At rate 1 differences between stamps are kept to the nanosecond.
        """
        first = self.begin_ns + round((self.image_ns - self.recorded_ns) / self.rate)
        return max(1, first + round((stamp_ns - self.stamp_ns) / self.rate))

    def stamp_now(self, now_s: float) -> int:
        """Header time of the recording at monotonic time `now_s`: what /clock says during a playback with bag time."""
        return max(0, self.stamp_ns - self.image_ns + self.recorded_ns + round((now_s - self.begin_s) * self.rate * NS))

    def starting(self, now_s: float, now_ns: int) -> Schedule:
        """The same playback, beginning now: `now_s` monotonic seconds are `now_ns` on the wall clock."""
        return replace(self, begin_s=now_s, begin_ns=now_ns)

    def later(self, seconds: float) -> Schedule:
        """The same playback, `seconds` later on both clocks: for the next loop, or when the machine fell behind."""
        return replace(self, begin_s=self.begin_s + seconds, begin_ns=self.begin_ns + round(seconds * NS))
