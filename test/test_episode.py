"""The episode file: what is written comes back, and nothing malformed gets in."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from thinkjepa_ros.data.episode import JOINT_NAMES, Episode, EpisodeError, JpegFrames, list_episodes
from thinkjepa_ros.values import Camera


def make(n: int = 6, seed: int = 3) -> Episode:
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, 32)[None, :, None]
    images = [np.uint8(np.clip(ramp + 8 * i + rng.integers(0, 4, (24, 32, 3)), 0, 255)) for i in range(n)]
    pose = np.tile(np.eye(4), (n, 1, 1))
    angle = 0.3
    pose[:, :3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    pose[:, :3, 3] = (0.1, 0.2, 0.3)
    joints = rng.normal(size=(n, len(JOINT_NAMES), 3)).astype(np.float32)
    joints[1, 2] = np.nan
    states = rng.normal(size=(n, 7)).astype(np.float32)
    return Episode(
        frames=JpegFrames.encode(images),
        stamps_ns=np.arange(n, dtype=np.int64) * 33_333_333 + 10**9,
        camera=Camera(32, 24, 30.0, 30.0, 15.5, 11.5),
        camera_pose=pose,
        joints=joints,
        visible=rng.random((n, len(JOINT_NAMES))) > 0.5,
        states=states,
        actions=np.diff(states, axis=0),
        phases=np.minimum(np.arange(n), 6).astype(np.uint8),
        instruction="put the red cube in the left tray",
        split="lamp",
        seed=seed,
        intent={"cube": "red", "tray": "left", "class": 0},
        cue_ns=(10**9, 2 * 10**9),
        objects={"cube_red": rng.normal(size=(n, 3)).astype(np.float32)},
        details={"rate_hz": 30.0},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "lamp_0000003.h5"
    make().save(path)
    return path


def seal(path: Path) -> None:
    """Give a changed file a right checksum again, so that the checks behind the checksum are reached."""
    data = path.read_bytes()
    head = f"thinkjepa-episode 1 sha256 {hashlib.sha256(data[512:]).hexdigest()}\n".encode().ljust(512, b"\0")
    path.write_bytes(head + data[512:])


def test_round_trip(saved: Path) -> None:
    a, b = make(), Episode.load(saved)
    for name in ("stamps_ns", "camera_pose", "joints", "visible", "states", "actions", "phases"):
        assert np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name == "joints"), name
        assert getattr(a, name).dtype == getattr(b, name).dtype
    for name in ("camera", "instruction", "split", "seed", "intent", "cue_ns", "joint_names", "details", "domain"):
        assert getattr(a, name) == getattr(b, name), name
    assert np.array_equal(a.objects["cube_red"], b.objects["cube_red"])
    assert len(b.frames) == len(b) == 6
    for i in (0, 5, -1):
        assert np.array_equal(a.frames[i], b.frames[i])
    assert [f.shape for f in b.frames[1:3]] == [(24, 32, 3)] * 2
    assert b.phase(3) == "reach"
    with pytest.raises(IndexError, match="which has 6"):
        b.frames[6]


def test_images_come_back_as_rgb_close_to_what_was_put_in() -> None:
    image = np.zeros((48, 48, 3), np.uint8)
    image[:, :24] = (250, 20, 30)
    image[:, 24:] = (20, 40, 240)
    back = JpegFrames.encode([image])[0]
    assert np.abs(back.astype(int) - image).mean() < 3
    assert back[20, 5, 0] > 200 > 100 > back[20, 5, 2] and back[20, 40, 2] > 200


def test_points_in_camera(saved: Path) -> None:
    e = Episode.load(saved)
    world = np.concatenate([e.joints[4].astype(np.float64), np.ones((24, 1))], 1)
    expected = (np.linalg.inv(e.camera_pose[2]) @ world.T).T[:, :3]
    assert np.allclose(e.points_in_camera(4, 2), expected, atol=1e-5)
    several = e.points_in_camera(np.array([0, 4]), 2)
    assert several.shape == (2, 24, 3) and np.allclose(several[1], expected, atol=1e-5)
    assert np.isnan(e.joints_in_camera(1)[2]).all()


def test_save_is_atomic_and_deterministic(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = tmp_path / "again.h5"
    make().save(again)
    assert again.read_bytes() == saved.read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(h5py.Group, "create_dataset", full_disk)
    with pytest.raises(OSError, match="No space"):
        make(8).save(saved)
    assert saved.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.h5", "lamp_0000003.h5"]


def test_truncated_and_flipped_files_are_refused(saved: Path) -> None:
    data, rng = saved.read_bytes(), np.random.default_rng(0)
    for cut in [0, 1, 100, 511, 512, 600, len(data) - 1, *rng.integers(0, len(data), 40).tolist()]:
        saved.write_bytes(data[:cut])
        with pytest.raises(EpisodeError):
            Episode.load(saved)
    meaningful = len(data[:512].rstrip(b"\0"))  # the padding of the first block says nothing
    places = np.concatenate([np.arange(meaningful), rng.integers(512, len(data), 200)])
    for place in places.tolist():
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        saved.write_bytes(bytes(damaged))
        with pytest.raises(EpisodeError):
            Episode.load(saved)


@pytest.mark.parametrize(
    ("name", "words"),
    [(n, n) for n in ("stamps_ns", "joints", "visible", "states", "actions", "phases", "camera_pose", "jpeg")],
)
def test_missing_datasets_are_named(saved: Path, name: str, words: str) -> None:
    with h5py.File(saved, "r+") as file:
        del file[name]
    seal(saved)
    with pytest.raises(EpisodeError, match=f"lamp_0000003.h5.*'{words}' is missing"):
        Episode.load(saved)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("joints", np.zeros((6, 23, 3), np.float32)),
        ("joints", np.zeros((6, 24, 3), np.float64)),
        ("joints", np.full((6, 24, 3), np.inf, np.float32)),
        ("visible", np.zeros((6, 24), np.uint8)),
        ("stamps_ns", np.zeros(6, np.int64)),
        ("stamps_ns", np.arange(6, dtype=np.int64)[::-1].copy()),
        ("camera_pose", np.full((6, 4, 4), np.nan)),
        ("camera_pose", np.tile(2 * np.eye(4), (6, 1, 1))),
        ("states", np.zeros((5, 7), np.float32)),
        ("actions", np.full((5, 7), np.nan, np.float32)),
        ("phases", np.full(6, 99, np.uint8)),
        ("jpeg_offsets", np.arange(7, dtype=np.int64)),
        ("jpeg_offsets", np.arange(3, dtype=np.int64)),
        ("objects/cube_red", np.zeros((6, 2), np.float32)),
    ],
)
def test_wrong_arrays_are_refused(saved: Path, name: str, value: np.ndarray) -> None:
    with h5py.File(saved, "r+") as file:
        del file[name]
        file[name] = value
    seal(saved)
    with pytest.raises(EpisodeError, match=name.split("_")[0].split("/")[-1].replace("jpeg", "JPEG")):
        Episode.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"split": "nonsense"}, {"cue_ns": [5, 4]}, {"cue_ns": [5]}, {"cue_ns": 7}, {"intent": {"cube": "red"}},
        {"intent": "red"}, {"joint_names": ["a"] * 24}, {"joint_names": None}, {"camera": {}}, {"camera": None},
        {"instruction": 3}, {"seed": "x"}, {"details": []},
    ],
)  # fmt: skip
def test_wrong_description_is_refused(saved: Path, change: dict) -> None:
    with h5py.File(saved, "r+") as file:
        file.attrs["meta"] = json.dumps(json.loads(file.attrs["meta"]) | change)
    seal(saved)
    with pytest.raises(EpisodeError):
        Episode.load(saved)


def test_description_that_is_no_json(saved: Path) -> None:
    for value in ("{", "[]", "7", b"\xff\xfe"):
        with h5py.File(saved, "r+") as file:
            file.attrs["meta"] = value
        seal(saved)
        with pytest.raises(EpisodeError):
            Episode.load(saved)


def test_other_files_are_refused_with_words(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(EpisodeError, match="cannot be read"):
        Episode.load(tmp_path / "absent.h5")
    with pytest.raises(EpisodeError, match="cannot be read"):
        Episode.load(tmp_path)
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["joints"] = 1
    with pytest.raises(EpisodeError, match="not an episode file"):
        Episode.load(tmp_path / "plain.h5")
    saved.write_bytes(saved.read_bytes().replace(b"thinkjepa-episode 1", b"thinkjepa-episode 9", 1))
    with pytest.raises(EpisodeError, match="format 9"):
        Episode.load(saved)


def test_a_broken_image_is_reported_when_it_is_read() -> None:
    e = make()
    frames = JpegFrames.from_jpegs([e.frames.jpeg(0), b"not a jpeg"] + [e.frames.jpeg(i) for i in range(2, 6)], "x")
    e = replace(e, frames=frames)
    assert e.frames[0].shape == (24, 32, 3)
    with pytest.raises(EpisodeError, match="x: frame 1 cannot be decoded"):
        e.frames[1]


def test_list_episodes(tmp_path: Path, saved: Path) -> None:
    make().save(tmp_path / "text_0000001.h5")
    (tmp_path / ".lamp_0000009.h5.1.part").write_text("half")
    (tmp_path / "dataset.json").write_text("{}")
    assert [p.name for p in list_episodes(tmp_path)] == ["lamp_0000003.h5", "text_0000001.h5"]
    assert [p.name for p in list_episodes(tmp_path, "text")] == ["text_0000001.h5"]
    assert [p.name for p in list_episodes(tmp_path, limit=1)] == ["text_0000001.h5"], "the lowest seed, of any split"
    with pytest.raises(EpisodeError, match="thinkjepa data sim"):
        list_episodes(tmp_path / "absent")
