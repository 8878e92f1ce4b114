"""Tests of benchmark.py: what it compares with gives the same results, its memory is measured, its commands run.

python -m pytest tests/tools/test_benchmark.py
"""

import math
import re
import shutil
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import torch

import metrics
import models
from tools import benchmark

CPU = torch.device("cpu")


def test_the_plain_network_is_the_same_network():
    torch.manual_seed(0)
    ours, plain = models.build_model("hacnn", 5).eval(), benchmark.LoopedHACNN(5).eval()
    for attention in (ours.ha1, ours.ha2, ours.ha3):  # regions off their starting places, some partly outside
        torch.nn.init.normal_(attention.hard_attn.fc.weight, std=0.3)
    plain.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 160, 64)
    with torch.inference_mode():
        assert torch.allclose(ours(images), plain(images), atol=1e-5)


def test_the_usual_ranking_gives_the_same_scores():
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((n, 8)).astype(np.float32) for n in (20, 60)]
    pids, camids = [rng.integers(6, size=n) for n in (20, 60)], [rng.integers(3, size=n) for n in (20, 60)]
    rank1, mean_ap = benchmark.argsort_and_loop(*features, *pids, *camids)
    scores = metrics.evaluate(*features, *pids, *camids, distance="euclidean")
    assert scores["cmc"][0].item() == pytest.approx(rank1, abs=1e-6)
    assert scores["mAP"] == pytest.approx(mean_ap, abs=1e-6)


def test_search_is_measured_beside_reading_and_multiplying(capsys, monkeypatch):
    turns, medians = [], benchmark.medians

    def watched(sides, *rest):  # what is measured, and what it gives
        turns.append((sides[0].args[0], np.array(sides[0].args[1]), sides[1]()))
        return medians(sides, *rest)

    monkeypatch.setattr(benchmark, "medians", watched)
    ratios = benchmark.measure_search(CPU, size=5000, dim=16, queries=5, top=3, rounds=1)
    assert list(ratios) == [1, 5] and all(ratio > 0 for ratio in ratios.values())
    printed = capsys.readouterr().out
    assert "1 query: " in printed and "5 queries: " in printed and "bare product" in printed
    (_, features, read), (asked, _, product) = turns
    assert read == pytest.approx(features.sum(dtype=np.float64), rel=1e-3)  # all of it was read
    assert np.allclose(product, asked @ features.T, atol=1e-4)


def test_wrong_answers_are_noticed():
    features = np.eye(4, dtype=np.float32)
    asked = np.array([[4, 3, 2, 1]], np.float32)
    benchmark.check_answers(np.array([[0, 1]]), asked, features)
    with pytest.raises(ValueError, match="does not give the best"):
        benchmark.check_answers(np.array([[0, 2]]), asked, features)


def test_medians_takes_turns_and_leaves_the_first_call_out():
    calls = []
    seconds = benchmark.medians([lambda: calls.append("a"), lambda: calls.append("b")], CPU, rounds=3)
    assert calls == ["a", "b"] * 4 and len(seconds) == 2
    pauses = iter([0.2, 0, 0])
    assert benchmark.medians([lambda: time.sleep(next(pauses))], CPU, rounds=1) < [0.1]
    assert benchmark.medians([lambda: time.sleep(next(pauses))], CPU, rounds=1, warm_up=0) < [0.1]


def small(name, num_ids):
    """A light network at a size that is quick."""
    return build(name, num_ids, input_size=(32, 16))


build = models.build_model  # the tests below put others in its place


class Tiny(torch.nn.Conv2d):
    """(B, 3, 32, 16) -> (B, num_ids), which fails where `fails` says so."""

    input_size, fails = (32, 16), staticmethod(lambda: False)

    def forward(self, x):
        if self.fails():
            raise RuntimeError("no kernel for it\nsecond line")
        feature = super().forward(x).mean(dim=(2, 3))
        return ([feature], [feature]) if self.training else feature


def test_the_variants_give_the_same_features_and_differ_as_named():
    torch.manual_seed(0)
    model = small("osnet_x0_25", 5)
    variants = benchmark.variants_of(model, 3, CPU)
    assert list(variants) == ["fp32", "bf16", "fp32 cl", "bf16 cl"]
    features = {name: benchmark.extraction(*parts)() for name, parts in variants.items()}
    with torch.inference_mode():
        plain = model.eval()(variants["fp32"][1])
    assert plain.shape == (3, model.feature_dim) and plain.std(dim=0).mean() > 1e-5  # images differ
    scale = plain.abs().max()
    assert torch.equal(features["fp32"], plain) and features["fp32 cl"].dtype == torch.float32
    assert (features["fp32 cl"] - plain).abs().max() < 1e-5 * scale
    for name in ("bf16", "bf16 cl"):  # 8 bits, over some 20 layers
        gap = (features[name].float() - plain).abs().max() / scale
        assert 1e-4 < gap < 3e-2
    for name, (network, images, _) in variants.items():
        kernel = next(p for p in network.parameters() if p.dim() == 4)
        for tensor in (images, kernel):
            assert tensor.is_contiguous(memory_format=torch.channels_last) == ("cl" in name)


def test_training_steps_bring_the_loss_down():
    torch.manual_seed(0)
    network, images, bf16 = benchmark.variants_of(small("osnet_x0_25", 3).eval(), 6, CPU)["bf16 cl"]
    labels = torch.arange(6) % 3

    def loss():
        return torch.nn.functional.cross_entropy(network.train()(images)[0][0], labels).item()

    before, step = loss(), benchmark.training_step(network.eval(), images, bf16, labels)
    for _ in range(4):
        step()
    assert loss() < 0.9 * before


def test_networks_table_and_that_each_network_is_freed_before_the_next(monkeypatch, capsys):
    built, alive = [], []

    def record(name, num_ids):
        gone = [one() for one in built if one() is not None and one().out_channels == 751]
        alive.append(len(gone))
        del gone
        model = Tiny(3, num_ids, 3)
        model.itself = [model]  # a cycle, as in networks with hooks: counting references does not free it
        built.append(weakref.ref(model))
        return model

    monkeypatch.setattr(models, "build_model", record)
    names = ["osnet_x0_5", "osnet_x0_25", "osnet_x0_5"]  # measured once
    found = benchmark.measure_networks(CPU, names, 2, rounds=1)
    assert list(found) == names[:2] and alive == [0, 0, 0, 0]
    for rows in found.values():
        assert list(rows) == ["extraction", "training"]
        for row in rows.values():
            assert list(row) == list(benchmark.VARIANTS[:4]) and all(rate > 0 for rate in row.values())
    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines[0].split() == "name input params GMAC fp32 bf16 fp32 cl bf16 cl".split()
    for line, (name, what) in zip(lines[1:], [(n, w) for n in names[:2] for w in found[n]], strict=True):
        row = found[name][what]
        best = max(row.values())
        assert line.split()[-4:] == [f"{rate:.1f}{'*' if rate == best else ''}" for rate in row.values()]
        assert line.startswith(name) == (what == "extraction") and what in line
    # 751 kernels of 3 x 3 x 3 and a bias; 30 x 14 places
    assert lines[1].split()[1:6] == ["32", "x", "16", f"{751 * 28 / 1e6:.2f}", f"{751 * 27 * 30 * 14 / 1e9:.3f}"]


def test_a_rate_is_images_by_the_median(monkeypatch):
    monkeypatch.setattr(benchmark, "medians", lambda functions, device, rounds, warm_up: [0.5 for _ in functions])
    assert benchmark.rates({"a": lambda: 1, "b": lambda: 1 // 0}, 8, CPU, 3) == {
        "a": 16.0, "b": "ZeroDivisionError: integer division or modulo by zero",
    }


@pytest.mark.parametrize("always", [False, True])
def test_a_variant_that_fails_is_reported_in_its_cell(always, monkeypatch, capsys):
    monkeypatch.setattr(Tiny, "fails", staticmethod(lambda: always or torch.is_autocast_enabled("cpu")))
    monkeypatch.setattr(models, "build_model", lambda name, num_ids: Tiny(3, num_ids, 3))
    monkeypatch.setattr(models, "count_macs", lambda model: (10**6, 0))
    found = benchmark.measure_networks(CPU, ["one", "two"], 2, rounds=1)
    failing = [name for name in benchmark.VARIANTS[:4] if always or "bf16" in name]
    for name in ("one", "two"):
        for row in found[name].values():
            assert [v for v, rate in row.items() if rate == "RuntimeError: no kernel for it"] == failing
            assert all(rate > 0 for variant, rate in row.items() if variant not in failing)
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if "extraction" in line or "training" in line[:60].split()]
    assert len(rows) == 4
    for row in rows:
        cells = dict(zip(benchmark.VARIANTS[:4], row[-4:], strict=True))
        assert [variant for variant, cell in cells.items() if cell == "failed"] == failing
        assert sum(cell.endswith("*") for cell in cells.values()) == (not always)
    for variant in failing:
        assert lines.count(f"    {variant}: RuntimeError: no kernel for it") == 4


def test_compiled_variants_for_those_asked_for_alone(monkeypatch, capsys):
    compiled, resets = [], []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network.conv5.conv.out_channels) or network)
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    monkeypatch.setattr(models, "build_model", small)
    monkeypatch.setattr(benchmark, "rates", lambda functions, *args: dict.fromkeys(functions, 1.0))
    found = benchmark.measure_networks(CPU, ["osnet_x0_5"], 2, ["osnet_x0_25"], rounds=1)
    assert compiled == [128] and len(resets) == 1
    assert [len(row) for rows in found.values() for row in rows.values()] == [4, 4, 6, 6]
    assert list(found["osnet_x0_25"]["training"]) == list(benchmark.VARIANTS)
    assert "bf16 comp" in capsys.readouterr().out


def test_a_network_that_does_not_exist(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "measure_network", lambda *a: pytest.fail("measured"))
    assert benchmark.main(["networks", "osnet_x0_25", "osnet_x1", "--device", "cpu"]) == 1
    assert "no architecture 'osnet_x1'; did you mean 'osnet_x1_0'" in capsys.readouterr().err


def test_the_stopwatch_counts_what_the_network_takes_and_undoes_itself(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))  # each look at it a second later
    model, criterion = torch.nn.Linear(2, 1), torch.nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    backward, step = torch.Tensor.backward, optimizer.step
    with benchmark.Stopwatch(model, criterion, [optimizer]) as watched:
        criterion(model(torch.ones(3, 2)), torch.ones(3, 1)).backward()
        optimizer.step()
        sum(torch.ones(3))  # no part of it
    assert watched.seconds == 4  # forward, loss, backward, step: one second each
    assert torch.Tensor.backward is backward and optimizer.step == step
    model(torch.ones(3, 2))
    assert watched.seconds == 4


def test_training_tells_the_share_that_is_not_the_network(drawn_root, capsys, monkeypatch):
    augment = benchmark.loader.augment

    def slow(*given):
        time.sleep(0.5)
        return augment(*given)

    flags = ["training", "--dataset", "synthetic", "--root", str(drawn_root), "--arch", "osnet_x0_25"]
    shares = []
    for function in (augment, slow):
        monkeypatch.setattr(benchmark.loader, "augment", function)
        assert benchmark.main([*flags, "--batch-size", "4", "--steps", "2", "--amp", "off", "--device", "cpu"]) == 0
        printed = capsys.readouterr().out
        assert "an epoch of synthetic, 8 images, osnet_x0_25, batch 4, off" in printed
        shares.append(float(re.search(r"([\d.]+) % of it outside", printed)[1]))
    assert shares[0] < 40 < shares[1]


def test_devices_trains_scores_and_saves_through_both_wrappers(capsys):
    assert benchmark.main(["devices", "--device", "cpu", "--arch", "osnet_x0_25"]) == 0
    printed = capsys.readouterr().out
    assert "nn.DataParallel over 1 devices: features of the file differ by 0.0e+00, 0 names with module." in printed
    assert "torchrun, 1 processes:" in printed and "finished:" in printed


def test_the_light_networks_are_of_the_table():
    light = {"hacnn", "osnet_x1_0", "osnet_x0_25", "resnet18", "mobilenet_v2", "shufflenet_v2_x1_0", "squeezenet1_1"}
    assert light < set(benchmark.LIGHT) < set(models.MODELS) - {"resnet50", "densenet121", "mudeep"}


def fake_peer(folder, text):
    (folder / "peer.py").write_text(text)
    return str(folder / "peer.py")


RANK_PEER = """
import warnings
import numpy as np

warnings.warn("not compiled")

def eval_market1501(distmat, q_pids, g_pids, q_camids, g_camids, max_rank):
    cmc, precisions = np.zeros(max_rank), []
    for row, distances in enumerate(distmat):
        found, seen, total = 0, 0, 0.0
        for item in np.argsort(distances):
            if g_pids[item] == q_pids[row] and g_camids[item] == q_camids[row]:
                continue
            seen += 1
            if g_pids[item] == q_pids[row]:
                found += 1
                total += found / seen
                if found == 1:
                    cmc[seen - 1:] += 1
        if found:
            precisions.append(total / found)
    return cmc / len(precisions), np.mean(precisions)
"""


def test_ranking_gives_the_same_scores_on_all_sides(tmp_path, capsys, recwarn):
    path = fake_peer(tmp_path, RANK_PEER)
    runs = benchmark.measure_ranking(CPU, (20, 60), dim=8, ids=6, peer_rank=path)
    ours, _, *others = [run.result for run in runs.values()]
    assert 0 < ours[0] < 1 and 0 < ours[1] < 1 and len(others) == 2 and not recwarn.list
    for rank1, mean_ap in others:
        assert (np.ravel(rank1)[0], mean_ap) == pytest.approx(ours, abs=1e-6)
    lines = capsys.readouterr().out.splitlines()
    assert len({line.partition("rank-1")[2] for line in lines if "rank-1" in line}) == 1  # shown as they are


def test_distractors_give_the_scores_of_the_usual_way_on_the_whole_gallery(monkeypatch):
    galleries, write = [], benchmark.write_gallery
    monkeypatch.setattr(benchmark, "write_gallery", lambda *a: galleries.append(write(*a)) or galleries[0])
    runs = benchmark.measure_distractors(CPU, (20, 60), distractors=(0, 40, 5000), dim=8, ids=6, rounds=1)
    (query, gallery), pids, camids = benchmark.draw(20, 60, 8, 6)
    mapped = galleries[0]
    assert isinstance(mapped, np.memmap) and np.array_equal(mapped[:60], gallery)
    results = [run.result for run in runs.values() if run.result is not None]
    distractors = np.array(mapped[60:])
    assert len(np.unique(distractors, axis=0)) == 5000 and min(pids[0]) > 0
    assert distractors.std() == pytest.approx(gallery.std(), rel=0.05)
    for number, result in zip((0, 40, 5000), results, strict=True):
        longer = np.concatenate([gallery, distractors[:number]])
        g_pids, g_camids = (np.append(ids[1], np.zeros(number, int)) for ids in (pids, camids))
        expected = benchmark.argsort_and_loop(query, longer, pids[0], g_pids, camids[0], g_camids)
        assert result == pytest.approx(expected, abs=1e-6)
    assert results[0][1] > results[1][1] > results[2][1]


def test_a_disk_that_is_too_small(monkeypatch, tmp_path):
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9 - 4000, 4000)
    monkeypatch.setattr(benchmark.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match="TMPDIR"):
        benchmark.write_gallery(tmp_path, np.ones((60, 8), np.float32), 60)  # 3,840 bytes, too close
    assert not list(tmp_path.iterdir())


def test_the_usual_reranking_gives_the_same_distances(tmp_path):
    peer = """
import numpy as np

def re_ranking(q_g, q_q, g_g):
    from tools import benchmark
    assert q_g.shape == (20, 100) and q_q.shape == (20, 20) and g_g.shape == (100, 100)
    (q, g), _, _ = benchmark.draw(20, 100, 16, 12, noise=2.5)
    for distances, a, b in ((q_g, q, g), (q_q, q, q), (g_g, g, g)):
        assert np.allclose(distances**2, ((a[:, None] - b) ** 2).sum(2), atol=1e-2)
    return benchmark.dense_rerank(q, g)
"""
    runs = benchmark.measure_rerank(CPU, (20, 100), dim=16, ids=12, peer_rerank=fake_peer(tmp_path, peer))
    ours, *others = [np.asarray(run.result) for run in runs.values()]
    assert ours.shape == (20, 100) and ours.std() > 0.01 and len(others) == 2
    for other in others:
        assert np.allclose(ours, other, atol=1e-5)
    alone = benchmark.measure_rerank(CPU, (20, 100), dim=16, ids=12, alone=True)
    assert [np.array_equal(run.result, ours) for run in alone.values()] == [True]


@pytest.mark.parametrize(("k1", "k2", "lambda_value"), [(20, 6, 0.3), (6, 1, 0.0), (9, 3, 1.0)])
def test_dense_reranking_in_float64(k1, k2, lambda_value):
    features, _, _ = benchmark.draw(15, 90, 16, 10, noise=2.5)
    q, g = (f.astype(np.float64) for f in features)
    dense = benchmark.dense_rerank(q, g, k1, k2, lambda_value)
    ours = metrics.rerank(q, g, k1=k1, k2=k2, lambda_value=lambda_value, distance="euclidean")
    assert np.allclose(dense, ours, atol=1e-9)


def test_what_is_said_of_a_difference():
    ours = torch.zeros(4, 5)
    result = np.zeros((4, 5), np.float32)
    result[0, 0], result[1, 1] = -0.25, 1e-6
    assert benchmark.difference(result, ours) == "largest difference 2e-01, above 1e-5 in 5.0000%"


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="anonymous memory is told by Linux alone")


@linux
def test_the_memory_of_an_array_is_seen_after_it_is_gone():
    def work():
        array = np.ones(25_000_000)  # 200 MB, freed before the function returns
        time.sleep(0.1)
        return array[::1000].sum()

    run = benchmark.watch(work, CPU)
    assert run.result == 25_000 and run.seconds > 0
    assert 190e6 < run.anonymous < 230e6


@linux
def test_the_memory_of_a_mapped_file_and_of_what_was_there_before_is_not_counted(tmp_path):
    np.ones(25_000_000).tofile(tmp_path / "a")
    before = np.ones(25_000_000)
    mapped = np.memmap(tmp_path / "a", np.float64, "r")
    run = benchmark.watch(lambda: mapped.sum() + before.sum(), CPU)
    assert run.result == 50_000_000
    assert -20e6 < run.anonymous < 20e6


@linux
def test_the_memory_of_training_from_a_large_cache_is_that_of_a_copy_where_code_copies(monkeypatch, capsys):
    """A file of 250 MB: mapped, none of it counts; a loader that copies it when it takes a batch is found out."""
    peaks, take = [], benchmark.loader.Pixels.batch

    def copying(pixels, rows, device="cpu"):
        pixels.copy = np.array(pixels.array)
        return take(pixels, rows, device)

    for batch in (take, take, copying):  # the first call warms up
        monkeypatch.setattr(benchmark.loader.Pixels, "batch", batch)
        peaks.append(benchmark.measure_large_cache(CPU, 0.25, batch=2, steps=1))
    assert peaks[1] - peaks[0] < 100e6 and peaks[2] - peaks[1] > 200e6
    assert f"0.25 GB, batch 2, fp32: at most {peaks[2] / 1e9:.2f} GB" in capsys.readouterr().out.replace("bf16", "fp32")


def test_memory_that_is_not_measured_is_said_to_be_so(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "anonymous_memory", lambda: math.nan)
    runs = benchmark.compare(CPU, {"first": lambda: 1, "second": lambda: 2}, {"third": lambda: 3}, rounds=2)
    assert [run.result for run in runs.values()] == [1, 2, 3]
    assert capsys.readouterr().out.count("not measured") == 3


def test_a_sampler_ends_with_a_function_that_fails():
    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        benchmark.watch(lambda: 1 // 0, CPU)
    assert threading.active_count() == threads


def test_ratios_are_those_of_the_medians(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "medians", lambda functions, *args, **options: [0.5, 2.0])
    benchmark.compare(CPU, {"ours": lambda: 1, "theirs": lambda: 2}, remark=lambda result, first: f"{result}/{first}")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    shown = [(words[0], words[1], words[3], words[-1]) for words in lines]
    assert shown == [("ours", "0.500", "1.00", "1/1"), ("theirs", "2.000", "4.00", "2/1")]


@pytest.mark.parametrize("command", [["ranking", "--peer-rank"], ["rerank", "--peer-rerank"]])
def test_a_peer_that_is_not_there(command, tmp_path, capsys):
    assert benchmark.main([*command, "nowhere/rank.py", "--device", "cpu"]) == 1
    assert "no Python file nowhere/rank.py" in capsys.readouterr().err
    assert benchmark.main([*command, fake_peer(tmp_path, "x = 1"), "--device", "cpu"]) == 1
    assert "has no function" in capsys.readouterr().err


def test_commands_and_their_own_flags(monkeypatch, capsys):
    calls = []
    for name in ("speed", "networks", "ranking", "distractors", "rerank", "baselines"):
        monkeypatch.setattr(benchmark, f"measure_{name}", lambda *a, name=name, **o: calls.append((name, a, o)))
    lines = ("speed --amp bf16 --batch-size 8", "networks", "networks hacnn --batch-size 4 --compile resnet18 hacnn")
    lines += ("baselines --dataset synthetic", "distractors", "ranking --peer-rank a.py", "rerank --full")
    for line in lines:
        assert benchmark.main([*line.split(), "--device", "cpu"]) == 0
    assert calls == [
        ("speed", (CPU,), {"amp": "bf16", "batch_size": 8}),
        ("networks", (CPU,), {"names": benchmark.LIGHT, "batch_size": None, "compiled": ()}),
        ("networks", (CPU,), {"names": ["hacnn"], "batch_size": 4, "compiled": ["resnet18", "hacnn"]}),
        ("baselines", (CPU,), {"dataset": "synthetic", "root": "data"}),
        ("distractors", (CPU,), {}), ("ranking", (CPU,), {"peer_rank": "a.py"}),
        ("rerank", (CPU,), {"peer_rerank": None, "full": True}),
    ]
    with pytest.raises(SystemExit):
        benchmark.main(["speed", "--full"])


def test_baselines_command(drawn_root, capsys):
    assert benchmark.main(["baselines", "--root", str(drawn_root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "rank-1" in line] == ["raw", "HSV"]


def test_baselines_on_pictures_whose_answer_is_known():
    """Red and green people: a histogram knows them apart wherever they stand, equal pictures have equal features."""
    red, green = np.zeros((2, 32, 16, 3), np.uint8)
    red[:, :, 0], green[:, :, 1] = 200, 200
    histogram = benchmark.hsv_histograms(np.stack([red, red, green]))
    assert torch.equal(histogram[0], histogram[1]) and histogram[0] @ histogram[2] == 0
    pixels = benchmark.raw_pixels(np.stack([red, red, green]))
    assert torch.equal(pixels[0], pixels[1]) and pixels[0] @ pixels[2] < 0.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(capsys):
    assert benchmark.main(["speed", "--device", "cuda"]) == 1
    assert "torch sees 0 GPUs" in capsys.readouterr().err


# Deployment -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def light_checkpoint(tmp_path_factory):
    path, options = tmp_path_factory.mktemp("deploy") / "best.pth", {"input_size": (64, 32)}
    torch.manual_seed(0)
    model = models.build_model("squeezenet1_1", 3, **options)
    torch.save({"arch": "squeezenet1_1", "num_ids": 3, "options": options, "model": model.state_dict()}, path)
    return path


def test_deploy_measures_every_format_and_draws(light_checkpoint, tmp_path, capsys, monkeypatch):
    begun = []
    monkeypatch.setattr(benchmark, "start_up", lambda form, *_: begun.append(form) or 1.5)
    monkeypatch.setattr(benchmark, "compile_side", lambda extractor, images, seconds: extractor)
    flags = ["deploy", "--ckpt", str(light_checkpoint), "--batches", "1", "3", "--rounds", "2", "--device", "cpu"]
    assert benchmark.main([*flags, "--out", str(tmp_path / "deploy.png")]) == 0
    out = capsys.readouterr().out
    rows = {line.split("  ")[0].strip(): line for line in out.splitlines() if " MB " in line and "1.50 s" in line}
    assert list(rows) == ["eager", "TorchScript", "pt2", "ONNX fp32", "ONNX fp16", "ONNX int8"]
    cosines = {name: float(line.split("MB")[1].split()[0]) for name, line in rows.items()}
    assert min(cosines.values()) > 0.98 and cosines["ONNX fp32"] > 0.99999
    assert "batch 3, times as fast as eager by p50: TorchScript" in out and "compiled" in out
    assert (tmp_path / "deploy.png").stat().st_size > 10_000
    assert sorted(begun) == ["checkpoint", "onnx", "onnx", "onnx", "pt2", "torchscript"]


def test_deploy_beside_the_plain_network(monkeypatch, tmp_path, capsys):
    """HA-CNN has one more side; no file is written here, that takes long."""
    model = models.build_model("hacnn", 3).eval()
    monkeypatch.setattr(models, "load_checkpoint", lambda path: (model, {"arch": "hacnn", "num_ids": 3, "options": {}}))
    monkeypatch.setattr(benchmark, "write_files", lambda *_: {})
    monkeypatch.setattr(benchmark, "start_up", lambda *_: 1.5)
    (tmp_path / "best.pth").write_bytes(b"weights")
    found = benchmark.measure_deployment(CPU, tmp_path / "best.pth", [2], rounds=2, compile_limit=0)
    assert list(found) == [2] and list(found[2]) == ["plain", "eager"]
    assert all(p50 <= p99 and rate == pytest.approx(2 / p50) for p50, p99, rate in found[2].values())


def test_start_up_runs_a_new_process_to_its_first_image(light_checkpoint, tmp_path):
    assert 0.1 < benchmark.start_up("checkpoint", light_checkpoint, (1, 3, 64, 32))
    with pytest.raises(benchmark.subprocess.CalledProcessError):
        benchmark.start_up("onnx", tmp_path / "missing.onnx", (1, 3, 64, 32))


def test_compiling_ends_at_its_limit():
    with pytest.raises(TimeoutError, match="this took longer than 1 s"):
        with benchmark.time_limit(1, "this"):
            time.sleep(5)
    with benchmark.time_limit(1, "this"):
        pass
    time.sleep(1.2)  # no alarm is left behind
