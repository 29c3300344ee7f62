#!/usr/bin/env python3
"""Time and memory of `thinkjepa evaluate bag` over long recordings, made by repeating a short one.

Example: thinkjepa data bag out/short --seed 2000001 --episodes 12
         python scripts/measure_bag.py out/short --minutes 5 --minutes 60

Prints one line per length: how many times real time the evaluation ran (as its report says), the most memory that its
processes had for themselves at any time (anonymous pages, all processes together), and the pages of files beside it,
which the system takes back when it needs them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

_EVALUATE = ("--truth", "/truth/joints", "--pose-topic", "/camera/pose")


def repeat(source: Path, out: Path, minutes: float) -> None:
    """Write the messages of a recording over and over, later each time, until `minutes` are full."""
    store = get_typestore(Stores.ROS2_JAZZY)
    with Reader(source) as reader, Writer(out, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {
            c.id: writer.add_connection(c.topic, c.msgtype, typestore=store, serialization_format="cdr")
            for c in reader.connections
        }
        span_ns = reader.duration + 1_000_000_000
        for turn in track(range(max(1, round(minutes * 60e9 / span_ns))), f"Writing {minutes:g} minutes"):
            for connection, stamp_ns, data in reader.messages():
                message = store.deserialize_cdr(data, connection.msgtype)
                if hasattr(message, "header"):
                    stamp = message.header.stamp
                    later = stamp.sec * 10**9 + stamp.nanosec + turn * span_ns
                    stamp.sec, stamp.nanosec = divmod(later, 10**9)
                    data = bytes(store.serialize_cdr(message, connection.msgtype))
                writer.write(connections[connection.id], stamp_ns + turn * span_ns, data)


def _family(pid: int) -> list[int]:
    """A process and all that it has started."""
    found: list[int] = [pid]
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:  # it has just ended
                continue
            parents.setdefault(int(stat[1]), []).append(int(entry.name))
    for one in found:
        found += parents.get(one, [])
    return found


def _memory_mb(pid: int) -> tuple[float, float]:
    """Anonymous memory and pages of files of a family of processes, in MB. What several share counts once."""
    sums = {"Pss_Anon": 0, "Pss_File": 0, "Pss_Shmem": 0}
    for one in _family(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(":")
            if name in sums:
                sums[name] += int(value.split()[0])
    return (sums["Pss_Anon"] + sums["Pss_Shmem"]) / 1024, sums["Pss_File"] / 1024


def main(
    source: Annotated[Path, typer.Argument(help="A short recording of `thinkjepa data bag`.")],
    minutes: Annotated[list[float], typer.Option(help="Length of a recording to measure; may be given again.")],
    workers: Annotated[int, typer.Option(help="Processes of the evaluation; 0: one per processor.")] = 0,
    folder: Annotated[Path | None, typer.Option(help="Where the recordings go. Default: a temporary folder.")] = None,
    report: Annotated[bool, typer.Option(help="Make the report and the film, too.")] = True,
) -> None:
    """Measure the evaluation of recordings of these lengths, one after the other."""
    lines = []
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for length in minutes:
            bag, out = Path(temporary) / f"bag_{length:g}", Path(temporary) / f"out_{length:g}"
            repeat(source, bag, length)
            command = [sys.executable, "-m", "thinkjepa_ros.cli", "evaluate", "bag", str(bag), *_EVALUATE]
            command += ["--out", str(out), "--workers", str(workers)]
            command += [] if report else ["--no-report", "--no-video"]
            began, most, files = time.monotonic(), 0.0, 0.0
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            while child.poll() is None:
                own, mapped = _memory_mb(child.pid)
                most, files = max(most, own), max(files, mapped)
                time.sleep(0.5)
            if child.returncode:
                raise SystemExit(f"`{' '.join(command)}` failed with {child.returncode}")
            words = json.loads((out / "metrics.json").read_text())
            speed = words["about"]["speed"]
            lines.append(
                f"{length:g} min: {words['counts']['forecasts']} forecasts by {speed['workers']} processes, "
                f"{speed['times_real_time']:.1f} x real time; all in all {time.monotonic() - began:.0f} s; "
                f"memory {most:.0f} MB, pages of files {files:.0f} MB"
            )
            print(lines[-1], flush=True)


if __name__ == "__main__":
    typer.run(main)
