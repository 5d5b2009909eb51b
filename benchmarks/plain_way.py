"""The plain way to run InfU: diffusers' own networks, called in the released pipeline's order, nothing kept.

What the benchmarks compare with, and an oracle for the tests: no line of our own forward is in it.
"""

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from infu.noise import pack_latents, unpack_latents
from infu.request import GenerationRequest


class PlainWay:
    """The networks of a `PytorchBackend`, run by diffusers' forwards (`pipeline_flux_infusenet.py`)."""

    def __init__(self, backend):
        self.backend, self.device, self.dtype = backend, backend.device, getattr(torch, backend.dtype)
        networks = (backend._clip, backend._t5, backend._vae, backend._dit, backend._infusenet)
        self.clip, self.t5, self.vae, self.dit, self.infusenet = (network.arrive() for network in networks)
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(backend.files.scheduler)

    @torch.inference_mode()
    def generate(
        self, request: GenerationRequest, control: np.ndarray, noise: np.ndarray, on_step=None
    ) -> np.ndarray:
        """control uint8 (H, W, 3), noise (1, 16, h, w) -> float32 (H, W, 3) in 0..1."""
        width, height = request.run_size
        tokenizers, dtype = self.backend.tokenizers, self.dtype
        pooled = self.clip(self.ids(tokenizers.clip(request.prompt))).pooler_output.to(dtype)
        states = self.t5(self.ids(tokenizers.t5(request.prompt))).last_hidden_state.to(dtype)
        embedding = torch.from_numpy(request.id_embedding).to(self.device, dtype)
        identity = self.backend._projection(embedding[None])
        hint = self.encode(control)
        latents = torch.from_numpy(pack_latents(noise)).to(self.device, dtype)
        latents = self.denoise(request, latents, states, pooled, identity, hint, on_step)
        unpacked = torch.from_numpy(unpack_latents(latents.float().cpu().numpy(), width, height)).to(
            self.device
        )
        config = self.vae.config
        decoded = self.vae.decode(
            (unpacked / config.scaling_factor + config.shift_factor).to(self.vae.dtype)
        ).sample
        return (decoded[0].float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy()

    def denoise(self, request, latents, states, pooled, identity, hint, on_step=None) -> Tensor:
        """Every step: FluxControlNetModel, then FluxTransformer2DModel, then the scheduler."""
        width, height = request.run_size
        img_ids = torch.zeros(height // 16, width // 16, 3, device=self.device, dtype=self.dtype)
        img_ids[..., 1] += torch.arange(height // 16, device=self.device)[:, None]
        img_ids[..., 2] += torch.arange(width // 16, device=self.device)
        img_ids = img_ids.view(-1, 3)
        ids = {"img_ids": img_ids, "txt_ids": img_ids.new_zeros(states.shape[1], 3)}
        guidance = torch.full((1,), request.guidance_scale, device=self.device)
        mu = 0.5 + (1.15 - 0.5) * (latents.shape[1] - 256) / (4096 - 256)
        sigmas = np.linspace(1.0, 1 / request.num_steps, request.num_steps)
        self.scheduler.set_timesteps(sigmas=sigmas, mu=mu, device=self.device)
        for step, t in enumerate(self.scheduler.timesteps):
            timestep = t.expand(1).to(self.dtype) / 1000
            doubles, singles = self.infusenet(
                hidden_states=latents,
                controlnet_cond=hint,
                encoder_hidden_states=identity,
                pooled_projections=pooled,
                timestep=timestep,
                guidance=torch.ones_like(guidance),
                img_ids=img_ids,
                txt_ids=img_ids.new_zeros(identity.shape[1], 3),
                conditioning_scale=request.infusenet_conditioning_scale,
                return_dict=False,
            )
            velocity = self.dit(
                hidden_states=latents,
                encoder_hidden_states=states,
                pooled_projections=pooled,
                timestep=timestep,
                guidance=guidance,
                controlnet_block_samples=doubles,
                controlnet_single_block_samples=singles,
                return_dict=False,
                **ids,
            )[0]
            latents = self.scheduler.step(velocity, t, latents, return_dict=False)[0]
            if on_step:
                on_step(step)
        return latents

    def encode(self, control: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(control).to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1
        mean = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mean.float()
        scaled = (mean - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        return torch.from_numpy(pack_latents(scaled.cpu().numpy())).to(self.device, self.dtype)

    def ids(self, ids: np.ndarray) -> Tensor:
        return torch.from_numpy(ids).to(self.device)
