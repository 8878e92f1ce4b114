"""HA-CNN and the training loop beside plain versions of the same."""

import numpy as np
import torch
import torch.nn.functional as F

import losses
import models
import train
from tools.benchmark.measure import compare, per_second
from tools.benchmark.training import run_epoch
from training.pixels import Pixels, TrainSet


class LoopedHACNN(models.HACNN):
    """The same network written straight from the paper: regions one by one, cut by affine_grid and grid_sample."""

    def attend(self, soft, x):
        """Soft attention with interpolate in place of the constant matrices."""
        spatial = soft.spatial_attn.conv1(x.mean(dim=1, keepdim=True))
        spatial = soft.spatial_attn.conv2(F.interpolate(spatial, x.shape[2:], mode="bilinear", align_corners=True))
        return torch.sigmoid(soft.conv(spatial * soft.channel_attn(x.mean(dim=(2, 3), keepdim=True))))

    def cut(self, x, shift, size):
        """One region of each image: x (B, C, H, W), shift (B, 2) -> (B, C, h, w)."""
        theta = torch.zeros(len(x), 2, 3, device=x.device)
        theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = 1.0, 0.25, shift
        region = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
        return F.interpolate(region, size=size, mode="bilinear", align_corners=True)

    def branches(self, x):
        x, local = self.conv(x), [0] * self.REGIONS
        for stage in (1, 2, 3):
            attention, entering = getattr(self, f"ha{stage}"), x
            x = getattr(self, f"inception{stage}")(x)
            theta = attention.hard_attn(x)
            for region in range(self.REGIONS):
                cut = self.cut(entering, theta[:, region], self.CROPS[stage - 1])
                local[region] = getattr(self, f"local_conv{stage}")(cut + local[region])
            x = x * self.attend(attention.soft_attn, x)
        means = torch.cat([region.mean(dim=(2, 3)) for region in local], dim=1)
        return [self.fc_global(x.mean(dim=(2, 3))), self.fc_local(means)]


def extraction(model, images, bf16):
    model.eval()

    def extract():
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return model(images)

    return extract


def training_step(model, images, bf16, labels):
    optimizer = torch.optim.AdamW(model.train().parameters(), 1e-4)

    def step():
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            logits, _ = model(images)
        optimizer.zero_grad(set_to_none=True)
        losses.mean_over_branches(losses.cross_entropy, logits, labels).backward()
        optimizer.step()

    return step


def measure_speed(device, batch_size, amp, rounds=5, steps=6):
    """Extraction and training step of HA-CNN beside the plain one; then measure_epoch."""
    batch, bf16 = batch_size, amp == "bf16"
    torch.manual_seed(0)
    ours = models.build_model("hacnn", 751).to(device, memory_format=torch.channels_last)
    plain = LoopedHACNN(751).to(device)
    plain.load_state_dict(ours.state_dict())
    images, labels = torch.randn(batch, 3, 160, 64, device=device), torch.arange(batch, device=device)
    sides = {"ours": (ours, images.contiguous(memory_format=torch.channels_last)), "plain": (plain, images)}
    extract = {name: extraction(*side, bf16) for name, side in sides.items()}
    print(f"extraction, batch {batch}; the same features to {(extract['ours']() - extract['plain']()).abs().max():.0e}")
    compare(device, extract, rounds=rounds, remark=per_second(batch))
    print(f"training step, batch {batch}")
    trained = {name: training_step(*side, bf16, labels) for name, side in sides.items()}
    compare(device, trained, rounds=rounds, remark=per_second(batch))
    measure_epoch(device, 2 * batch, bf16, rounds, steps)


def measure_epoch(device, batch, bf16, rounds, steps):
    """An epoch of train.py (cached pixels, augmented) beside the same steps on one batch that stays in memory."""
    noise = np.random.default_rng(0).integers(0, 256, (batch * steps, 160, 64, 3), dtype=np.uint8)
    pixels = Pixels([""] * len(noise), (160, 64), noise).to_device(device)
    train_set = TrainSet(pixels, np.arange(len(noise)) % 16, batch_size=batch)
    torch.manual_seed(0)
    model = models.build_model("hacnn", 16).to(device, memory_format=torch.channels_last)
    training = train.prepare(model, train_set, amp="bf16" if bf16 else "off")
    images, labels = train_set._replace(augment=()).load(np.arange(batch), 0, device, model.mean, model.std)
    step = training_step(model, images, bf16, labels)
    print(f"epoch, batch {batch}")
    sides = {"from the cache": lambda: run_epoch(training), "one batch": lambda: [step() for _ in range(steps)]}
    compare(device, sides, rounds=rounds, remark=per_second(steps * batch))
