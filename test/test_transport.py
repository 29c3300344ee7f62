"""The environment of our processes never overrides the user's, and with it raw images arrive."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from thinkjepa_ros.transport import (
    MALLOC,
    PROFILE_VARIABLES,
    THREADS,
    added_environment,
    child_environment,
    free_domain,
    profile_path,
)

pytestmark = pytest.mark.alone

FASTDDS, FASTRTPS = PROFILE_VARIABLES


@pytest.mark.parametrize(
    ("distribution", "name"),
    [("", FASTDDS), ("kilted", FASTDDS), ("rolling", FASTDDS), ("jazzy", FASTRTPS), ("humble", FASTRTPS)],
)
def test_profile_is_named_as_the_distribution_reads_it(distribution, name):
    added = added_environment({"ROS_DISTRO": distribution})
    assert added[name] == str(profile_path())
    assert sum(variable in added for variable in PROFILE_VARIABLES) == 1


@pytest.mark.parametrize(
    "chosen", [{FASTDDS: "/own.xml"}, {FASTRTPS: "/own.xml"}, {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}]
)
def test_own_profile_or_other_middleware_is_left_alone(chosen):
    added = added_environment(chosen)
    assert not set(added) & set(PROFILE_VARIABLES)
    assert set(added) == set(MALLOC) | set(THREADS)
    assert child_environment(chosen).items() >= chosen.items()


def test_what_the_user_has_set_stays():
    base = {"OMP_NUM_THREADS": "4", "MALLOC_TOP_PAD_": "0", "HOME": "/home/me"}
    assert child_environment(base).items() >= base.items()


def test_profile_makes_room_and_restricts_nothing():
    tree = ElementTree.parse(profile_path())
    tags = {element.tag.rpartition("}")[2]: element.text for element in tree.iter()}
    assert 32 << 20 <= int(tags["segment_size"] or 0) <= 64 << 20
    assert not {"interfaceWhiteList", "interfaces", "allowlist", "blocklist", "initialPeersList"} & set(tags)


def test_domains_are_those_ros_allows():
    assert all(1 <= free_domain() <= 99 for _ in range(20))


def test_raw_images_arrive_with_the_profile():
    from thinkjepa_ros.nodes.bench_transport import measure

    sent: list[int] = []
    row = measure(640, 480, "profile", frames=30, rate_hz=30.0, progress=sent.append)
    assert sent[-1] == 40  # ten to warm up
    assert row.delivered >= 27, f"{row.delivered} of {row.sent} raw images arrived"
    assert 0 < row.p50_ms <= row.p99_ms < 1000


def test_ros_can_not_start_is_said_in_a_sentence(monkeypatch):
    from thinkjepa_ros.nodes import bench_transport

    monkeypatch.setattr(
        bench_transport, "process_environment", lambda *args: {"PATH": "/nowhere", "ROS_DOMAIN_ID": "x"}
    )
    with pytest.raises(bench_transport.BenchError, match="the subscriber ended early"):
        bench_transport.measure(64, 48, "profile", 1, 30.0, print)
