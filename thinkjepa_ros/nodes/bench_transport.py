"""Raw camera images from one process to another, with Fast DDS as it comes and with config/fastdds.xml.

`thinkjepa bench transport`. Publisher and subscriber are two processes, on this machine only and in a ROS domain of
their own; both columns have the same allocator settings, so that the profile is the only difference.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import functools
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thinkjepa_ros.transport import PROFILE_VARIABLES, child_environment, free_domain

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table

SIZES = ((640, 480), (1280, 720), (1920, 1080))
SETTINGS = ("default", "profile")
#: Sent first and not counted: connections settle and pages are touched for the first time.
WARM_UP = 10
START_S = 30.0


class BenchError(RuntimeError):
    """The benchmark could not be run; the text says why."""


@dataclass(frozen=True)
class Row:
    """One run: delivered of sent frames, latency from the stamp before publishing to the callback (NaN: none came)."""

    width: int
    height: int
    setting: str
    sent: int
    delivered: int
    p50_ms: float
    p99_ms: float


# -- the two processes ------------------------------------------------------------------------------------------------


def publish(width: int, height: int, frames: int, rate_hz: float) -> int:
    """Publish `frames` images after the warm-up; a line `sent <n>` on stdout now and then. Exit status."""
    import rclpy
    from sensor_msgs.msg import Image

    from thinkjepa_ros.bridge.qos import IMAGES

    rclpy.init()
    node = rclpy.create_node("bench_camera")
    publisher = node.create_publisher(Image, "image", IMAGES)
    message = Image(width=width, height=height, encoding="rgb8", step=3 * width)
    message.data = array.array("B", random.randbytes(3 * width * height))
    deadline = time.monotonic() + START_S
    while publisher.get_subscription_count() == 0:
        if time.monotonic() > deadline:
            print(f"no subscriber was found within {START_S:g} s", file=sys.stderr)
            return 1
        rclpy.spin_once(node, timeout_sec=0.05)
    begin = time.monotonic()
    for count in range(WARM_UP + frames):
        time.sleep(max(0.0, begin + count / rate_hz - time.monotonic()))
        message.header.frame_id = "" if count < WARM_UP else "measured"
        now_ns = time.time_ns()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(now_ns, 1_000_000_000)
        publisher.publish(message)
        if count % 10 == 0 or count == WARM_UP + frames - 1:
            print("sent", count + 1, flush=True)
    time.sleep(0.5)  # the last image is still under way
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


def subscribe() -> int:
    """Receive until stdin is closed, then print the latencies in seconds as JSON. Exit status."""
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from sensor_msgs.msg import Image

    from thinkjepa_ros.bridge.qos import IMAGES

    latencies: list[float] = []

    def on_image(message: Image) -> None:
        now_ns = time.time_ns()
        if message.header.frame_id:
            latencies.append((now_ns - message.header.stamp.sec * 1_000_000_000 - message.header.stamp.nanosec) * 1e-9)

    rclpy.init()
    node = rclpy.create_node("bench_listener")
    node.create_subscription(Image, "image", on_image, IMAGES)
    node.create_timer(0.2, lambda: None)  # an idle rclpy may miss the shutdown
    print("ready", flush=True)

    def end_with_stdin() -> None:
        sys.stdin.read()
        rclpy.try_shutdown()

    threading.Thread(target=end_with_stdin, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)
    print(json.dumps(latencies), flush=True)
    return 0


# -- the runs ---------------------------------------------------------------------------------------------------------


def process_environment(setting: str, domain: int) -> dict[str, str]:
    """The environment of publisher and subscriber: `default` without any Fast DDS profile, `profile` with ours."""
    base = {name: value for name, value in os.environ.items() if name not in PROFILE_VARIABLES}
    env = child_environment({**base, "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp"})
    if setting == "default":
        env = {name: value for name, value in env.items() if name not in PROFILE_VARIABLES}
    return env | {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "PYTHONUNBUFFERED": "1"}


@contextlib.contextmanager
def running(env: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process of this module; killed when it is still there at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "thinkjepa_ros.nodes.bench_transport", *arguments],
        env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


def failed(process: subprocess.Popen[str], what: str) -> BenchError:
    process.kill()
    _, errors = process.communicate()
    return BenchError(f"the {what} ended early: {errors.strip().splitlines()[-1] if errors.strip() else 'no message'}")


def measure(width: int, height: int, setting: str, frames: int, rate_hz: float, progress: Callable[[int], None]) -> Row:
    """One run of `frames` images. progress: called with the number of images sent. Raises BenchError."""
    import numpy as np

    try:
        env = process_environment(setting, free_domain())
    except (RuntimeError, FileNotFoundError) as error:
        raise BenchError(str(error)) from error
    size = ("--size", f"{width}x{height}", "--frames", str(frames), "--rate", str(rate_hz))
    with running(env, "--role", "subscribe") as subscriber:
        if (subscriber.stdout.readline() if subscriber.stdout else "") != "ready\n":
            raise failed(subscriber, "subscriber")
        with running(env, "--role", "publish", *size) as publisher:
            for line in publisher.stdout or ():
                progress(int(line.split()[1]))
            if publisher.wait() != 0:
                raise failed(publisher, "publisher")
        answer, _ = subscriber.communicate(timeout=START_S)
    latencies = np.array(json.loads(answer.splitlines()[-1])) * 1e3
    p50, p99 = np.percentile(latencies, (50, 99)) if latencies.size else (float("nan"),) * 2
    return Row(width, height, setting, frames, latencies.size, float(p50), float(p99))


def bench_transport(
    *, seconds: float = 4.0, rate_hz: float = 30.0, sizes: Sequence[tuple[int, int]] = SIZES, out: Path | None = None
) -> list[Row]:
    """Run all sizes with both settings, print a table, write the rows to `out` (JSON) if given. Raises BenchError."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    frames = max(1, round(seconds * rate_hz))
    rows: list[Row] = []
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        runs = [(width, height, setting) for width, height in sizes for setting in SETTINGS]
        task = bar.add_task("", total=len(runs) * (WARM_UP + frames))
        for number, (width, height, setting) in enumerate(runs):
            bar.update(task, description=f"{width}x{height} {setting}")
            done = number * (WARM_UP + frames)
            progress = functools.partial(_advance, bar, task, done)
            rows.append(measure(width, height, setting, frames, rate_hz, progress))
    console.print(table(rows, rate_hz))
    console.print(
        "Best effort, depth 5, two processes on this machine. The ratio is profile over default; only the publishing "
        "process needs the profile.",
        style="dim",
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"rate_hz": rate_hz, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
        console.print(f"wrote {out}")
    return rows


def _advance(bar: Progress, task: TaskID, before: int, sent: int) -> None:
    bar.update(task, completed=before + sent)


def table(rows: Sequence[Row], rate_hz: float) -> Table:
    """The rows side by side, one line per image size."""
    from rich.table import Table

    made = Table(title=f"rgb8 images at {rate_hz:g} Hz, {rows[0].sent} per run", box=None, padding=(0, 1, 0, 0))
    made.add_column("\nimage")
    for name in ("frames\ndefault", "\nprofile", "\nratio", "p50 ms\ndefault", "\nprofile", "\nratio"):
        made.add_column(name, justify="right", no_wrap=True)
    for name in ("p99 ms\ndefault", "\nprofile", "\nratio"):
        made.add_column(name, justify="right", no_wrap=True)
    by_size = {(row.width, row.height, row.setting): row for row in rows}
    for width, height in dict.fromkeys((row.width, row.height) for row in rows):
        plain, ours = (by_size[width, height, setting] for setting in SETTINGS)
        cells = [f"{plain.delivered}", f"{ours.delivered}", _ratio(ours.delivered, plain.delivered)]
        for a, b in ((plain.p50_ms, ours.p50_ms), (plain.p99_ms, ours.p99_ms)):
            cells += [_number(a), _number(b), _ratio(b, a)]
        made.add_row(f"{width}x{height}", *cells)
    return made


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _ratio(value: float, reference: float) -> str:
    return f"{value / reference:.2f}" if reference and math.isfinite(value / reference) else "-"


def _size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    return width, height


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m thinkjepa_ros.nodes.bench_transport`: 0, or 1 with a sentence on stderr."""
    parser = argparse.ArgumentParser(prog="thinkjepa bench transport", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each of the runs (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=30.0, help="images per second (default: %(default)s)")
    parser.add_argument("--size", type=_size, nargs="+", default=SIZES, help="such as 640x480 (default: three sizes)")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--role", choices=("publish", "subscribe"), help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.role == "publish":
        width, height = given.size[0]
        return publish(width, height, given.frames, given.rate)
    if given.role == "subscribe":
        return subscribe()
    try:
        bench_transport(seconds=given.seconds, rate_hz=given.rate, sizes=given.size, out=given.out)
    except BenchError as error:
        print(f"thinkjepa bench transport: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
