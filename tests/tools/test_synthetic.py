"""Tests of tools/synthetic.py: the same bytes from the same seed, the layout, and what happens to folders.

python -m pytest tests/tools/test_synthetic.py
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from tools import synthetic

NAME = re.compile(r"^(-1|\d{4})_c([1-6])s(\d)_(\d{6})_(\d{2})\.jpg$")
SMALL = {"num_train_ids": 4, "num_test_ids": 3, "num_distractors": 6, "num_junk": 3}
ONE = dict.fromkeys(SMALL, 1) | {"processes": 1}
VIDEO_NAME = re.compile(r"^(\d{4}|00-1)C([1-6])T(\d{4})F(\d{3})\.jpg$")
VIDEO_ONE = {"num_train_ids": 1, "num_test_ids": 1, "num_distractors": 0, "num_junk": 0, "processes": 1}


def digests(folder, pattern="*.jpg"):
    """{path below folder: hash of its bytes} of the files of this name."""
    files = [path for path in sorted(Path(folder).rglob(pattern)) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def parse(folder, split):
    """List of (path, pid, camera) by the naming rule of Market-1501; any other name fails."""
    rows = []
    for path in sorted((Path(folder) / "Market-1501-v15.09.15" / split).iterdir()):
        match = NAME.match(path.name)
        assert match, f"{path.name} is no name of Market-1501"
        rows.append((path, int(match[1]), int(match[2])))
    return rows


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "small"
    synthetic.write_dataset(folder, **SMALL, processes=1)
    return folder


def test_same_seed_gives_same_bytes_and_another_seed_other_ones(small, tmp_path):
    synthetic.write_dataset(tmp_path / "again", **SMALL, processes=1)
    synthetic.write_dataset(tmp_path / "other", **SMALL, processes=1, seed=1)
    first, other = digests(small), digests(tmp_path / "other")
    assert digests(tmp_path / "again") == first
    assert not set(first.values()) & set(other.values())


def test_there_are_no_more_processes_than_work_for_them(tmp_path, monkeypatch):
    class Pool:
        def __init__(self, processes, *_):
            started.append(processes)

        __enter__, __exit__ = (lambda self: self), (lambda self, *_: None)

        def map(self, _, tasks, chunksize):
            return map(str, tasks)

    started = []
    monkeypatch.setattr(synthetic, "ProcessPoolExecutor", Pool)
    for count in (100, 1000):
        assert len(list(synthetic.draw_files([None] * count, 16))) == count
    assert started == [7, 16]


def test_number_of_processes_changes_nothing(tmp_path):
    plan, _ = synthetic.plan_pictures(synthetic.plan_takes(2, 1, 90, 0, 0), 0)
    names, arguments = zip(*plan.items(), strict=True)
    assert len(names) >= 100  # else draw_files stays in this process
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        for split in synthetic.SPLITS:
            (folder / split).mkdir(parents=True)
        tasks = list(zip([folder / name for name in names], arguments, strict=True))
        assert sum(1 for _ in synthetic.draw_files(tasks, processes)) == len(names)
    assert len(digests(tmp_path / "1")) == len(names)
    assert digests(tmp_path / "1") == digests(tmp_path / "2")


def test_a_person_looks_the_same_in_a_smaller_set(small, tmp_path):
    synthetic.write_dataset(
        tmp_path / "part", num_train_ids=2, num_test_ids=2, num_distractors=2, num_junk=1, processes=1
    )
    part, whole = digests(tmp_path / "part"), digests(small)
    assert len(part) < len(whole)
    assert part.items() <= whole.items()


def test_global_random_state_is_neither_read_nor_changed(small):
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    pixels, _ = synthetic.draw_shot(0, 1, 0, 0)
    assert (np.random.get_state()[1] == before).all()
    np.random.seed(6)
    assert (synthetic.draw_shot(0, 1, 0, 0)[0] == pixels).all()


def test_files_are_rgb_jpegs_of_64_by_128(small):
    for path in sorted(small.rglob("*.jpg")):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 128)), path
            assert np.asarray(image).std() > 8, f"{path} is blank"


def test_layout_identities_and_cameras(small):
    train, query, gallery = (parse(small, split) for split in ("bounding_box_train", "query", "bounding_box_test"))
    train_pids, query_pids = ({pid for _, pid, _ in rows} for rows in (train, query))
    assert len(train_pids) == SMALL["num_train_ids"] and len(query_pids) == SMALL["num_test_ids"]
    assert not train_pids & query_pids
    assert {pid for _, pid, _ in gallery} == query_pids | {0, -1}
    assert sum(pid == 0 for _, pid, _ in gallery) == SMALL["num_distractors"]
    assert sum(pid == -1 for _, pid, _ in gallery) == SMALL["num_junk"]
    assert min(train_pids | query_pids) > 0
    assert "drawn by synthetic.py" in (small / "Market-1501-v15.09.15" / "readme.txt").read_text()


def test_default_set_can_be_trained_on_and_matched():
    """Checked on the plan alone: names, no two alike, cameras per person, a match for every query."""
    takes = synthetic.plan_takes(300, 100, 150, 50, 0)
    names = list(synthetic.plan_pictures(takes, 0)[0])
    assert len(names) == len(takes)
    assert len({(take.shown, take.camid, take.track) for take in takes}) == len(takes)  # nor one picture
    cameras = {split: defaultdict(list) for split in synthetic.SPLITS}
    for name in names:
        split, file = name.split("/")
        match = NAME.match(file)
        cameras[split][int(match[1])].append(int(match[2]))
    train, query, gallery = (cameras[split] for split in ("bounding_box_train", "query", "bounding_box_test"))
    assert len(train) == 300 and len(query) == 100
    assert all(2 <= len(set(seen)) <= 6 for seen in train.values())
    assert 300 <= sum(map(len, query.values())) <= 450
    assert 1000 <= sum(map(len, gallery.values())) <= 1500
    for pid, seen in query.items():
        assert len(set(seen)) == len(seen), f"two queries of person {pid} in one camera"
        for camera in seen:
            assert set(gallery[pid]) - {camera}, f"query of person {pid} in camera {camera} has no match"
    assert {camera for seen in query.values() for camera in seen} == {1, 2, 3, 4, 5, 6}


def test_person_differs_between_cameras_and_shots():
    pictures = [synthetic.draw_shot(0, 1, camid, shot)[0].astype(float) for camid in (0, 1) for shot in (0, 1)]
    for i, first in enumerate(pictures):
        for second in pictures[i + 1 :]:
            assert np.abs(first - second).mean() > 5


def test_other_cameras_show_the_same_people(tmp_path):
    sizes = {"num_train_ids": 4, "num_test_ids": 1, "num_distractors": 0, "num_junk": 0, "processes": 1}
    for name, seed in (("a", 0), ("b", 1)):
        synthetic.write_dataset(tmp_path / name, **sizes, camera_seed=seed)
    home, town = ([row[1:] for part in synthetic.SPLITS for row in parse(tmp_path / name, part)] for name in "ab")
    assert home == town  # who is seen by which camera, how often
    assert not set(digests(tmp_path / "a").values()) & set(digests(tmp_path / "b").values())
    cameras = [synthetic.camera_of(number) for number in range(60)]
    assert cameras[:6] == list(synthetic.CAMERAS) and len(set(cameras)) == 60
    assert synthetic.camera_of(17) is synthetic.camera_of(17)  # drawn once, and by its number alone
    synthetic.camera_of.cache_clear()
    assert synthetic.camera_of(17) == cameras[17]


def test_with_sites_a_camera_is_another_for_other_people():
    takes = synthetic.plan_takes(30, 9, 36, 20, 0)
    for sites, seed, met in ((1, 0, {0}), (2, 0, {0, 1}), (3, 2, {2000, 2001, 2002})):
        plan, _ = synthetic.plan_pictures(takes, 0, seed, sites)
        assert {arguments[3] // 6 for arguments in plan.values()} == met
        for name, (_, _, _, number, *_) in plan.items():
            assert NAME.match(Path(name).name)[2] == str(number % 6 + 1)
        numbers = {pid: number // 6 for _, _, pid, number, *_ in plan.values()}
        assert all(number // 6 == numbers[pid] for _, _, pid, number, *_ in plan.values())
        assert len({numbers[pid] for pid in (1, 3, 5)}) == 1  # they look alike: nobody tells them apart by the site
    video = synthetic.plan_takes(9, 3, 6, 3, 0, video=True)
    plan, _ = synthetic.plan_tracklets(video, 0, 1, 3)
    assert {arguments[3] // 6 for arguments in plan.values()} == {1000, 1001, 1002}


@pytest.mark.parametrize("flags, told", [(["--sites", "0"], "sites is 0: give 1 to 1000"),
                                         (["--camera-seed", "-1"], "negative number in .*'camera_seed': -1")])
def test_cameras_that_cannot_be(flags, told, tmp_path):
    with pytest.raises(SystemExit, match=told):
        synthetic.main([*flags, "--root", str(tmp_path)])


def test_lookalikes_wear_the_same_colours_and_are_not_the_same():
    members = [2 * index + 1 for index in range(synthetic.LOOKALIKES)]
    looks = [synthetic.random_look(0, pid) for pid in members]
    for look in looks[1:]:
        assert (look.top == looks[0].top).all() and (look.bottom == looks[0].bottom).all()
    assert len({(look.pattern, look.upper, look.lower, look.hair, look.bag) for look in looks}) == len(looks)


def test_finished_set_is_reused_and_another_size_replaces_it(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    files = synthetic.write_dataset(folder, **ONE)
    before = digests(folder)
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "draw_shot", None)  # drawing would fail
        assert synthetic.write_dataset(folder, **ONE) == files
    larger = synthetic.write_dataset(folder, **{**ONE, "num_distractors": 2})
    assert larger["bounding_box_test"] == files["bounding_box_test"] + 1
    assert before.items() < digests(folder).items()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_set_that_lost_files_is_drawn_again(tmp_path):
    synthetic.write_dataset(tmp_path / "set", **ONE)
    before = digests(tmp_path / "set")
    sorted((tmp_path / "set").rglob("*.jpg"))[0].unlink()
    synthetic.write_dataset(tmp_path / "set", **ONE)
    assert digests(tmp_path / "set") == before


def test_foreign_folder_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="photos.*not written by synthetic.py.*--name"):
        synthetic.write_dataset(folder, **SMALL)
    for flags in ([], ["--video"]):
        with pytest.raises(SystemExit, match="not written by synthetic.py"):
            synthetic.main([*flags, "--root", str(tmp_path), "--name", "photos"])
    assert [path.read_bytes() for path in folder.iterdir()] == [b"mine"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="file"):
        synthetic.write_dataset(tmp_path / "file", **SMALL)


@pytest.mark.parametrize("error", [RuntimeError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("older", [False, True])
def test_interruption_leaves_no_half_set(tmp_path, monkeypatch, error, older):
    folder = tmp_path / "set"
    if older:
        synthetic.write_dataset(folder, num_train_ids=1, num_test_ids=1, num_distractors=0, num_junk=0, processes=1)
    before = digests(tmp_path)
    draw_file, drawn = synthetic.draw_file, []

    def fail_after_three(task):
        if len(drawn) == 3:
            raise error
        drawn.append(task[0])
        draw_file(task)

    monkeypatch.setattr(synthetic, "draw_file", fail_after_three)
    with pytest.raises(type(error)):
        synthetic.write_dataset(folder, **SMALL, processes=1)
    assert len(drawn) == 3 and folder.exists() == older
    assert digests(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"] * older


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train-ids", "0"], "num_train_ids is 0: give 1 to 4999"),
        (["--test-ids", "5000"], "num_test_ids is 5000: give 1 to 4999"),
        (["--distractors", "1000000"], "num_distractors is 1000000: give 0 to 999999"),
        (["--video", "--distractors", "10000"], "num_distractors is 10000: give 0 to 9999,"),
        (["--video", "--junk", "-2"], "negative number .*'num_junk': -2.*give 0 or more"),
        (["--seed", "-1"], "negative number .*'seed': -1"),
    ],
)
def test_impossible_numbers_are_refused(tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr(synthetic, "plan_takes", None)  # refused before anything is planned
    with pytest.raises(SystemExit, match=message):
        synthetic.main(["--root", str(tmp_path), *flags])
    assert not any(tmp_path.iterdir())


def test_command_says_where_the_files_are(tmp_path, capsys):
    sizes = ["--train-ids", "1", "--test-ids", "1", "--distractors", "1", "--junk", "1"]
    synthetic.main(["--root", str(tmp_path), "--name", "tiny", *sizes])
    stamp = json.loads((tmp_path / "tiny" / "synthetic.json").read_text())
    assert stamp["parameters"]["seed"] == 0
    assert f"{stamp['files']['query']} in query" in capsys.readouterr().out


@pytest.fixture(scope="module")
def video(video_root):
    return video_root / "synthetic-video"


def read_tracklets(folder, part):
    """(lines of PART_name.txt, rows of tracks_PART_info.mat), both read without tools/synthetic.py."""
    content = (folder / "info" / f"{part}_name.txt").read_bytes()
    assert content.endswith(b"\r\n") and content.count(b"\n") == content.count(b"\r\n") == content.count(b"\r")
    rows = loadmat(folder / "info" / f"tracks_{part}_info.mat")[f"track_{part}_info"]
    assert rows.dtype == np.int32 and rows.shape[1] == 4
    return content.decode().split("\r\n")[:-1], rows


@pytest.mark.parametrize("part", ["train", "test"])
def test_video_rows_tile_the_name_file_and_every_name_is_a_file(video, part):
    names, rows = read_tracklets(video, part)
    assert names == [path.name for path in sorted((video / f"bbox_{part}").rglob("*.jpg"))]
    assert all((video / f"bbox_{part}" / name[:4] / name).is_file() for name in names)
    assert rows[0, 0] == 1 and rows[-1, 1] == len(names)
    assert (rows[1:, 0] == rows[:-1, 1] + 1).all() and (rows[:, 1] > rows[:, 0]).all()
    seen = set()
    for start, end, pid, camera in rows:
        matches = [VIDEO_NAME.match(name) for name in names[start - 1 : end]]
        ((label, shown, number),) = {match.group(1, 2, 3) for match in matches}  # one tracklet per row
        assert (int(label.replace("00-1", "-1")), int(shown)) == (pid, camera)
        assert [int(match[4]) for match in matches] == list(range(1, end - start + 2))
        seen.add((label, shown, number))
    assert len(seen) == len(rows)


def test_video_identities_and_queries(video):
    (_, train), (_, test) = (read_tracklets(video, part) for part in ("train", "test"))
    index = loadmat(video / "info" / "query_IDX.mat")["query_IDX"]
    assert index.shape[0] == 1 and len(set(index[0])) == index.shape[1]
    query = test[index[0].astype(int) - 1]
    gallery = np.delete(test, index[0].astype(int) - 1, axis=0)
    assert set(train[:, 2]) == {1, 3, 5} and set(query[:, 2]) == {2, 4, 6}
    assert len({(pid, camera) for _, _, pid, camera in query}) == len(query)
    assert (gallery[:, 2] == 0).sum() == 3 and (gallery[:, 2] == -1).sum() == 2
    for _, _, pid, camera in query:
        others = set(gallery[gallery[:, 2] == pid, 3]) - {camera}
        assert bool(others) == (pid != 6), f"query of person {pid} in camera {camera}"  # person 6 is seen once


def test_video_files_are_small_jpegs(video):
    for path in sorted(video.rglob("*.jpg")):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 128)), path
    assert "drawn by synthetic.py" in (video / "readme.txt").read_text()


def test_video_default_set():
    """Checked on the plan alone."""
    takes = synthetic.plan_takes(100, 50, 30, 10, 0, video=True)
    plan, _ = synthetic.plan_tracklets(takes, 0)
    assert 8000 <= len(plan) <= 10000
    lengths = list(Counter(name.partition("F")[0] for name in plan).values())  # up to the number of the frame
    assert len(lengths) == len(takes)  # no two have one name
    assert len({(take.shown, take.camid, take.track) for take in takes}) == len(takes)  # nor one picture
    assert min(lengths) == 2 and 20 < max(lengths) <= 40 and 5 <= np.median(lengths) <= 12
    cameras = defaultdict(set)
    for take in takes:
        if take.pid > 0:
            cameras[take.pid].add(take.camid)
    alone = {pid for pid, seen in cameras.items() if len(seen) == 1}
    assert len(cameras) == 150 and len(alone) == 2
    assert {take.pid for take in takes if take.part == "query"} == set(range(2, 101, 2))
    assert not {take.pid for take in takes if take.part == "gallery"} & alone
    train = [(take.pid, take.camid) for take in takes if take.part == "train"]
    assert 0.2 * len(train) < len(train) - len(set(train))  # several tracklets of a person in a camera


def test_video_same_bytes_in_a_smaller_set_from_any_number_of_processes(video, tmp_path):
    sizes = {"num_train_ids": 2, "num_test_ids": 2, "num_distractors": 0, "num_junk": 0}
    synthetic.write_video_dataset(tmp_path / "part", **sizes, processes=2)
    part = digests(tmp_path / "part")
    assert len(part) >= 100  # else draw_files stays in this process
    assert part.items() < digests(video).items()
    for path in sorted((video / "info").glob("*.mat")):
        assert b"Created" not in path.read_bytes()  # as scipy writes them, they hold the time of day


def test_video_of_another_seed_shares_no_picture(video, tmp_path):
    synthetic.write_video_dataset(tmp_path / "other", **VIDEO_ONE, seed=1)
    other = digests(tmp_path / "other")
    assert other and not set(other.values()) & set(digests(video).values())


def test_video_neighbouring_frames_differ_and_resemble_each_other(video):
    """Mean absolute difference of the pixels: no neighbours are copies, they are closer than frames 8 apart, and both
    closer than two persons in one camera."""
    names, rows = read_tracklets(video, "train")
    tracks = []
    for start, end, _, _ in rows:
        paths = [video / "bbox_train" / name[:4] / name for name in names[start - 1 : end]]
        tracks.append([np.asarray(Image.open(path)).astype(float) for path in paths])
    near = [np.abs(a - b).mean() for track in tracks for a, b in zip(track, track[1:], strict=False)]
    apart = [np.abs(a - b).mean() for track in tracks for a, b in zip(track, track[8:], strict=False)]
    strangers = [
        np.abs(first[0] - second[0]).mean()
        for first, (_, _, pid, camera) in zip(tracks, rows, strict=True)
        for second, (_, _, other, where) in zip(tracks, rows, strict=True)
        if pid < other and camera == where
    ]
    assert min(near) > 1 and len(apart) > 10 and len(strangers) > 5
    assert 1.5 * np.median(near) < np.median(apart) < np.median(strangers)
    assert 2 * np.median(near) < np.median(strangers)


def test_video_person_walks(monkeypatch):
    """The pose of the person that is drawn, frame by frame: steps at an even pace, turns slowly, moves in the box."""
    drawn = []
    monkeypatch.setattr(synthetic, "paint_person", lambda *arguments, **at: drawn.append((*arguments, at)))
    poses, places = [], []
    for frame in range(12):
        drawn.clear()
        synthetic.draw_frame(0, 1, 1, 0, frame)
        poses.append(drawn[0][2])
        places.append([*drawn[0][4]["feet"], drawn[0][4]["size"]])
    steps = np.diff([pose.phase for pose in poses])
    assert np.allclose(steps, steps[0]) and 0.25 <= steps[0] <= 0.45
    turns = np.diff([pose.yaw for pose in poses])
    assert 0 < np.abs(turns).max() < 0.15
    assert len({(pose.stride, pose.lift, pose.lifted, pose.splay) for pose in poses}) == 1
    assert (np.ptp(places, axis=0) > 0.5).all()


def test_video_something_passes_in_front(monkeypatch):
    """An obstacle comes at an even pace from one side and leaves on the other, and remains what it is."""
    passes = defaultdict(list)
    monkeypatch.setattr(
        synthetic,
        "paint_obstacle",
        lambda canvas, seed, camera, rng, feet, size, shift: passes[track].append((shift, rng.random())),
    )
    for track in range(8):
        for frame in range(0, 40, 2):
            synthetic.draw_frame(0, 1, 0, track, frame)
    assert 1 <= len(passes) < 8
    for met in passes.values():
        shifts, first_numbers = zip(*met, strict=True)
        assert np.allclose(np.diff(shifts), np.diff(shifts)[0]) and len(set(first_numbers)) == 1
    assert any(min(met)[0] < 0 < max(met)[0] for met in passes.values())


def test_video_command(tmp_path, capsys):
    sizes = ["--train-ids", "1", "--test-ids", "1", "--distractors", "0", "--junk", "0"]
    synthetic.main(["--video", "--root", str(tmp_path), *sizes])
    folder = tmp_path / "synthetic-video"
    stamp = json.loads((folder / "synthetic.json").read_text())
    said = [f"{count} in {part}" for part, count in stamp["files"].items()]
    assert said[2] == "5 in info" and f"{folder}: {', '.join(said)}" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["synthetic-video"]
    before = digests(folder, "*")
    (folder / "info" / "query_IDX.mat").unlink()
    synthetic.main(["--video", "--root", str(tmp_path), *sizes])
    assert digests(folder, "*") == before
    synthetic.main(["--root", str(tmp_path), "--name", "synthetic-video", *sizes])  # pictures, the same numbers
    assert sorted(path.name for path in folder.iterdir()) == [synthetic.VERSION_FOLDER, "synthetic.json"]
