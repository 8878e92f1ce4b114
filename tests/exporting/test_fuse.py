"""Tests of fuse.py: the graph gives the network's features, without batch norms, with fewer convolutions, in fp16 too.

python -m pytest tests/exporting/test_fuse.py
"""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import export
import models
from exporting import fuse

aten = torch.ops.aten


def count(graph):
    return Counter(node.target for node in graph.graph.nodes)


def settle(module, seed=0):
    """Batch norms and biases that change something, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            for value in (layer.weight, layer.running_var):
                value.data = 0.5 + torch.rand(value.shape, generator=generator)
            for value in (layer.bias, layer.running_mean):
                value.data = 0.2 * torch.randn(value.shape, generator=generator)
    return module.eval().requires_grad_(False)


def traced(module, *shape):
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return fuse.trace(module, (images,), ({0: torch.export.Dim("batch")},))


def check_same(module, graph, *shape, atol=1e-5):
    images = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1))
    expected, found = module(images), graph(images)
    scale = expected.abs().max()
    assert found.dtype == torch.float32 and (found - expected).abs().max() < atol * scale


@pytest.fixture(scope="module")
def hacnn():
    torch.manual_seed(0)
    model = settle(models.build_model("hacnn", 3, bnneck=True))
    for attention in (model.ha1, model.ha2, model.ha3):  # regions that follow the image
        nn.init.normal_(attention.hard_attn.fc.weight, std=0.1)
    return export.Extractor(model).eval()


def test_hacnn_has_no_batch_norm_and_its_inceptions_of_like_streams_are_merged(hacnn):
    names = {name: value.clone() for name, value in hacnn.state_dict().items()}
    graph = traced(hacnn, 3, 160, 64)
    before = count(graph)
    fuse.fuse(graph)
    after = count(graph)
    assert before[aten.batch_norm.default] == 75 + 2 and after[aten.batch_norm.default] == 0  # two of the neck
    assert before[aten.conv2d.default] - after[aten.conv2d.default] == 3 * (2 + 2)  # three chains of two become one
    grouped = [n for n in graph.graph.nodes if n.target is aten.conv2d.default and fuse.arguments(n)["groups"] == 3]
    assert len(grouped) == 3 and not after[aten.split_with_sizes.default] and not after[aten.slice.Tensor]
    check_same(hacnn, graph, 3, 160, 64)
    assert names.keys() == hacnn.state_dict().keys()  # the network is as it was
    assert all(torch.equal(value, hacnn.state_dict()[name]) for name, value in names.items())


class Shared(nn.Module):
    """One convolution used twice, with a batch norm each; a batch norm that follows no convolution; one read twice;
    layers with a bias of their own."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.one, self.two, self.three = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(3, 4, 1)
        self.biased = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.linear = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))

    def forward(self, x):
        x = self.two(self.conv(F.relu(self.one(self.conv(self.first(x))))))
        x = self.last(self.biased(x))
        return self.linear((self.three(x) + x).mean((2, 3)))


def test_only_batch_norms_that_can_be_folded_are():
    torch.manual_seed(0)
    module = settle(Shared())
    graph = fuse.fuse(traced(module, 3, 8, 8))
    assert count(graph)[aten.batch_norm.default] == 2
    check_same(module, graph, 3, 8, 8)


class Parallel(nn.Module):
    """1x1 convolutions side by side; `odd` says in what one of three chains differs."""

    def __init__(self, odd=None):
        super().__init__()
        kernel = 5 if odd == "kernel" else 3
        self.odd, bias, widths = odd, odd != "no bias", (4, 4, 8 if odd == "width" else 4)
        self.heads = nn.ModuleList(nn.Conv2d(3, width, 1, bias=bias) for width in widths)
        tails = [nn.Conv2d(4, 6, 3, padding=1, stride=1, bias=bias) for _ in range(2)]
        self.tails = nn.ModuleList([*tails, nn.Conv2d(widths[2], 6, kernel, padding=kernel // 2, bias=bias)])
        self.other = nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, x):
        chains, more = [], 0
        for number, (head, tail) in enumerate(zip(self.heads, self.tails, strict=True)):
            inside = head(x)
            if not (self.odd == "relu" and number == 2):
                inside = F.relu(inside)
            chains.append(tail(inside))
            if self.odd == "read twice" and number == 0:
                more = inside.mean((1, 2, 3)).unsqueeze(1)
        parts = [self.other(x), *chains]
        if self.odd == "apart":
            parts = [parts[1], parts[0], *parts[2:]]
        if self.odd == "order":
            parts = [parts[0], parts[2], parts[1], parts[3]]
        if self.odd == "twice":
            parts = [x, x, parts[0], *parts]
        return torch.cat(parts, dim=1).mean((2, 3)) + more


@pytest.mark.parametrize(
    ("odd", "convolutions"),
    [
        (None, 3), ("no bias", 3), ("kernel", 5), ("relu", 5), ("read twice", 5), ("apart", 5), ("order", 3),
        ("width", 5), ("twice", 3),
    ],
)
def test_chains_are_merged_where_they_are_alike_and_stand_together(odd, convolutions):
    torch.manual_seed(0)
    module = Parallel(odd).eval().requires_grad_(False)
    graph = fuse.fuse(traced(module, 3, 8, 8))
    assert count(graph)[aten.conv2d.default] == convolutions
    check_same(module, graph, 3, 8, 8)


def test_half_precision_keeps_regions_and_norms_in_fp32(hacnn):
    graph = fuse.halve(hacnn, lambda module: traced(module, 3, 160, 64))
    kinds = {name: value.dtype for name, value in graph.state_dict().items()}
    exact = sorted(name for name, kind in kinds.items() if kind == torch.float32 and "crops" not in name)
    assert len(exact) == 6 and all("hard_attn" in name for name in exact)
    assert sum(kind == torch.float16 for kind in kinds.values()) > 100
    check_same(hacnn, graph, 3, 160, 64, atol=2e-2)
    norms = [node for node in graph.graph.nodes if node.target is aten.linalg_vector_norm.default]
    inner = [node for node in norms if node.args[0].target is aten.to.dtype and node.args[0].args[1] is torch.float32]
    assert len(norms) == 3 and len(inner) >= 2
    assert next(hacnn.parameters()).dtype == torch.float32


class Long(nn.Module):
    """Features whose length fp16 cannot hold."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 32)

    def forward(self, x):
        x = x.to(self.fc.weight.dtype)
        return F.normalize(4e4 * torch.sigmoid(self.fc(x)), dim=1).float()


def test_norms_of_long_features_do_not_overflow_in_half_precision():
    torch.manual_seed(0)
    module = Long().eval().requires_grad_(False)
    assert not copy.deepcopy(module).half()(torch.randn(2, 4)).any()  # divided by infinity
    check_same(module, fuse.halve(module, lambda m: traced(m, 4)), 4, atol=5e-3)
