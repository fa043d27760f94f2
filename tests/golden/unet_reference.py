"""tessera's U-Net in PyTorch: the twin that the C++ engine is compared with.

A time-conditioned denoiser: residual blocks with GroupNorm, space-to-channel pooling on the way
down, nearest upsampling and skips on the way up; or one of the variants that the lesson compares.
Parameter names are the engine's, so weights travel both ways. Shapes are (N, C, H, W).
"""
import math

import torch
from torch import nn
from torch.nn import functional as F


def timestep_embedding(t, dim, dtype=torch.float32):
    """cat[sin(t f), cos(t f)], f_i = 10000^(-i / half): (N,) -> (N, dim)."""
    half = dim // 2
    numbers = torch.arange(half, dtype=dtype, device=t.device)
    frequencies = torch.exp(-math.log(10000.0) * numbers / half)
    angles = t[:, None].to(dtype) * frequencies
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


def space_to_channel(x):
    """einops 'b c (h p1) (w p2) -> b (c p1 p2) h w' with p1 = p2 = 2."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // 2, 2, w // 2, 2)
    return x.permute(0, 1, 3, 5, 2, 4).reshape(n, c * 4, h // 2, w // 2)


def channel_to_space(x):
    """The inverse of space_to_channel."""
    n, c, h, w = x.shape
    x = x.reshape(n, c // 4, 2, 2, h, w)
    return x.permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, h * 2, w * 2)


def activate(activation):
    """'gelu' is the exact (erf) form, 'gelu-tanh' the approximation."""
    if activation == "relu":
        return nn.ReLU()
    return nn.GELU(approximate={"gelu": "none", "gelu-tanh": "tanh"}[activation])


def normalize(norm, groups, channels):
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm({"group": groups, "layer": 1, "instance": channels}[norm], channels)


class TimestepEmbedding(nn.Module):
    def __init__(self, dim, activation="gelu"):
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), activate(activation), nn.Linear(4 * dim, 4 * dim))

    def forward(self, t):
        return self.mlp(timestep_embedding(t, self.dim, self.mlp[0].weight.dtype))


class ResidualBlock(nn.Module):
    def __init__(self, in_channels, out_channels, emb_dim, groups=8, activation="gelu",
                 norm="group", time_gelu=True):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = normalize(norm, groups, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = normalize(norm, groups, out_channels)
        self.act = activate(activation)
        self.time_mlp = nn.Sequential(activate(activation) if time_gelu else nn.Identity(),
                                      nn.Linear(emb_dim, out_channels))
        same = in_channels == out_channels
        self.residual_conv = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x, emb):
        time = self.time_mlp(emb)[:, :, None, None]
        h = self.act(self.norm1(self.conv1(x)) + time)
        h = self.act(self.norm2(self.conv2(h)))
        return h + self.residual_conv(x)


class DownBlock(nn.Module):
    """Returns (skip, what the projection reads), which is the skip, rearranged or pooled."""

    def __init__(self, channels, down, *block_options):
        super().__init__()
        self.pool = {"rearrange": space_to_channel, "conv": lambda x: x,
                     "max": lambda x: F.max_pool2d(x, 2), "avg": lambda x: F.avg_pool2d(x, 2)}[down]
        self.res_block = ResidualBlock(channels, channels, *block_options)

    def forward(self, x, emb):
        skip = self.res_block(x, emb)
        return skip, self.pool(skip)


def projection(channels, down):
    """From a down block to the next: twice the channels at half the size."""
    if down == "conv":
        return nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
    return nn.Conv2d(4 * channels if down == "rearrange" else channels, 2 * channels, 1)


class UpBlock(nn.Module):
    """Upsamples, then concatenates the skip behind, if there are skips."""

    def __init__(self, in_channels, skip_channels, up, skips, *block_options):
        super().__init__()
        self.skips = skips
        self.upsample = (nn.Upsample(scale_factor=2, mode="nearest") if up == "nearest"
                         else nn.ConvTranspose2d(in_channels, in_channels, 2, stride=2))
        joined = in_channels + (skip_channels if skips else 0)
        self.res_block = ResidualBlock(joined, skip_channels, *block_options)

    def forward(self, x, skip, emb):
        x = self.upsample(x)
        return self.res_block(torch.cat([x, skip], dim=1) if self.skips else x, emb)


class UNet(nn.Module):
    """Images (N, in_channels, S, S), S a multiple of 2^levels, and timesteps (N,) -> images."""

    def __init__(self, in_channels=1, base=64, levels=3, groups=8, time_dim=128,
                 activation="gelu", down="rearrange", up="nearest", norm="group", no_skips=False,
                 no_time_gelu=False):
        super().__init__()
        options = (4 * time_dim, groups, activation, norm, not no_time_gelu)
        widths = [base * 2**level for level in range(levels + 1)]
        self.levels = levels
        self.time_embed = TimestepEmbedding(time_dim, activation)
        self.init_conv = nn.Conv2d(in_channels, base, 3, padding=1)
        for level in range(1, levels + 1):
            width = widths[level - 1]
            self.add_module(f"down{level}", DownBlock(width, down, *options))
            self.add_module(f"down{level}_proj", projection(width, down))
        self.bottleneck = ResidualBlock(widths[-1], widths[-1], *options)
        for level in range(levels, 0, -1):
            self.add_module(f"up{level}", UpBlock(widths[level], widths[level - 1], up,
                                                  not no_skips, *options))
        self.final_conv = nn.Sequential(
            normalize(norm, groups, base), activate(activation), nn.Conv2d(base, in_channels, 1))

    def forward(self, x, t):
        emb = self.time_embed(t)
        x = self.init_conv(x)
        skips = []
        for level in range(1, self.levels + 1):
            skip, x = getattr(self, f"down{level}")(x, emb)
            x = getattr(self, f"down{level}_proj")(x)
            skips.append(skip)
        x = self.bottleneck(x, emb)
        for level in range(self.levels, 0, -1):
            x = getattr(self, f"up{level}")(x, skips.pop(), emb)
        return self.final_conv(x)
