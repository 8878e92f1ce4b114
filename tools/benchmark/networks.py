"""Networks to choose from: images per second in each precision and memory layout."""

import copy
import gc
from functools import partial

import torch

import models
from tools.benchmark.measure import medians, synchronize
from tools.benchmark.speed import extraction, training_step

LIGHT = [n for n in models.MODELS if n.startswith(("hacnn", "osnet", "resnet18", "mobile", "shuffle", "squeeze"))]
VARIANTS = ("fp32", "bf16", "fp32 cl", "bf16 cl", "fp32 comp", "bf16 comp")


def variants_of(model, batch, device, compiled=False):
    """{name of VARIANTS: (network, images, bf16)}: the same weights and images; training moves a copy per layout."""
    images = torch.randn(batch, 3, *model.input_size, generator=torch.Generator().manual_seed(0)).to(device)
    last = copy.deepcopy(model).to(device, memory_format=torch.channels_last)
    pairs = [(model.to(device), images), (last, images.contiguous(memory_format=torch.channels_last))]
    pairs += [(torch.compile(last), pairs[1][1])] if compiled else []
    return dict(zip(VARIANTS, [(*pair, bf16) for pair in pairs for bf16 in (False, True)], strict=False))


def rates(functions, images, device, rounds):
    """{name: images per second}, or what went wrong, as text, where a function's first call fails."""
    found, working = dict.fromkeys(functions), {}
    for name, function in functions.items():
        try:
            function()
            synchronize(device)
            working[name] = function
        except Exception as error:  # each library and each compiler has exceptions of its own
            found[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    seconds = medians(working.values(), device, rounds, warm_up=0)
    return found | {name: images / median for name, median in zip(working, seconds, strict=True)}


def measure_network(name, device, batch, rounds, compiled=False):
    """Prints its two rows and returns {"extraction" or "training": {variant: images/s, or what went wrong}}."""
    torch.manual_seed(0)
    model, labels = models.build_model(name, 751), torch.arange(batch, device=device) % 751
    lead = f"{name:20} {'{} x {}'.format(*model.input_size):>9} {models.count_parameters(model)[1] / 1e6:6.2f} "
    lead += f"{models.count_macs(model)[0] / 1e9:6.3f}"
    variants, found = variants_of(model, batch, device, compiled), {}
    for what, prepare in (("extraction", extraction), ("training", partial(training_step, labels=labels))):
        found[what] = row = rates({n: prepare(*parts) for n, parts in variants.items()}, batch, device, rounds)
        errors = [f"{variant}: {error}" for variant, error in row.items() if isinstance(error, str)]
        best = max((rate for rate in row.values() if not isinstance(rate, str)), default=None)
        cells = [f"{'failed':>10} " if isinstance(r, str) else f"{r:10.1f}{' *'[r == best]}" for r in row.values()]
        print(f"{lead:45}{what:10}{''.join(cells)}".rstrip(), *errors, sep="\n    ", flush=True)
        lead = ""
    return found


def measure_networks(device, names=LIGHT, batch_size=None, compiled=(), rounds=None):
    """One network after the other, those of `compiled` in more variants; {name: what measure_network gives}."""
    names, found, gpu = list(dict.fromkeys([*names, *compiled])), {}, device.type == "cuda"
    for name in names:
        models.build_model(name, 1)  # what cannot be built ends the run before anything is measured
    batch, rounds = batch_size or (64 if gpu else 16), rounds or (20 if gpu else 3)
    print(f"images per second, batch {batch}, * the best of its row; training: forward, cross entropy over 751 ids,")
    print("backward, AdamW; bf16: by autocast, cl: channels-last, comp: that compiled; params: millions, no classifier")
    heads = "".join(f"{variant + ' ':>11}" for variant in VARIANTS[: 6 if compiled else 4])
    print(f"{'name':20} {'input':>9} {'params':>6} {'GMAC':>6} {'':10}{heads}".rstrip())
    for name in names:
        found[name] = measure_network(name, device, batch, rounds, name in compiled)
        if name in compiled:
            torch.compiler.reset()  # it keeps the network
        gc.collect()  # networks and optimizers are parts of cycles
        torch.cuda.empty_cache()  # nothing without a GPU
    return found
