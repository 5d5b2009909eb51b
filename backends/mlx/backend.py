"""MlxBackend: our MLX networks behind `backends.base.Backend`, on Apple Silicon's GPU; on a CPU for tests."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.base import Backend, Text
from backends.mlx import dit, infusenet, load
from backends.mlx.lora import Branches, branched, embed_controls, weight_shapes
from backends.mlx.plugins import ip_adapter, ominicontrol
from backends.mlx.plugins.controlnet import MlxControlNet
from backends.mlx.plugins.pulid import MlxPulid
from backends.mlx.quantise import check_bits
from backends.mlx.stream import is_in_block, is_modulation
from infu.cache import digest
from infu.errors import InvalidRequest
from infu.hooks import NOTHING, Additions, Infused, Run, Runner
from infu.mac import choose_offload
from infu.memory import read_machine
from infu.models import ModelFiles, versioned
from infu.noise import pack_latents, unpack_latents
from infu.plugins import ControlNet, IPAdapter, Lora, OminiControl, Plugin, PuLID
from infu.weights.changes import Changes, ControlPicture
from infu.weights.lora import CLIP, T5, TRANSFORMER, LoraFile

MAX_CACHE = 1 << 30  # bytes of freed arrays MLX keeps for reuse: a step's activations, not whole networks


class MlxBackend(Backend):
    name = "mlx"

    def __init__(self, files: ModelFiles, dtype: str | None, quantize: int | None, offload: str | None):
        """Load every network of `files`. Raises `InfuError` for what is missing, broken or does not fit."""
        check_bits(quantize)
        if dtype == "float16":
            raise InvalidRequest("FLUX makes NaN in float16 on MLX. Choose bfloat16 or float32.")
        super().__init__(files)
        mx.set_cache_limit(MAX_CACHE)
        self.bits = quantize
        self.device = "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"
        self.dtype = dtype or ("bfloat16" if self.device == "gpu" else "float32")
        self._dtype = getattr(mx, self.dtype)
        self.offload = offload or choose_offload(files, self.dtype, quantize, read_machine()["usable"])
        self._clip = Encoder(
            partial(load.load_clip, files.text_encoder, files.base / "text_encoder", self._dtype)
        )
        self._t5 = Encoder(self._loader(load.load_t5, "text_encoder_2", files))
        self._rest_encoders()  # read all the same: a broken file is reported here, not by the first request
        self._vae = load.load_vae(files.vae, files.base / "vae", self._dtype)
        self._dit = self._loader(load.load_dit, "transformer", files)()
        self._shapes = weight_shapes(self._dit)  # for LoRAs, also while it has some
        self._branches: list[Branches] = []  # of the request that is running: its LoRAs', then OminiControl's
        self._infusenet = self._projection = None
        self._text_loras: tuple[tuple[LoraFile, float], ...] = ()
        if files.infusenet is not None:
            self._load_identity(files)
        self._compile()

    def _loader(self, load_network: Callable[..., Any], part: str, files: ModelFiles) -> Callable[[], Any]:
        """What loads DiT, InfuseNet or T5: quantised, and as much of it left in its files as `offload` says.
        It does not hold the backend: one that is let go of is gone at once, not when cycles are sought."""
        base = files.base / ("transformer" if part == "infusenet" else part)
        streamed = is_in_block if self.offload == "sequential" or part == "text_encoder_2" else is_modulation
        options = (self._dtype, self.bits, streamed if self.offload else None)
        return partial(load_network, getattr(files, part), base, *options)

    def load_controlnet(self, path: Path) -> tuple[infusenet.InfuseNet, Callable[..., dit.Residuals]]:
        """A ControlNet, loaded as InfuseNet is, and its forward."""
        streamed = is_in_block if self.offload == "sequential" else is_modulation
        options = (self._dtype, self.bits, streamed if self.offload else None)
        network = load.load_controlnet(path, self.files.base / "transformer", *options)
        return network, self._forward(network)

    def _forward(self, side: infusenet.InfuseNet) -> Callable[..., dit.Residuals]:
        """InfuseNet's or a ControlNet's, compiled where layers are not computed one by one."""
        dtype = self._dtype

        def infuse(latents, constants, scale):
            return side(latents.astype(dtype), constants, scale)

        return infuse if self.offload == "sequential" else mx.compile(infuse)

    def _load_identity(self, files: ModelFiles) -> None:
        """InfuseNet and projection of one version; nothing changes here unless all of it loads."""
        network = self._loader(load.load_infusenet, "infusenet", files)()
        projection = load.load_projection(files.projection, self._dtype)
        self._infusenet, self._projection = network, projection
        self.take_identity(files, projection.proj_in.weight.shape[1])

    def _compile(self) -> None:
        """Trace anew: a compiled function keeps the arrays of the network it was traced with."""
        network, dtype = self._dit, self._dtype

        def velocity(latents, constants, residuals):
            additions = Additions(residuals=residuals)
            return network(latents.astype(dtype), constants, additions).astype(mx.float32)

        self._velocity = velocity if self.offload == "sequential" else mx.compile(velocity)
        self._infuse = self._forward(self._infusenet)

    def use_version(self, model_version: str) -> None:
        if model_version != self.model_version:
            with self.lock:
                self._load_identity(versioned(self.files, model_version))
                self._compile()

    def encode_prompt(self, prompt: str, max_length: int | None = None) -> Text:
        length = max_length or self.tokenizers.t5_length

        def encode() -> Text:
            clip_loras, t5_loras = (
                [(file.changes[network], scale) for file, scale in self._text_loras] for network in (CLIP, T5)
            )
            with branched(self._clip.network(), clip_loras, self._dtype) as clip:
                pooled = clip(mx.array(self.tokenizers.clip(prompt))).astype(self._dtype)  # (1, P)
                mx.eval(pooled)
            with branched(self._t5.network(), t5_loras, self._dtype) as t5:
                states = t5(mx.array(self.tokenizers.t5(prompt, length))).astype(self._dtype)
                mx.eval(states)  # (1, T, joint width)
            return Text(states, pooled)

        return self.cache("text", (prompt, length, self._text_loras), encode)

    def encode_image(self, picture: np.ndarray) -> mx.array:
        def encode() -> mx.array:
            latents = self._vae.encode(
                mx.array(picture.astype(np.float32) / 127.5 - 1)[None]
            )  # (1, h, w, 16)
            return self.array(pack_latents(self.numpy(latents).transpose(0, 3, 1, 2)))

        return self.cache("control", digest(picture), encode)

    def project_identity(self, embedding: np.ndarray) -> mx.array:
        def project() -> mx.array:
            tokens = self._projection(mx.array(embedding)[None].astype(self._dtype))  # (1, 8, joint width)
            mx.eval(tokens)
            return tokens

        return self.cache("identity", digest(embedding), project)

    def make_base_constants(
        self,
        sigmas: Sequence[float],
        width: int,
        height: int,
        text: Text,
        guidance_scale: float,
        controls: Sequence[ControlPicture] = (),
    ) -> dit.Constants:
        self._rest_encoders()
        constants = dit.make_constants(
            self._dit, sigmas, width, height, text.states, text.pooled, guidance_scale
        )
        control = embed_controls(controls)
        return evaluated(constants._replace(control=None if control is None else control.astype(self._dtype)))

    def make_infuse_constants(
        self,
        sigmas: Sequence[float],
        width: int,
        height: int,
        people: Sequence[Infused],
        text: Text,
    ) -> infusenet.InfuseConstants:
        identity = mx.concatenate([person.identity for person in people])  # (P, 8, joint width)
        control = mx.concatenate([person.control for person in people]).astype(self._dtype)  # (P, L, 64)
        given = (self._infusenet, sigmas, width, height, identity, text.pooled, control)
        constants = infusenet.make_infuse_constants(*given)._replace(scale=people[0].scale)
        if people[0].mask is not None:
            masks = self.array(np.concatenate([person.mask for person in people]))
            scales = self.array(np.array([person.scale for person in people]))
            regions = infusenet.make_regions(masks.astype(self._dtype), scales.astype(self._dtype))
            constants = constants._replace(regions=regions)
        return evaluated(constants)

    def infuse(self, side: infusenet.InfuseConstants, step: int, latents: mx.array) -> dit.Residuals:
        return self._infuse(latents, side.at(step), side.scale)

    def velocity(
        self, base: dit.Constants, step: int, latents: mx.array, additions: Additions = NOTHING
    ) -> mx.array:
        if additions.computes:  # its functions are made anew for every request: nothing to compile
            return self._dit(latents.astype(self._dtype), base.at(step), additions).astype(mx.float32)
        return self._velocity(latents, base.at(step), additions.residuals)

    def make_runner(self, plugin: Plugin, run: Run) -> Runner:
        match plugin:
            case ControlNet():
                return MlxControlNet(plugin, self, run)
            case OminiControl():
                return ominicontrol.make_runner(self, plugin, run)
            case IPAdapter():
                return ip_adapter.make_runner(self, self._dit, self._dtype, plugin, run)
            case PuLID():
                return MlxPulid(plugin, self, run)
        raise InvalidRequest(f"This version has no {type(plugin).__name__}. Leave it out.")

    def adapt(self, changes: Changes) -> tuple[nn.Module, Branches, Branches]:
        """The DiT with one more set of branches, off, until the request is done; these; and its LoRAs'."""
        loras = self._branches[0]
        loras.switch(False)  # what it exchanges must be the network's own
        adapter = Branches(self._dit, [(changes, 1.0)], self._dtype)
        adapter.switch(False)
        loras.switch(True)
        self._branches.append(adapter)
        return self._dit, adapter, loras

    def decode(self, latents: mx.array, width: int, height: int) -> np.ndarray:
        unpacked = unpack_latents(self.numpy(latents), width, height).transpose(0, 2, 3, 1)  # (1, h, w, 16)
        mx.clear_cache()  # the loop's buffers fit nothing in the VAE, whose peak is the higher
        pixels = self.numpy(self._vae.decode(self.array(unpacked)))[0]  # (H, W, 3)
        mx.clear_cache()
        return np.clip(pixels / 2 + 0.5, 0, 1)

    def array(self, values: np.ndarray) -> mx.array:
        return mx.array(np.asarray(values, np.float32))

    def numpy(self, array: mx.array) -> np.ndarray:
        return np.array(array.astype(mx.float32))

    def evaluate(self, latents: mx.array) -> None:
        mx.eval(latents)

    @contextmanager
    def plugged(self, plugins: Sequence[Lora]) -> Iterator[list[LoraFile]]:
        files = self.read_loras(plugins)
        changes = [(file.changes[TRANSFORMER], scale) for file, scale in files]
        self._branches = [Branches(self._dit, changes, self._dtype)]
        self._text_loras = tuple((file, scale) for file, scale in files if file.changes_text)
        if files:
            self._compile()
        try:
            yield [file for file, _ in files]
        finally:
            for branches in reversed(self._branches):
                branches.detach()
            self._branches, self._text_loras = [], ()
            if files:
                self._compile()

    def drop_networks(self) -> None:
        super().drop_networks()
        mx.clear_cache()

    @property
    def module_shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        return {TRANSFORMER: self._shapes, CLIP: self._clip.shapes, T5: self._t5.shapes}

    def _rest_encoders(self) -> None:
        """Before the loop, where memory is short: CLIP and T5 go until the next new prompt, and what the
        plug-ins' runners no longer need."""
        if self.offload:
            self.drop_networks()
            self._clip.drop()
            self._t5.drop()
        mx.clear_cache()


class Encoder:
    """A text encoder that can be dropped, and is read again when it is next wanted."""

    def __init__(self, read: Callable[[], nn.Module]):
        self._read, self._network = read, read()
        self.shapes = weight_shapes(self._network)  # for LoRAs, also while it is dropped

    def network(self) -> nn.Module:
        if self._network is None:
            self._network = self._read()
        return self._network

    def drop(self) -> None:
        self._network = None


def evaluated(constants: Any) -> Any:
    """Computed now and once: a lazy constant would be computed in every step."""
    mx.eval(constants)
    return constants
