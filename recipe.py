"""How weights are changed: the tables of losses, optimizers and schedules, and which layers train how fast.

train.py's --loss, --optim, --schedule, --fixbase-epochs, --open-layers, --new-layers mean what stands here.
"""

import math

import torch

import losses
import video

# ----------------------------------------------------------------------------------------------------------------------
# Losses, optimizers, schedules: tables and functions

LOSSES = {  # name -> function of (logits, features, labels, args); branches are averaged
    "xent": lambda logits, features, labels, args: losses.mean_over_branches(
        losses.cross_entropy, logits, labels, args.label_smooth
    ),
    "htri": lambda logits, features, labels, args: losses.mean_over_branches(
        losses.batch_hard_triplet, features, labels, args.margin
    ),
}

OPTIMIZERS = {
    "adam": lambda params, args: torch.optim.Adam(params, args.lr, weight_decay=args.weight_decay),
    "amsgrad": lambda params, args: torch.optim.Adam(params, args.lr, weight_decay=args.weight_decay, amsgrad=True),
    "adamw": lambda params, args: torch.optim.AdamW(params, args.lr, weight_decay=args.weight_decay),
    "sgd": lambda params, args: torch.optim.SGD(params, args.lr, args.momentum, weight_decay=args.weight_decay),
}

SCHEDULES = {  # name -> factor on --lr at `progress`, counted in epochs
    "constant": lambda progress, args: 1.0,
    "step": lambda progress, args: args.gamma ** (progress // args.milestones[0]),
    "multi-step": lambda progress, args: args.gamma ** sum(progress >= milestone for milestone in args.milestones),
    "cosine": lambda progress, args: (
        0.5 + 0.5 * math.cos(math.pi * (progress - args.warmup_epochs) / (args.epochs - args.warmup_epochs))
    ),
}


def learning_rate(progress, args):
    """The rate at `progress` epochs: a linear rise from a hundredth over --warmup-epochs, then --schedule."""
    if progress < args.warmup_epochs:
        return args.lr * (0.01 + 0.99 * progress / args.warmup_epochs)
    return args.lr * SCHEDULES[args.schedule](progress, args)


# ----------------------------------------------------------------------------------------------------------------------
# Fine-tuning: which layers train, and how fast. A layer is a top-level child of the network


def layers_of(model):
    """Name -> module of the top-level children; of a video model, those of its network for frames among them."""
    children = dict(model.named_children())
    if isinstance(model, video.VideoModel):
        children |= children.pop("frames").named_children()
    return children


def find_layers(model, names, flag):
    """`names`, or those of the model's head where there are none. ValueError with the layers that can train."""
    layers = [name for name, layer in layers_of(model).items() if next(layer.parameters(), None) is not None]
    unknown = [name for name in names if name not in layers]
    if unknown:
        raise ValueError(f"{flag}: no layer {', '.join(unknown)} to train; there are: {', '.join(layers)}")
    return names or [name for name in layers if name.startswith(("classifier", "fc", "bnneck", "gem", "attention"))]


def parameter_groups(model, args):
    """What the optimizer trains: all in one group, or the parameters of --new-layers and those of the other layers."""
    if args.new_layers is None:
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]
    new = find_layers(model, args.new_layers, "--new-layers")
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
