"""How weights are changed: the tables of losses, optimizers, schedules and recipes, and which layers train how fast.

    schedule = Schedule(lr=3e-3, epochs=60)                    # schedule.rate(12.5): in the middle of epoch 13
    criterion = Criterion({"xent": 1.0}, num_ids=751, sizes=branch_sizes(model))
    optimizers = build_optimizers(model, criterion, "adamw", lr=3e-3, weight_decay=0.2)

Flags of train.py with these names (--recipe, --loss, --optim, --schedule, --ema, --freeze-bn, --open-layers ...) mean
what stands here.

Bag of tricks (`bot`): Luo, Gu, Liao, Lai, Jiang, "Bag of Tricks and a Strong Baseline for Deep Person
Re-Identification", CVPR Workshops 2019. One cycle: Smith and Topin, arXiv 1708.07120, with the numbers of torch's
OneCycleLR. What the losses are and where they come from: losses.py.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

import losses
import models
from training import distributed

# ----------------------------------------------------------------------------------------------------------------------
# Losses


class Loss(NamedTuple):
    weight: float  # where --loss gives none
    build: Callable  # (num_ids, size of the branch's feature, label_smooth, margin) -> loss of (outputs, labels)


LOSSES = {  # the weight of center is that of Luo et al., of ring that of Zheng et al.
    "xent": Loss(1.0, lambda label_smooth, **_: functools.partial(losses.cross_entropy, smoothing=label_smooth)),
    "triplet": Loss(1.0, lambda margin, **_: functools.partial(losses.batch_hard_triplet, margin=margin)),
    "triplet-soft": Loss(1.0, lambda **_: functools.partial(losses.batch_hard_triplet, margin="soft")),
    "circle": Loss(1.0, lambda **_: losses.circle_loss),
    "center": Loss(0.0005, lambda num_ids, size, **_: losses.CenterLoss(num_ids, size)),
    "ring": Loss(0.01, lambda **_: losses.RingLoss()),
    "arcface": Loss(1.0, lambda num_ids, size, **_: losses.ArcFace(num_ids, size)),
    "cosface": Loss(1.0, lambda num_ids, size, **_: losses.CosFace(num_ids, size)),
    "prototypes": Loss(
        1.0, lambda num_ids, size, label_smooth, **_: losses.Prototypes(num_ids, size, label_smooth)
    ),
}
# These compare images of one person, so batches have to hold several. Center needs none: its centres stay from
# batch to batch, and Wen et al. draw batches at random.
NEED_POSITIVES = {"triplet", "triplet-soft", "circle"}
HEADS = {"arcface", "cosface", "prototypes"}  # classifiers beside the model's own


class Criterion(nn.Module):
    """A weighted sum of LOSSES (name -> weight) with the parameters that some have: own ones for each branch.

    (logits, features, labels) as a model gives them in training -> (weighted sum, name -> loss), means over branches.
    Logits are for xent alone. Without it the model's classifier gets no gradient, so no optimizer moves it. Where
    several processes share a batch, losses that compare images take those of all processes and are the loss of the
    whole; the others are the loss of this process's part.
    """

    def __init__(self, weights, num_ids, sizes, *, label_smooth=0.1, margin=0.3):
        super().__init__()
        self.weights, self.functions, self.learned = weights, {}, nn.ModuleDict()
        how = {"num_ids": num_ids, "label_smooth": label_smooth, "margin": margin}
        for name in self.weights:
            built = [LOSSES[name].build(size=size, **how) for size in sizes]
            if isinstance(built[0], nn.Module):
                self.learned[name] = nn.ModuleList(built)
            else:
                self.functions[name] = built[0]

    def forward(self, logits, features, labels):
        parts, everyone = {}, None
        for name in self.weights:
            loss = self.learned[name] if name in self.learned else self.functions[name]
            outputs = (logits if name == "xent" else features), labels
            if name in NEED_POSITIVES and distributed.world_size() > 1:
                if everyone is None:
                    gathered = [distributed.gather(losses.full_precision(x)) for x in features]
                    everyone = gathered, distributed.gather(labels)
                outputs = everyone
            parts[name] = losses.mean_over_branches(loss, *outputs)
        return sum(weight * parts[name] for name, weight in self.weights.items()), parts


def branch_sizes(model):
    """The length of each branch's feature in training; a network for tracklets takes images too."""
    _, features = models.on_meta(model.train(), model.input_size, 2)
    return [feature.shape[1] for feature in features]


# ----------------------------------------------------------------------------------------------------------------------
# Optimizers and schedules

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # --amp: the type that autocast computes in


class Optimizer(NamedTuple):
    build: Callable  # of torch.optim
    lr: float  # --lr and --weight-decay where they are not given: a rate belongs to its optimizer
    weight_decay: float
    has_momentum: bool = False


OPTIMIZERS = {
    "adam": Optimizer(torch.optim.Adam, 3e-4, 5e-4),
    "amsgrad": Optimizer(functools.partial(torch.optim.Adam, amsgrad=True), 3e-4, 5e-4),
    "adamw": Optimizer(torch.optim.AdamW, 3e-3, 0.2),
    "sgd": Optimizer(torch.optim.SGD, 0.03, 5e-4, has_momentum=True),
    "rmsprop": Optimizer(torch.optim.RMSprop, 3e-4, 5e-4, has_momentum=True),  # its alpha is 0.99
}


def build_optimizers(
    model, criterion, optim="adamw", *, lr=None, weight_decay=None, momentum=0.9, center_lr=0.5, new_layers=None
):  # fmt: skip
    """[that of the model, and of heads among the losses; that of the other losses' parameters, if there are any].

    lr, weight_decay: None is what OPTIMIZERS says; new_layers: as parameter_groups has it.
    Centres and radii move by plain SGD at center_lr, whatever the weight of their loss and the number of branches: the
    rate is divided by what the mean and the weight multiply the gradient by. SGD without momentum keeps no state.
    """
    groups = parameter_groups(model, new_layers)
    own = []
    for name, branches in sorted(criterion.learned.items()):  # saved states know parameters by their order alone
        if name in HEADS:
            groups[0]["params"].extend(branches.parameters())
        else:
            rate = center_lr * len(branches) / criterion.weights[name]
            own.append({"params": list(branches.parameters()), "lr": rate})
    chosen = OPTIMIZERS[optim]
    settings = {"lr": chosen.lr, "weight_decay": chosen.weight_decay}
    settings |= {"momentum": momentum} if chosen.has_momentum else {}
    settings |= {} if lr is None else {"lr": lr}
    settings |= {} if weight_decay is None else {"weight_decay": weight_decay}
    return [chosen.build(groups, **settings), *([torch.optim.SGD(own)] if own else [])]


def replace_parameter(optimizer, old, new):
    """Lets the optimizer train another parameter in place of one of its own, about which it remembers nothing."""
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    optimizer.state.pop(old, None)


def one_cycle(done):
    """Factor on the rate where `done` (0..1) of the training is: from 1/25 up to 1 at 0.3, then down to 1/250000."""
    low, share = (1 / 25, done / 0.3) if done < 0.3 else (1 / 250_000, (1 - done) / 0.7)
    return low + (1 - low) * (0.5 - 0.5 * math.cos(math.pi * share))


SCHEDULES = {  # kind -> factor on the rate of a Schedule s after so many epochs
    "constant": lambda s, epochs: 1.0,
    "step": lambda s, epochs: s.gamma ** (epochs // s.drops()[0]),
    "multi-step": lambda s, epochs: s.gamma ** sum(epochs >= drop for drop in s.drops()),
    "cosine": lambda s, epochs: (
        0.5 + 0.5 * math.cos(math.pi * (epochs - s.warmup_epochs) / (s.epochs - s.warmup_epochs))
    ),
    "one-cycle": lambda s, epochs: one_cycle(epochs / s.epochs),
}


class Schedule(NamedTuple):
    """The learning rate of a run of so many epochs: a linear rise from a hundredth to lr, then one of SCHEDULES.

    milestones: epochs in which step (every first of them) and multi-step multiply it by gamma; below 1 they are parts
    of the run. one-cycle rises by itself, and there warmup_epochs counts for nothing.
    """

    lr: float
    epochs: int
    kind: str = "cosine"
    warmup_epochs: float = 1
    milestones: Sequence[float] = (20, 40)
    gamma: float = 0.1

    def drops(self):
        """The milestones in epochs."""
        return [milestone * self.epochs if milestone < 1 else milestone for milestone in self.milestones]

    def remark(self):
        """What is to be said of drops that end the training early or never come; empty where nothing is."""
        if self.kind not in ("step", "multi-step"):
            return ""
        drops = self.drops()[:1] if self.kind == "step" else self.drops()
        told = f"--schedule {self.kind} --milestones {' '.join(f'{drop:g}' for drop in drops)}"
        late = [drop for drop in drops if drop >= self.epochs]
        if late:
            return f"{told}: {self.epochs} epochs end before {late[0]:g}, where the rate would fall"
        last = self.rate(self.epochs - 1)
        if last < 1e-5 * self.lr:
            return f"{told}: the rate falls to {last:.0e} in the last epoch, at which nothing is learned"
        return ""

    def rate(self, epochs):
        """The rate after so many epochs, with the part of the one that is under way."""
        if epochs < self.warmup_epochs and self.kind != "one-cycle":
            return self.lr * (0.01 + 0.99 * epochs / self.warmup_epochs)
        return self.lr * SCHEDULES[self.kind](self, epochs)


@torch.no_grad()
def update_average(averaged, model, decay, updates):
    """Moves the weights of `averaged` towards those of the model, by 1 - decay; `updates`: how often that was done.

    The first updates move farther, (1 + n) / (10 + n) instead of the decay: else the fresh weights would stay in it for
    thousands of steps. Running statistics of batch norms are averaged like weights: they describe what the weights of
    the same steps gave. Counters are copied.
    """
    decay = min(decay, (1 + updates) / (10 + updates))
    weights, counters = [], []
    for mean, value in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
        (weights if mean.is_floating_point() else counters).append((mean, value))
    # a few kernels on a GPU, where one for each of hundreds would take as long as a step
    torch._foreach_lerp_(*map(list, zip(*weights, strict=True)), 1 - decay)
    if counters:
        torch._foreach_copy_(*map(list, zip(*counters, strict=True)))


# ----------------------------------------------------------------------------------------------------------------------
# Recipes: flags that belong together. What a recipe does not name keeps the flag's own default

RECIPES = {
    # Li, Zhu, Gong, CVPR 2018: what the paper does not speak of (decay of weights and rate, smoothing) is off. Its Adam
    # may have had another first beta (0.5); here it is Adam's own
    "paper": {
        "arch": "hacnn", "optim": "adam", "lr": 5e-4, "weight_decay": 0.0, "schedule": "constant", "warmup_epochs": 0,
        "epochs": 150, "batch_size": 32, "augment": [], "loss": {"xent": 1.0}, "label_smooth": 0.0,
        "distance": "euclidean",
    },
    # how deep-person-reid trains HA-CNN to about 91 rank-1 on Market-1501
    "reference": {
        "arch": "hacnn", "optim": "sgd", "lr": 0.03, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "multi-step",
        "milestones": [0.5, 0.75], "gamma": 0.1, "warmup_epochs": 0, "epochs": 300, "batch_size": 32,
        "augment": ["flip", "translate"], "loss": {"xent": 1.0}, "label_smooth": 0.1,
    },
    # Luo et al., for any backbone with ImageNet weights; a ResNet's last stride is 1 by default. Their random crop of
    # a padded image is our translation
    "bot": {
        "arch": "resnet50", "pretrained": True, "options": {"bnneck": True}, "optim": "adam", "lr": 3.5e-4,
        "weight_decay": 5e-4, "schedule": "multi-step", "milestones": [40 / 120, 70 / 120], "gamma": 0.1,
        "warmup_epochs": 10, "epochs": 120, "batch_size": 64, "num_instances": 4,
        "augment": ["flip", "translate", "erase"], "loss": {"xent": 1.0, "triplet": 1.0, "center": 0.0005},
        "label_smooth": 0.1, "margin": 0.3, "center_lr": 0.5,
    },
    # HA-CNN from scratch, by experiments of our own, tools/study.py: BENCHMARK.md has what they showed. Weight decay
    # is what counts: without it weights never forget. Here they do within 1 / (lr * decay) steps, 8.2 epochs of
    # Market-1501; with 100 persons 5 to 10 epochs did best, in runs of 10 and of 30. So the decay follows rate, batch
    # size and number of images, not the length of the run (as Wang and Aitchison found, ICML 2025)
    "best": {
        "arch": "hacnn", "optim": "adamw", "lr": 3e-3, "weight_decay": 0.2, "schedule": "cosine", "warmup_epochs": 5,
        "epochs": 150, "batch_size": 64, "augment": ["flip", "translate", "erase"], "loss": {"xent": 1.0},
        "label_smooth": 0.1, "distance": "cosine",
    },
    # what --adapt fills in: training/adapt.py. Fine-tuning, so a low rate, and little decay
    "adapt": {
        "loss": {"prototypes": 1.0}, "epochs": 20, "batch_size": 64, "optim": "adamw", "lr": 5e-4, "weight_decay": 0.05,
        "schedule": "constant", "warmup_epochs": 0.5, "ema": 0.99,
        "augment": ["flip", "translate", "erase"],
    },
    # the first row of BENCHMARK.md
    "quick": {"epochs": 8, "warmup_epochs": 2, "batch_size": 32, "lr": 2e-3, "weight_decay": 0.2},
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# Fine-tuning: which layers train, and how fast. A layer is a top-level child of the network


def layers_of(model):
    """Name -> module of the top-level children; of a video model, those of its network for frames among them."""
    children = dict(model.named_children())
    if isinstance(model, models.VideoModel):
        children |= children.pop("frames").named_children()
    return children


def find_layers(model, names, flag):
    """`names`, or those of the model's head where there are none. ValueError with the layers that can train."""
    layers = [name for name, layer in layers_of(model).items() if next(layer.parameters(), None) is not None]
    unknown = [name for name in names if name not in layers]
    if unknown:
        raise ValueError(f"{flag}: no layer {', '.join(unknown)} to train; there are: {', '.join(layers)}")
    return names or [name for name in layers if name.startswith(("classifier", "fc", "bnneck", "gem", "attention"))]


def parameter_groups(model, new_layers=None):
    """What the optimizer trains: all in one group, or the parameters of --new-layers and those of the other layers."""
    if new_layers is None:
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]
    new = find_layers(model, new_layers, "--new-layers")
    groups = ([], [])
    for name, layer in layers_of(model).items():
        groups[name not in new].extend(p for p in layer.parameters() if p.requires_grad)
    return [{"params": group} for group in groups]


def freeze_base(model, optimizer, open_layers):
    """Training mode for the layers of that name alone, or for all where it is None.

    A frozen layer stands still to the bit: in evaluation mode its batch norms keep their statistics, and a parameter
    without gradient is skipped by every optimizer, weight decay and momentum included. Parameters that the optimizer
    does not hold were never meant to train and stay as they are.
    """
    model.train()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)
    for name, layer in layers_of(model).items():
        if open_layers is not None and name not in open_layers:
            layer.eval().requires_grad_(False)


def synchronise_statistics(model):
    """The model with batch norms that see the batches of all processes, --sync-bn; names and weights stay."""
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    if kinds <= {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    from timm.layers import convert_sync_batchnorm  # torch's would drop the activation that timm's layers hold

    return convert_sync_batchnorm(model)


def freeze_statistics(model):
    """Batch norms normalise by their running statistics and leave them alone; scale and shift train. --freeze-bn.

    model.train() undoes it, so it has to follow.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
