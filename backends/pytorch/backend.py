"""PytorchBackend: diffusers' FLUX networks and InfuseNet behind `backends.base.Backend`, on CUDA or a CPU."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from backends.base import Backend, Text
from backends.pytorch import dit, infusenet, load
from backends.pytorch.infusenet import InfuseConstants
from backends.pytorch.load import load_network
from backends.pytorch.lora import Branches, embed_controls
from backends.pytorch.plugins import ip_adapter, ominicontrol
from backends.pytorch.plugins.controlnet import PytorchControlNet
from backends.pytorch.plugins.pulid import PytorchPulid
from backends.pytorch.resident import Resident
from infu.cache import digest
from infu.errors import InvalidRequest, NotEnoughMemory
from infu.hooks import NOTHING, Additions, Infused, Run, Runner
from infu.models import ModelFiles, versioned
from infu.noise import pack_latents, unpack_latents
from infu.plugins import ControlNet, IPAdapter, Lora, OminiControl, Plugin, PuLID
from infu.weights.changes import Changes, ControlPicture
from infu.weights.lora import CLIP, NETWORKS, T5, TRANSFORMER, LoraFile


@contextmanager
def told_when_full() -> Iterator[None]:
    """A full device is told as what to do about it."""
    try:
        yield
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        raise NotEnoughMemory(
            "The device's memory is full. Ask for a smaller picture, or load the model with quantize=8 "
            'or 4, or with offload="model" or "sequential" (`python -m infu info` says what fits).'
        ) from None


def on_device(method: Callable) -> Callable:
    """A method that runs networks: without gradients, and once more without the plug-ins' networks that lie
    unused where the device is full."""

    @functools.wraps(method)
    def run(backend: "PytorchBackend", *values, **named):
        try:
            return method(backend, *values, **named)
        except torch.OutOfMemoryError:
            pass  # only after this block are the failed call's tensors let go of
        backend.drop_networks()
        if backend.device == "cuda":
            torch.cuda.empty_cache()
        return method(backend, *values, **named)

    return told_when_full()(torch.inference_mode()(run))


class PytorchBackend(Backend):
    name = "pytorch"

    @told_when_full()
    def __init__(
        self,
        files: ModelFiles,
        dtype: str | None,
        quantize: int | None,
        offload: str | None,
        transformer: nn.Module | None = None,
    ):
        """Load every network of `files`; `transformer`: the base's, where it is loaded already (training),
        and then it stays where it is. Raises `InfuError` for what is missing, broken or does not fit."""
        super().__init__(files)
        self.bits, self.offload = quantize, offload
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = dtype or fastest_dtype(self.device)
        self._branches, self._text_loras = self._make_branches(()), ()
        self._adapters: list[Branches] = []  # OminiControl's, of the request that is running
        if offload == "sequential" and quantize and self.device == "cpu":
            raise InvalidRequest(
                'On a CPU offload="sequential" reads layers from their files as they are, so it cannot be '
                'combined with quantize. Choose one of them; offload="model" goes with both.'
            )
        self._dtype = getattr(torch, self.dtype)
        vae_dtype = torch.float32 if self._dtype == torch.float16 else self._dtype  # float16 decodes to black
        self._clip = self._resident("text_encoder", files)
        self._t5 = self._resident("text_encoder_2", files)
        self._vae = self._resident("vae", files, vae_dtype)
        if transformer is None:
            self._dit = self._resident("transformer", files)
        else:
            self._dit = Resident(lambda device: transformer, self.device, None)
        self._infusenet = self._projection = None
        self._packages: Path | None = None  # of blocks compiled ahead of time
        if files.infusenet is not None:
            self._load_identity(files)
        for resident in (self._clip, self._t5, self._vae, self._dit):
            with resident.use():  # now, so that a broken file is reported here and not by the first request
                pass

    def _resident(self, part: str, files: ModelFiles, dtype: torch.dtype | None = None) -> Resident:
        """One network of the base, or of InfiniteYou."""
        base = files.base / ("transformer" if part == "infusenet" else part)
        return self.make_resident(part, getattr(files, part), base, dtype)

    def make_resident(self, part: str, path: Path, base: Path, dtype: torch.dtype | None = None) -> Resident:
        """A network in `path`, whose config, where it has none of its own, is that of the folder `base`. The
        large ones are quantised and offloaded by layer."""
        large = part in ("transformer", "text_encoder_2", "infusenet", "controlnet")
        options = dict(bits=self.bits, sequential=self.offload == "sequential") if large else {}
        read = functools.partial(load_network, part, path, base, dtype or self._dtype, **options)
        return Resident(lambda device: read(device=device), self.device, self.offload)

    def _load_identity(self, files: ModelFiles) -> None:
        """InfuseNet and projection of one version; nothing changes here unless all of it loads."""
        projection = load.load_projection(files.projection, self._dtype, self.device)
        network = self._resident("infusenet", files)
        with network.use() as loaded:  # as in the constructor: a broken file is reported here
            self._take_packages(loaded)
        self._infusenet, self._projection = network, projection
        self.take_identity(files, projection.proj_in.in_features)

    def compile_ahead(self, folder: Path) -> None:
        """Compile the blocks into `folder`, on the device; it takes minutes. See ahead.py."""
        from backends.pytorch.ahead import compile_blocks

        compile_blocks(self._dit.arrive(), folder)

    def use_packages(self, folder: Path) -> None:
        """Run the blocks that `compile_ahead` wrote into `folder`."""
        self._packages = folder
        for resident in (self._dit, self._infusenet):
            if resident is not None:
                self._take_packages(resident.arrive())

    def _take_packages(self, network: nn.Module) -> None:
        if self._packages is not None:
            from backends.pytorch.ahead import Ahead

            ahead = Ahead(network)
            ahead.load(self._packages)
            network.ahead = (ahead,)  # in a tuple: its parameters are the network's own, not further ones

    @told_when_full()
    def use_version(self, model_version: str) -> None:
        if model_version != self.model_version:
            with self.lock:
                self._load_identity(versioned(self.files, model_version))

    @on_device
    def encode_prompt(self, prompt: str, max_length: int | None = None) -> Text:
        length = max_length or self.tokenizers.t5_length

        def encode() -> Text:
            clip_ids = torch.from_numpy(self.tokenizers.clip(prompt)).to(self.device)
            t5_ids = torch.from_numpy(self.tokenizers.t5(prompt, length)).to(self.device)
            with self._clip.use() as clip:
                pooled = self._branches[CLIP].attach(clip)(clip_ids).pooler_output  # (1, P)
            with self._t5.use() as t5:
                states = (
                    self._branches[T5].attach(t5)(t5_ids).last_hidden_state
                )  # (1, T, joint width); no mask, as FLUX was trained
            return Text(states.to(self._dtype), pooled.to(self._dtype))

        return self.cache("text", (prompt, length, self._text_loras), encode)

    @on_device
    def encode_image(self, picture: np.ndarray) -> Tensor:
        def encode() -> Tensor:
            pixels = torch.from_numpy(picture).to(self.device).permute(2, 0, 1)[None]  # (1, 3, H, W)
            with self._vae.use() as vae:
                latents = vae.encode(
                    (pixels.float() / 127.5 - 1).to(vae.dtype)
                ).latent_dist.mean  # not a sample
                latents = (latents.float() - vae.config.shift_factor) * vae.config.scaling_factor
            return self.array(pack_latents(latents.cpu().numpy()))

        return self.cache("control", digest(picture), encode)

    @on_device
    def project_identity(self, embedding: np.ndarray) -> Tensor:
        def project() -> Tensor:
            return self._projection(self.array(embedding)[None].to(self._dtype))  # (1, 8, joint width)

        return self.cache("identity", digest(embedding), project)

    @on_device
    def make_base_constants(
        self,
        sigmas: Sequence[float],
        width: int,
        height: int,
        text: Text,
        guidance_scale: float,
        controls: Sequence[ControlPicture] = (),
    ) -> dit.Constants:
        network = self._branches[TRANSFORMER].attach(self._dit.arrive())
        constants = dit.make_constants(
            network, sigmas, width, height, text.states, text.pooled, guidance_scale
        )
        control = embed_controls(controls)
        return replace(constants, control=None if control is None else control.to(self._dtype))

    @on_device
    def make_infuse_constants(
        self, sigmas: Sequence[float], width: int, height: int, people: Sequence[Infused], text: Text
    ) -> InfuseConstants:
        network = self._infusenet.arrive()
        identity = torch.cat([person.identity for person in people])  # (P, 8, joint width)
        control = torch.cat([person.control for person in people])  # (P, L, 64)
        constants = dit.make_constants(network, sigmas, width, height, identity, text.pooled, 1.0)
        regions = None
        if people[0].mask is not None:
            masks = self.array(np.concatenate([person.mask for person in people]))
            scales = self.array(np.array([person.scale for person in people]))
            regions = infusenet.make_regions(masks.to(self._dtype), scales.to(self._dtype))
        return InfuseConstants(constants, control.to(self._dtype), people[0].scale, regions)

    @on_device
    def infuse(self, side: InfuseConstants, step: int, latents: Tensor) -> dit.Residuals:
        return infusenet.infuse_all(self._infusenet.arrive(), side, step, latents.to(self._dtype))

    @on_device
    def velocity(
        self, base: dit.Constants, step: int, latents: Tensor, additions: Additions = NOTHING
    ) -> Tensor:
        network = self._branches[TRANSFORMER].attach(self._dit.arrive())
        return dit.velocity(network, base, step, latents.to(self._dtype), additions).float()

    @on_device
    def make_runner(self, plugin: Plugin, run: Run) -> Runner:
        match plugin:
            case ControlNet():
                return PytorchControlNet(plugin, self, run)
            case OminiControl():
                return ominicontrol.make_runner(self, plugin, run)
            case IPAdapter():
                return ip_adapter.make_runner(self, self._dit.arrive(), plugin, run)
            case PuLID():
                return PytorchPulid(plugin, self, run)
        raise InvalidRequest(f"This version has no {type(plugin).__name__}. Leave it out.")

    def adapt(self, changes: Changes) -> tuple[nn.Module, Branches, Branches]:
        """The DiT with one more set of branches, off, until the request is done; these; and its LoRAs'."""
        adapter = Branches([(changes, 1.0)], self.device, on=False)
        self._adapters.append(adapter)
        return adapter.attach(self._dit.arrive()), adapter, self._branches[TRANSFORMER]

    gather = on_device(Backend.gather)

    @on_device
    def decode(self, latents: Tensor, width: int, height: int) -> np.ndarray:
        if self.device != "cpu":  # a CPU would read both again for the next picture of the request
            self._rest_denoiser()
        unpacked = torch.from_numpy(unpack_latents(self.numpy(latents), width, height)).to(self.device)
        with self._vae.use() as vae:
            scaled = unpacked / vae.config.scaling_factor + vae.config.shift_factor
            pixels = vae.decode(scaled.to(vae.dtype)).sample[0].float()  # (3, H, W)
        return (pixels / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy()

    def array(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(values, np.float32)).to(self.device)

    def numpy(self, array: Tensor) -> np.ndarray:
        return array.float().cpu().numpy()

    def evaluate(self, latents: Tensor) -> None:
        """Nothing to do: torch computes at once."""

    @contextmanager
    def plugged(self, plugins: Sequence[Lora]) -> Iterator[list[LoraFile]]:
        files = self.read_loras(plugins)
        self._branches = self._make_branches(files)
        self._text_loras = tuple((file, scale) for file, scale in files if file.changes_text)
        try:
            yield [file for file, _ in files]
        finally:
            for branches in (*self._branches.values(), *self._adapters):
                branches.detach()
            self._adapters = []
            self._branches, self._text_loras = self._make_branches(()), ()
            self._rest_denoiser()
            if self.offload:
                self.drop_networks()

    def _make_branches(self, files: Sequence[tuple[LoraFile, float]]) -> dict[str, Branches]:
        """For each network that a LoRA may change, its branches."""
        return {
            network: Branches([(file.changes[network], scale) for file, scale in files], self.device)
            for network in NETWORKS
        }

    @functools.cached_property
    def module_shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The modules of the networks that a LoRA may change, from their configs."""
        files = self.files
        return {part: load.read_shapes(part, getattr(files, part), files.base / part) for part in NETWORKS}

    def _rest_denoiser(self) -> None:
        for resident in (self._dit, self._infusenet):
            if resident is not None:
                resident.leave()


def fastest_dtype(device: str) -> str:
    """bfloat16 where the device has it; on a CPU without AVX-512 BF16 or AMX it is 10 to 100 times slower
    than float32, and on an old GPU float16 is the only fast one."""
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"
