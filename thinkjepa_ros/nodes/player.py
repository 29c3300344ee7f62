"""Plays a rosbag2 recording (sqlite3 or mcap) at real speed, without rosbag2.

The camera topic is found by itself and published as `image` or `image/compressed`, its calibration as `camera_info`;
every other topic keeps its name. Messages travel as the bytes they were recorded as; only stamps change.

clock:=wall  every stamp is shifted so that the recording begins now: latencies and ages are real. Where the bag loops,
             time goes on, and `~/loop` (latched) tells the stamp from which on the scene is at its beginning again.
clock:=bag   original stamps, and /clock at `clock_rate_hz`: for nodes with use_sim_time.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections import deque

import numpy as np
import rclpy
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Header

from thinkjepa_ros.bridge.lockstep import Answers
from thinkjepa_ros.bridge.parameter import Parameters
from thinkjepa_ros.bridge.qos import IMAGES, LATCHED
from thinkjepa_ros.bridge.replay_parameters import PLAYER
from thinkjepa_ros.bridge.stamps import NS, Restamper, message_class, read_stamp
from thinkjepa_ros.data.playback import Schedule
from thinkjepa_ros.data.recording import COMPRESSED, Recording, RecordingError, Topic

#: Never played: the clock is the player's own, the rest belongs to the processes of the recording.
OWN_TOPICS = ("/clock", "/rosout", "/parameter_events")
#: Behind by more than this, the player does not catch up with a burst but goes on from now.
MAX_LAG_S = 0.5
#: In lock step, longest wait for an answer to the first image of a round.
FIRST_S = 1.0


class Player(Node):
    """Owns the recording and its publishers; `play` runs in one thread while another spins.

    Raises RecordingError or ValueError (a sentence) when it can not play what it was asked to.
    """

    def __init__(self) -> None:
        super().__init__("player")
        self.get = Parameters(self, PLAYER, lambda changed: None).__getitem__
        if not self.get("bag"):
            raise ValueError("nothing to play; name the recording: --ros-args -p bag:=PATH")
        self.recording = Recording(self.get("bag"))
        self.camera = self.recording.camera(self.get("image_topic"))
        self.lags_s: deque[float] = deque(maxlen=10_000)
        self.unanswered = 0
        self._sent = 0
        self._stop = threading.Event()
        self._streams: dict[str, tuple[Publisher, Restamper]] = {}
        for topic, target in self._choose().items():
            kind = message_class(topic.type)
            if kind is None:
                self.get_logger().warning(f"not played: {topic.name}, its type {topic.type} is not installed")
            else:
                self._streams[topic.name] = (self.create_publisher(kind, target, self._qos(topic)), Restamper(kind))
        self._loops = self.create_publisher(Header, "~/loop", LATCHED)
        self._clock_out = self.create_publisher(Clock, "/clock", 10) if self.get("clock") == "bag" else None
        self._answers = Answers(self, self.get("predictor")) if self.get("lockstep") else None
        self._schedule = self._first_schedule()

    def _choose(self) -> dict[Topic, str]:
        """The topics to play and the names to play them under."""
        compressed = self.camera.type == COMPRESSED
        names = {self.camera: self.get("image_to") or ("image/compressed" if compressed else "image")}
        info = self.recording.camera_info(self.camera)
        if info is not None:
            names[info] = self.get("camera_info_to")
        wanted = [name for name in map(str.strip, self.get("topics").split(",")) if name]
        for name in wanted:
            topic = self.recording.topic(name)
            if topic is None:
                raise RecordingError(f"{self.recording.path} has no topic {name}; {self.recording.describe()}")
            names.setdefault(topic, name)
        if not wanted:
            for topic in self.recording.topics:
                if topic.type.startswith("thinkjepa_ros/"):
                    self.get_logger().info(f"not played: {topic.name} would mix with what the nodes publish now")
                elif topic.name not in OWN_TOPICS and topic.count:
                    names.setdefault(topic, topic.name)
        return names

    def _qos(self, topic: Topic) -> QoSProfile:
        if topic == self.camera and self.get("image_reliability") == "best_effort":
            return IMAGES
        # an instruction is said once: whoever comes later must still hear it
        return LATCHED if topic.latched or topic.type == "std_msgs/msg/String" else QoSProfile(depth=50)

    def _first_schedule(self) -> Schedule:
        offset = self.get("start_offset_s")
        first = next(self.recording.messages([self.camera], offset), None)
        if first is None:
            raise RecordingError(
                f"{self.recording.path} lasts {self.recording.duration_s:.1f} s; no image is left after {offset:g} s"
            )
        _, image_ns, data = first
        begin_ns = self.recording.start_ns + round(offset * NS)
        return Schedule(begin_ns, image_ns, read_stamp(data) or image_ns, self.get("rate"))

    def stop(self) -> None:
        """End playing soon; thread-safe."""
        self._stop.set()

    def play(self) -> None:
        """Play to the end (none with loop:=true) or until `stop`. Raises RecordingError where the file breaks."""
        self._await_subscribers()
        if self._answers is not None and not self._answers.ready(self.get("lockstep_timeout_s")):
            self.get_logger().warning(f"no status of the node {self.get('predictor')}; is it running?")
        began = time.monotonic()
        schedule = self._schedule.starting(began, time.time_ns())
        count, rounds = 0, 0
        while not self._stop.is_set():
            schedule, played = self._play_once(schedule, rounds)
            count, rounds = count + played, rounds + 1
            if not self.get("loop"):
                break
            # the first image of the next round follows the last of this one as if the camera went on
            length_s = (self.recording.end_ns - schedule.image_ns) / NS + self._image_period_s()
            schedule = schedule.later(length_s / schedule.rate)
        self._report(count, time.monotonic() - began)

    def _image_period_s(self) -> float:
        return max(self.recording.duration_s / max(1, self.camera.count - 1), 0.001)

    def _await_subscribers(self) -> None:
        wanted, publisher = self.get("wait_for_subscribers"), self._streams[self.camera.name][0]
        deadline = time.monotonic() + self.get("wait_timeout_s")
        while publisher.get_subscription_count() < wanted and not self._stop.wait(0.05):
            if time.monotonic() > deadline:
                self.get_logger().warning(
                    f"only {publisher.get_subscription_count()} of {wanted} nodes listen to {publisher.topic_name}; "
                    "playing anyway"
                )
                return

    def _play_once(self, schedule: Schedule, rounds: int) -> tuple[Schedule, int]:
        """One round; the schedule comes back later by what the machine fell behind."""
        count, offset_s = 0, self.get("start_offset_s")
        topics = [topic for topic in self.recording.topics if topic.name in self._streams]
        first = schedule.stamp_ns if self._clock_out else schedule.wall_stamp(schedule.stamp_ns)
        header = Header(frame_id=str(rounds))
        header.stamp.sec, header.stamp.nanosec = divmod(first, NS)
        self._loops.publish(header)
        if rounds == 0 and offset_s > 0:  # what was said once, before the place where we begin, still holds
            said = {topic.name: (topic, data) for topic, at, data in self.recording.messages(topics)
                    if at < schedule.recorded_ns and self._qos(topic) is LATCHED}  # fmt: skip
            for topic, data in said.values():
                self._publish(topic, data, schedule)
        for topic, recorded_ns, data in self.recording.messages(topics, offset_s):
            due_s = schedule.due_s(recorded_ns)
            self._wait_until(due_s, schedule)
            if self._stop.is_set():
                break
            lag = time.monotonic() - due_s
            self.lags_s.append(lag)
            if lag > MAX_LAG_S and self._answers is None:
                self.get_logger().warning(f"{lag:.2f} s behind schedule; going on from here")
                schedule = schedule.later(lag)
            stamp_ns = self._publish(topic, data, schedule)
            count += 1
            if self._answers is not None and topic == self.camera:
                self._await_answer(self._answers, stamp_ns, first=stamp_ns == first)
        return schedule, count

    def _wait_until(self, due_s: float, schedule: Schedule) -> None:
        """Wait, with /clock ticking; in lock step the clock follows the messages, so that a replay repeats exactly."""
        tick_s = 1.0 / self.get("clock_rate_hz")
        while not self._stop.is_set():
            now_s = time.monotonic()  # read once: never past due_s, or the message's own tick would lie behind this one
            remaining = due_s - now_s
            if self._clock_out is not None:
                running = self._answers is None and remaining > 0
                now_ns = schedule.stamp_now(now_s if running else due_s)
                clock = Clock()
                clock.clock.sec, clock.clock.nanosec = divmod(now_ns, NS)
                self._clock_out.publish(clock)
            if remaining <= 0:
                return
            self._stop.wait(min(remaining, tick_s) if self._clock_out else remaining)

    def _publish(self, topic: Topic, data: bytes, schedule: Schedule) -> int:
        """Publish one message; returns the stamp it went out with (0 when the type begins with no header)."""
        publisher, restamp = self._streams[topic.name]
        if self._clock_out is None:
            data = restamp(data, schedule.wall_stamp)
        publisher.publish(bytes(data))
        return read_stamp(data) if restamp.leading else 0

    def _await_answer(self, answers: Answers, stamp_ns: int, first: bool) -> None:
        """Wait for the predictor. The `first` image of a round may be held back there, since its stamp lies behind the
        one before, until the second shows that the clock really jumped: it is not waited for long.
        """
        self._sent += 1
        deadline = time.monotonic() + (FIRST_S if first else self.get("lockstep_timeout_s"))
        while not self._stop.is_set():
            if answers.wait(stamp_ns, self._sent, 0.1):
                return
            if time.monotonic() > deadline:
                self.unanswered += not first
                return

    def _report(self, count: int, seconds: float) -> None:
        lags_ms = np.array(self.lags_s or [0.0]) * 1e3
        text = (
            f"played {count} messages in {seconds:.2f} s; behind schedule by {np.median(lags_ms):.1f} ms (p50), "
            f"{np.percentile(lags_ms, 99):.1f} ms (p99)"
        )
        if self._answers is not None:
            text += f"; {self.unanswered} of {self._sent} images went unanswered"
        self.get_logger().info(text)


def main(args: list[str] | None = None) -> int:
    """Entry point: 0 when played to the end or stopped, 1 with a sentence on stderr when it can not play."""
    rclpy.init(args=args)
    player: Player | None = None
    executor = SingleThreadedExecutor()
    thread = threading.Thread(target=_spin, args=(executor,), name="spin", daemon=True)
    try:
        player = Player()
        executor.add_node(player)
        thread.start()
        rclpy.get_default_context().on_shutdown(player.stop)
        player.play()
        time.sleep(0.2)  # the transport still hands out the last message
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except (RecordingError, ValueError, InvalidParameterValueException, InvalidParameterTypeException) as error:
        integer = isinstance(error, InvalidParameterTypeException) and "'INTEGER', expecting type 'DOUBLE'" in str(
            error
        )
        print(f"player: {error}{'; write it with a decimal point, like 2.0' if integer else ''}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if player is not None:
            player.stop()
        # the context first: it wakes the spinning thread, which must be gone before what it waits on is taken away
        rclpy.try_shutdown()
        if thread.is_alive():
            thread.join(2.0)
        executor.shutdown()
        if player is not None:
            player.destroy_node()
            player.recording.close()
    return 0


def _spin(executor: SingleThreadedExecutor) -> None:
    with contextlib.suppress(ExternalShutdownException):
        executor.spin()


if __name__ == "__main__":
    sys.exit(main())
