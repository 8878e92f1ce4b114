"""Tests of tools/benchmark/measure.py: turns, medians, memory and the table.

python -m pytest tests/tools/benchmark/test_measure.py
"""

import math
import sys
import threading
import time

import numpy as np
import pytest
import torch

from tools.benchmark import measure

CPU = torch.device("cpu")


def test_medians_takes_turns_and_leaves_the_first_call_out():
    calls = []
    seconds = measure.medians([lambda: calls.append("a"), lambda: calls.append("b")], CPU, rounds=3)
    assert calls == ["a", "b"] * 4 and len(seconds) == 2
    pauses = iter([0.2, 0, 0])
    assert measure.medians([lambda: time.sleep(next(pauses))], CPU, rounds=1) < [0.1]
    assert measure.medians([lambda: time.sleep(next(pauses))], CPU, rounds=1, warm_up=0) < [0.1]


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="anonymous memory is told by Linux alone")


@linux
def test_the_memory_of_an_array_is_seen_after_it_is_gone():
    def work():
        array = np.ones(25_000_000)  # 200 MB, freed before the function returns
        time.sleep(0.1)
        return array[::1000].sum()

    run = measure.watch(work, CPU)
    assert run.result == 25_000 and run.seconds > 0
    assert 190e6 < run.anonymous < 230e6


@linux
def test_the_memory_of_a_mapped_file_and_of_what_was_there_before_is_not_counted(tmp_path):
    np.ones(25_000_000).tofile(tmp_path / "a")
    before = np.ones(25_000_000)
    mapped = np.memmap(tmp_path / "a", np.float64, "r")
    run = measure.watch(lambda: mapped.sum() + before.sum(), CPU)
    assert run.result == 50_000_000
    assert -20e6 < run.anonymous < 20e6


def test_memory_that_is_not_measured_is_said_to_be_so(monkeypatch, capsys):
    monkeypatch.setattr(measure, "anonymous_memory", lambda: math.nan)
    runs = measure.compare(CPU, {"first": lambda: 1, "second": lambda: 2, "third": lambda: 3}, rounds=2)
    assert [run.result for run in runs.values()] == [1, 2, 3]
    assert capsys.readouterr().out.count("not measured") == 3


def test_a_sampler_ends_with_a_function_that_fails():
    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        measure.watch(lambda: 1 // 0, CPU)
    assert threading.active_count() == threads


def test_ratios_are_those_of_the_medians(monkeypatch, capsys):
    monkeypatch.setattr(measure, "take_turns", lambda functions, *args: [[0.5, 0.1, 9.0], [2.0]])
    functions = {"ours": lambda: 1, "theirs": lambda: 2}
    measure.compare(CPU, functions, remark=lambda run, first: f"{run.result}/{first.result}")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    shown = [(words[0], words[1], words[3], words[-1]) for words in lines]
    assert shown == [("ours", "0.500", "1.00", "1/1"), ("theirs", "2.000", "4.00", "2/1")]


def test_some_are_called_once_and_their_time_is_that_of_the_call(capsys):
    calls = []
    functions = {"often": lambda: calls.append("often"), "once": lambda: calls.append("once") or time.sleep(0.1)}
    runs = measure.compare(CPU, functions, ["once", "of no name here"], rounds=3, remark=measure.per_second(8))
    assert calls == ["often", "once", "often", "often", "often"]
    assert len(runs["often"].times) == 3 and len(runs["once"].times) == 1 and 0.1 <= runs["once"].seconds
    assert f"{8 / runs['once'].seconds:.1f} images/s" in capsys.readouterr().out
