"""Tests of synthetic.py: the same bytes from the same seed, the layout, and what happens to folders.

python -m pytest tests/test_synthetic.py
"""

import hashlib
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import synthetic

NAME = re.compile(r"^(-1|\d{4})_c([1-6])s(\d)_(\d{6})_(\d{2})\.jpg$")
SMALL = {"num_train_ids": 4, "num_test_ids": 3, "num_distractors": 6, "num_junk": 3}


def digests(folder):
    """{path below folder: hash of its bytes} of the JPEG files."""
    files = sorted(Path(folder).rglob("*.jpg"))
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


def test_number_of_processes_changes_nothing(tmp_path):
    names, arguments = zip(*synthetic.plan_dataset(2, 1, 90, 0, 0), strict=True)
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
    plan = synthetic.plan_dataset(300, 100, 150, 50, 0)
    names = [name for name, _ in plan]
    assert len(set(names)) == len(names)
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


def test_lookalikes_wear_the_same_colours_and_are_not_the_same():
    members = [2 * index + 1 for index in range(synthetic.LOOKALIKES)]
    looks = [synthetic.random_look(0, pid) for pid in members]
    for look in looks[1:]:
        assert (look.top == looks[0].top).all() and (look.bottom == looks[0].bottom).all()
    assert len({(look.pattern, look.upper, look.lower, look.hair, look.bag) for look in looks}) == len(looks)


def test_finished_set_is_reused_and_another_size_replaces_it(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    sizes = {"num_train_ids": 1, "num_test_ids": 1, "num_distractors": 1, "num_junk": 1, "processes": 1}
    files = synthetic.write_dataset(folder, **sizes)
    before = digests(folder)
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "draw_shot", None)  # drawing would fail
        assert synthetic.write_dataset(folder, **sizes) == files
    larger = synthetic.write_dataset(folder, **{**sizes, "num_distractors": 2})
    assert larger["bounding_box_test"] == files["bounding_box_test"] + 1
    assert before.items() < digests(folder).items()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_set_that_lost_files_is_drawn_again(tmp_path):
    sizes = {"num_train_ids": 1, "num_test_ids": 1, "num_distractors": 1, "num_junk": 1, "processes": 1}
    synthetic.write_dataset(tmp_path / "set", **sizes)
    before = digests(tmp_path / "set")
    sorted((tmp_path / "set").rglob("*.jpg"))[0].unlink()
    synthetic.write_dataset(tmp_path / "set", **sizes)
    assert digests(tmp_path / "set") == before


def test_foreign_folder_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="photos.*not written by synthetic.py.*--name"):
        synthetic.write_dataset(folder, **SMALL)
    with pytest.raises(SystemExit, match="not written by synthetic.py"):
        synthetic.main(["--root", str(tmp_path), "--name", "photos"])
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


@pytest.mark.parametrize("sizes", [{"num_train_ids": 0}, {"num_test_ids": 5000}, {"seed": -1}, {"num_junk": -2}])
def test_impossible_sizes_are_refused(tmp_path, sizes):
    ((name, value),) = sizes.items()
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        synthetic.write_dataset(tmp_path / "set", **sizes)
    assert not any(tmp_path.iterdir())


def test_command_says_where_the_files_are(tmp_path, capsys):
    sizes = ["--train-ids", "1", "--test-ids", "1", "--distractors", "1", "--junk", "1"]
    synthetic.main(["--root", str(tmp_path), "--name", "tiny", *sizes])
    stamp = json.loads((tmp_path / "tiny" / "synthetic.json").read_text())
    assert stamp["parameters"]["seed"] == 0
    assert f"{stamp['files']['query']} in query" in capsys.readouterr().out
