"""Tests of tools/weights.py, and of the weights that this repository ships.

python -m pytest tests/tools/test_weights.py
"""

import pytest
import torch
from conftest import run_main

import models
from tools import weights

SHIPPED = models.SHIPPED["synthetic"]


def test_it_draws_trains_and_writes_a_small_file(tmp_path, capsys):
    out, root = tmp_path / "new" / "w.pth", tmp_path / "work"
    flags = ["--arch", "osnet_x0_25", "--options", "input_size=64,32", "--epochs", "1", "--batch-size", "8"]
    given = ["--out", str(out), "--root", str(root), "--train-ids", "4", "--sites", "2", "--", *flags]
    with pytest.MonkeyPatch.context() as patch:
        write_dataset = weights.synthetic.write_dataset
        patch.setattr(weights.synthetic, "write_dataset",
                      lambda folder, **numbers: write_dataset(folder, **numbers | {"num_test_ids": 2}))  # fmt: skip
        assert weights.main(given) == 0
    assert f"{out}: " in capsys.readouterr().out
    stored, trained = models.read_checkpoint(out), models.read_checkpoint(root / "1" / "run" / "best.pth")
    assert stored["dataset"] == "8 drawn people of 4 sites" and "args" not in stored and "optimizer" not in stored
    model, info = models.load_checkpoint(out)
    assert info["arch"] == "osnet_x0_25" and model.input_size == (64, 32)
    for name, value in model.state_dict().items():
        if "classifier" not in name:
            torch.testing.assert_close(value, trained["model"][name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "flags, told",
    [(["--sites", "0"], "sites is 0"), (["--train-ids", "0"], "num_train_ids is 0"), (["--passes", "0"], "2")],
)
def test_sizes_that_cannot_be(flags, told, tmp_path):
    with pytest.raises(SystemExit, match=told):
        weights.main([*flags, "--out", str(tmp_path / "w.pth"), "--root", str(tmp_path)])


def test_the_shipped_weights_are_small_and_load_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # from anywhere
    assert SHIPPED.stat().st_size < 7e6
    model, info = models.load_checkpoint("synthetic")
    assert "drawn people" in info["dataset"]
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_the_shipped_weights_tell_people_apart(drawn_root, capsys):
    flags = ["--evaluate", "--weights", "synthetic", "--dataset", "synthetic", "--root", drawn_root, "--device", "cpu"]
    code, printed, err = run_main(capsys, *flags)
    assert code == 0, err
    rank1 = float(printed.split("rank-1")[1].split()[0])
    assert rank1 > 60  # of four people whom they have not seen, under cameras they have not seen


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"a": torch.ones(1)}}, "synthetic")
    assert list(models.read_checkpoint("synthetic")["model"]) == ["a"]
