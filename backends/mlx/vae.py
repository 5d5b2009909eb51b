"""FLUX's VAE: pictures to latents and back (arXiv 2112.10752; diffusers' names, `AutoencoderKL`).

A feature map is a list of bands, arrays (B, rows, W, C) one below the other: one for a small picture. What
looks beyond a row (3 x 3 convolutions, the statistics of group norms, attention) looks beyond the band too,
so a cut changes the memory and not the picture. Every band is computed before the next one is begun.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import mlx.nn as nn

NORM_EPS = 1e-6  # of every group norm; MLX's own default is 1e-5
MAX_BAND = 1 << 17  # pixels of the picture in one band
MAX_SCORES = 1 << 25  # attention scores in memory at once, float32

Map = list[mx.array]


@dataclass(frozen=True)
class VAEConfig:
    """The fields of `config.json` that the VAE is built from."""

    in_channels: int
    out_channels: int
    latent_channels: int
    block_out_channels: Sequence[int]
    layers_per_block: int
    norm_num_groups: int
    scaling_factor: float
    shift_factor: float

    @property
    def factor(self) -> int:
        """Pixels per latent pixel."""
        return 2 ** (len(self.block_out_channels) - 1)


class VAE(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)

    def encode(self, pixels: mx.array, max_band: int = MAX_BAND) -> mx.array:
        """Pixels -1..1 (B, 8 h, 8 w, 3) -> scaled latents float32 (B, h, w, 16): the mean, not a sample."""
        rows = max(1, max_band // pixels.shape[2] // self.config.factor) * self.config.factor
        moments = self.encoder(cut(pixels.astype(self.encoder.conv_in.weight.dtype), rows))
        mean = mx.split(moments.astype(mx.float32), 2, axis=-1)[0]
        return (mean - self.config.shift_factor) * self.config.scaling_factor

    def decode(self, latents: mx.array, max_band: int = MAX_BAND) -> mx.array:
        """Scaled latents float32 (B, h, w, 16) -> pixels around -1..1, float32 (B, 8 h, 8 w, 3)."""
        latents = latents / self.config.scaling_factor + self.config.shift_factor
        rows = max(1, max_band // latents.shape[2] // self.config.factor**2)
        return self.decoder(latents.astype(self.decoder.conv_in.weight.dtype), rows).astype(mx.float32)


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = make_conv(config.in_channels, channels[0])
        self.down_blocks = [
            DownBlock(channels[max(i - 1, 0)], c, config, is_last=i == len(channels) - 1)
            for i, c in enumerate(channels)
        ]
        self.mid_block = MidBlock(channels[-1], groups)
        self.conv_norm_out = GroupNorm(groups, channels[-1])
        self.conv_out = make_conv(channels[-1], 2 * config.latent_channels)

    def __call__(self, bands: Map) -> mx.array:
        """-> mean and log-variance (B, h, w, 32)."""
        bands = list(convolve(self.conv_in, bands))
        for block in self.down_blocks:
            bands = block(bands)
        bands = self.mid_block([mx.concatenate(bands, axis=1)])
        return next(convolve(self.conv_out, bands, self.conv_norm_out.activation(bands)))


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = make_conv(config.latent_channels, channels[0])
        self.mid_block = MidBlock(channels[0], groups)
        self.up_blocks = [
            UpBlock(channels[max(i - 1, 0)], c, config, is_last=i == len(channels) - 1)
            for i, c in enumerate(channels)
        ]
        self.conv_norm_out = GroupNorm(groups, channels[-1])
        self.conv_out = make_conv(channels[-1], config.out_channels)

    def __call__(self, latents: mx.array, rows: int) -> mx.array:
        """latents (B, h, w, 16), bands of `rows` of them -> pixels (B, 8 h, 8 w, 3)."""
        bands = self.mid_block(list(convolve(self.conv_in, [latents])))
        bands = cut(bands[0], rows)
        for block in self.up_blocks:
            bands = block(bands)
        activation = self.conv_norm_out.activation(bands)
        return mx.concatenate(list(convolve(self.conv_out, bands, activation)), axis=1)


class DownBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, config: VAEConfig, is_last: bool):
        super().__init__()
        groups = config.norm_num_groups
        self.resnets = [
            ResnetBlock(inputs if i == 0 else outputs, outputs, groups)
            for i in range(config.layers_per_block)
        ]
        self.downsamplers = [] if is_last else [Downsample(outputs)]

    def __call__(self, bands: Map) -> Map:
        for layer in (*self.resnets, *self.downsamplers):
            bands = layer(bands)
        return bands


class UpBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, config: VAEConfig, is_last: bool):
        super().__init__()
        groups = config.norm_num_groups
        self.resnets = [
            ResnetBlock(inputs if i == 0 else outputs, outputs, groups)
            for i in range(config.layers_per_block + 1)
        ]
        self.upsamplers = [] if is_last else [Upsample(outputs)]

    def __call__(self, bands: Map) -> Map:
        for layer in (*self.resnets, *self.upsamplers):
            bands = layer(bands)
        return bands


class MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnets = [ResnetBlock(channels, channels, groups) for _ in range(2)]
        self.attentions = [Attention(channels, groups)]

    def __call__(self, bands: Map) -> Map:
        bands = self.resnets[0](bands)
        return self.resnets[1]([self.attentions[0](bands[0])])


class ResnetBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.norm1, self.norm2 = GroupNorm(groups, inputs), GroupNorm(groups, outputs)
        self.conv1, self.conv2 = make_conv(inputs, outputs), make_conv(outputs, outputs)
        if inputs != outputs:
            self.conv_shortcut = nn.Conv2d(inputs, outputs, kernel_size=1)

    def __call__(self, bands: Map) -> Map:
        hidden = list(convolve(self.conv1, bands, self.norm1.activation(bands)))
        out = []
        for band, y in zip(bands, convolve(self.conv2, hidden, self.norm2.activation(hidden)), strict=True):
            out.append((self.conv_shortcut(band) if "conv_shortcut" in self else band) + y)
            mx.eval(out[-1])
        return out


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = make_conv(channels, channels)

    def __call__(self, bands: Map) -> Map:
        """Every second row and column, padded below and at the right only."""
        out = []
        for i in range(len(bands)):
            x, _, below = with_neighbours(bands, i, above=False)
            out.append(padded_conv(self.conv, x, (0, 1 - below), (0, 1), stride=2))
            mx.eval(out[-1])
        return out


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = make_conv(channels, channels)

    def __call__(self, bands: Map) -> Map:
        """Every pixel four times, then the convolution."""
        out = []
        for i in range(len(bands)):
            x, above, below = with_neighbours(bands, i)
            x = mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)
            x = x[:, above : x.shape[1] - below]  # of a neighbour's row doubled, one is enough
            out.append(padded_conv(self.conv, x, (1 - above, 1 - below), (1, 1)))
            mx.eval(out[-1])
        return out


class Attention(nn.Module):
    """One head over all pixels; float32, a few queries at a time."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = GroupNorm(groups, channels)
        self.to_q, self.to_k = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.to_v, self.to_out = nn.Linear(channels, channels), [nn.Linear(channels, channels)]

    def __call__(self, x: mx.array) -> mx.array:
        """x (B, h, w, C) -> the same."""
        scale, shift = self.group_norm.affine([x])
        y = (x.astype(mx.float32) * scale + shift).astype(x.dtype).flatten(1, 2)[:, None]  # (B, 1, L, C)
        q, k, v = (f(y).astype(mx.float32) for f in (self.to_q, self.to_k, self.to_v))
        length, out = q.shape[2], []
        size = max(1, MAX_SCORES // length)
        for start in range(0, length, size):
            some = q[:, :, start : start + size]
            out.append(mx.fast.scaled_dot_product_attention(some, k, v, scale=q.shape[-1] ** -0.5))
            mx.eval(out[-1])
        y = mx.concatenate(out, axis=2).astype(x.dtype).reshape(x.shape)
        return x + self.to_out[0](y)


class GroupNorm(nn.Module):
    """Group norm in float32, its mean and variance those of the whole map."""

    def __init__(self, groups: int, channels: int):
        super().__init__()
        self.groups = groups
        self.weight, self.bias = mx.ones(channels), mx.zeros(channels)

    def affine(self, bands: Map) -> tuple[mx.array, mx.array]:
        """-> scale and shift, float32 (B, 1, 1, C): the norm of a pixel is x * scale + shift."""
        channels = bands[0].shape[-1]
        mean = self._mean(bands, lambda x: x)
        variance = self._mean(bands, lambda x: mx.square(x - mean))
        scale = self.weight.astype(mx.float32).reshape(1, 1, 1, channels) * mx.rsqrt(variance + NORM_EPS)
        return scale, self.bias.astype(mx.float32) - mean * scale

    def activation(self, bands: Map) -> Callable[[mx.array], mx.array]:
        """-> the norm and SiLU of any part of this map."""
        scale, shift = self.affine(bands)
        return lambda x: activate(x, scale, shift)

    def _mean(self, bands: Map, of: Callable[[mx.array], mx.array]) -> mx.array:
        """The mean over rows, columns and a group's channels, (B, 1, 1, C). Row by row first, so that the
        order of the additions, and every bit, is the same however the map is cut."""
        B, _, W, C = bands[0].shape
        sums = []
        for band in bands:
            sums.append(of(band.astype(mx.float32)).sum(axis=2))  # (B, rows, C)
            mx.eval(sums[-1])
        rows = mx.concatenate(sums, axis=1)
        means = (rows.sum(axis=1) / (W * rows.shape[1])).reshape(B, self.groups, -1).mean(axis=2)
        return mx.repeat(means, C // self.groups, axis=1)[:, None, None]


@partial(mx.compile, shapeless=True)
def activate(x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
    return nn.silu(x.astype(mx.float32) * scale + shift).astype(x.dtype)


def make_conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3)  # padded by `padded_conv`, which knows where the edge is


def cut(x: mx.array, rows: int) -> Map:
    return [x[:, start : start + rows] for start in range(0, x.shape[1], rows)]


def convolve(
    conv: nn.Conv2d, bands: Map, before: Callable[[mx.array], mx.array] = lambda x: x
) -> Iterator[mx.array]:
    """3 x 3 convolution of `before` (of each pixel), band by band, zeros around the whole map."""
    for i in range(len(bands)):
        x, above, below = with_neighbours(bands, i)
        y = padded_conv(conv, before(x), (1 - above, 1 - below), (1, 1))
        mx.eval(y)
        yield y


def with_neighbours(bands: Map, i: int, above: bool = True) -> tuple[mx.array, int, int]:
    """Band i with the nearest row of the band above and below, and how many there were: 0 at an edge."""
    upper = [bands[i - 1][:, -1:]] if above and i > 0 else []
    lower = [bands[i + 1][:, :1]] if i + 1 < len(bands) else []
    return mx.concatenate([*upper, bands[i], *lower], axis=1), len(upper), len(lower)


def padded_conv(
    conv: nn.Conv2d, x: mx.array, rows: tuple[int, int], columns: tuple[int, int], stride: int = 1
) -> mx.array:
    """Zeros before and after the rows and columns, then the convolution."""
    padding = [rows[0], columns[0]], [rows[1], columns[1]]
    return mx.conv_general(x, conv.weight, stride=stride, padding=padding) + conv.bias
