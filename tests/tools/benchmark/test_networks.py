"""Tests of the networks that tools/benchmark measures: the plain one is the same one, and what the table tells.

python -m pytest tests/tools/benchmark/test_networks.py
"""

import weakref

import pytest
import torch

import models
from tools.benchmark import __main__ as command
from tools.benchmark import networks, speed

CPU = torch.device("cpu")


def test_the_plain_network_is_the_same_network():
    torch.manual_seed(0)
    ours, plain = models.build_model("hacnn", 5).eval(), speed.LoopedHACNN(5).eval()
    for attention in (ours.ha1, ours.ha2, ours.ha3):  # regions off their starting places, some partly outside
        torch.nn.init.normal_(attention.hard_attn.fc.weight, std=0.3)
    for module in ours.modules():  # fresh ones leave the soft attention at a half everywhere
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1.5, 0.3)
            torch.nn.init.normal_(module.bias, 0.5, 0.3)
    plain.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 160, 64)
    with torch.inference_mode():
        features = ours(images)
        assert (features - plain(images)).abs().max() < 1e-5 * features.abs().max()


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
    variants = networks.variants_of(model, 3, CPU)
    assert list(variants) == ["fp32", "bf16", "fp32 cl", "bf16 cl"]
    features = {name: speed.extraction(*parts)() for name, parts in variants.items()}
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
    network, images, bf16 = networks.variants_of(small("osnet_x0_25", 3).eval(), 6, CPU)["bf16 cl"]
    labels = torch.arange(6) % 3

    def loss():
        return torch.nn.functional.cross_entropy(network.train()(images)[0][0], labels).item()

    before, step = loss(), speed.training_step(network.eval(), images, bf16, labels)
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
    found = networks.measure_networks(CPU, names, 2, rounds=1)
    assert list(found) == names[:2] and alive == [0, 0, 0, 0]
    for rows in found.values():
        assert list(rows) == ["extraction", "training"]
        for row in rows.values():
            assert list(row) == list(networks.VARIANTS[:4]) and all(rate > 0 for rate in row.values())
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
    monkeypatch.setattr(networks, "medians", lambda functions, device, rounds, warm_up: [0.5 for _ in functions])
    assert networks.rates({"a": lambda: 1, "b": lambda: 1 // 0}, 8, CPU, 3) == {
        "a": 16.0, "b": "ZeroDivisionError: integer division or modulo by zero",
    }


@pytest.mark.parametrize("always", [False, True])
def test_a_variant_that_fails_is_reported_in_its_cell(always, monkeypatch, capsys):
    monkeypatch.setattr(Tiny, "fails", staticmethod(lambda: always or torch.is_autocast_enabled("cpu")))
    monkeypatch.setattr(models, "build_model", lambda name, num_ids: Tiny(3, num_ids, 3))
    monkeypatch.setattr(models, "count_macs", lambda model: (10**6, 0))
    found = networks.measure_networks(CPU, ["one", "two"], 2, rounds=1)
    failing = [name for name in networks.VARIANTS[:4] if always or "bf16" in name]
    for name in ("one", "two"):
        for row in found[name].values():
            assert [v for v, rate in row.items() if rate == "RuntimeError: no kernel for it"] == failing
            assert all(rate > 0 for variant, rate in row.items() if variant not in failing)
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if "extraction" in line or "training" in line[:60].split()]
    assert len(rows) == 4
    for row in rows:
        cells = dict(zip(networks.VARIANTS[:4], row[-4:], strict=True))
        assert [variant for variant, cell in cells.items() if cell == "failed"] == failing
        assert sum(cell.endswith("*") for cell in cells.values()) == (not always)
    for variant in failing:
        assert lines.count(f"    {variant}: RuntimeError: no kernel for it") == 4


def test_compiled_variants_for_those_asked_for_alone(monkeypatch, capsys):
    compiled, resets = [], []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network.conv5.conv.out_channels) or network)
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    monkeypatch.setattr(models, "build_model", small)
    monkeypatch.setattr(networks, "rates", lambda functions, *args: dict.fromkeys(functions, 1.0))
    found = networks.measure_networks(CPU, ["osnet_x0_5"], 2, ["osnet_x0_25"], rounds=1)
    assert compiled == [128] and len(resets) == 1
    assert [len(row) for rows in found.values() for row in rows.values()] == [4, 4, 6, 6]
    assert list(found["osnet_x0_25"]["training"]) == list(networks.VARIANTS)
    assert "bf16 comp" in capsys.readouterr().out


def test_a_network_that_does_not_exist(monkeypatch, capsys):
    monkeypatch.setattr(networks, "measure_network", lambda *a: pytest.fail("measured"))
    assert command.main(["networks", "osnet_x0_25", "osnet_x1", "--device", "cpu"]) == 1
    assert "no architecture 'osnet_x1'; did you mean 'osnet_x1_0'" in capsys.readouterr().err


def test_the_light_networks_are_of_the_table():
    light = {"hacnn", "osnet_x1_0", "osnet_x0_25", "resnet18", "mobilenet_v2", "shufflenet_v2_x1_0", "squeezenet1_1"}
    assert light < set(networks.LIGHT) < set(models.MODELS) - {"resnet50", "densenet121", "mudeep"}
