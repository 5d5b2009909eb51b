"""The command line's options, in groups: a group is a dataclass, and each of its fields a flag of that name.

Names and defaults are the released `test.py`'s (github.com/bytedance/InfiniteYou), underscores included.
"""

import dataclasses
import functools
import inspect
import itertools
import json
import os
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
import typer

from infu.checks import shown
from infu.errors import InvalidRequest, MissingFile, UnknownName
from infu.images import read_photo
from infu.models import find_lora_file
from infu.plugin_json import PICTURES, read_numbers, read_plugin
from infu.plugins import IPAdapter, Lora, OminiControl, Plugin, PuLID
from infu.pose import POSES
from infu.regions import REGIONS
from infu.request import GenerationRequest

INFU_VERSIONS = ("v1.0",)


def option(default: Any, text: str) -> Any:
    """A field of a group: its default, and what `--help` says."""
    if isinstance(default, list):
        return field(default_factory=list, metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is loaded."""

    backend: Literal["auto", "pytorch", "mlx"] = option("auto", "auto: MLX on Apple Silicon, else PyTorch.")
    base_model_path: str | None = option(
        None,
        "FLUX.1-dev: a folder, a checkpoint file or a hub id (released: black-forest-labs/FLUX.1-dev). "
        "Without this and --model_dir: the mini model that ships with InfU.",
    )
    model_dir: str | None = option(
        None,
        "InfiniteYou: a folder or a hub id (released: ByteDance/InfiniteYou). Without it but with a base: "
        "plain FLUX, no face.",
    )
    infu_flux_version: str = option("v1.0", "InfiniteYou's release.")
    model_version: str = option("aes_stage2", "aes_stage2 (looks), or sim_stage1 (likeness).")
    transformer_path: str | None = option(
        None, "The base's transformer from elsewhere: folder, file or hub id."
    )
    vae_path: str | None = option(None, "The VAE from elsewhere.")
    text_encoder_path: str | None = option(None, "CLIP from elsewhere.")
    text_encoder_2_path: str | None = option(None, "T5 from elsewhere.")
    infusenet_path: str | None = option(None, "InfuseNet from elsewhere.")
    dtype: Literal["bfloat16", "float16", "float32"] | None = option(
        None, "Default: what this device does best."
    )
    quantize: int | None = option(None, "Keep weights in 8 or 4 bits; MLX also in 6 or 3.")
    quantize_8bit: bool = option(False, "The same as --quantize 8.")
    offload: Literal["model", "sequential"] | None = option(
        None, "Keep on the device only the network (model) or layer (sequential) that works."
    )
    cpu_offload: bool = option(False, "The same as --offload model.")
    cuda_device: int | None = option(None, "Which CUDA device, counted from 0.")

    def loading(self) -> dict[str, Any]:
        """The keyword arguments of `load_backend`. Chooses the CUDA device too: before torch is imported."""
        if self.infu_flux_version not in INFU_VERSIONS:
            raise UnknownName("release of InfiniteYou", self.infu_flux_version, INFU_VERSIONS)
        if self.quantize_8bit and self.quantize not in (None, 8):
            raise InvalidRequest(
                f"--quantize_8bit and --quantize {self.quantize} contradict one another: give one."
            )
        if self.cpu_offload and self.offload not in (None, "model"):
            raise InvalidRequest(
                f"--cpu_offload and --offload {self.offload} contradict one another: give one."
            )
        if self.cuda_device is not None:
            visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
            if visible and not 0 <= self.cuda_device < len(visible):
                raise InvalidRequest(
                    f"--cuda_device must be from 0 to {len(visible) - 1} here, not {self.cuda_device}."
                )
            os.environ["CUDA_VISIBLE_DEVICES"] = (
                visible[self.cuda_device] if visible else str(self.cuda_device)
            )
        values = {name: getattr(self, name) for name in (*PATHS, "model_version", "dtype")}
        return values | {
            "name": self.backend,
            "quantize": 8 if self.quantize_8bit else self.quantize,
            "offload": "model" if self.cpu_offload else self.offload,
        }


PATHS = (
    "base_model_path",
    "model_dir",
    "transformer_path",
    "vae_path",
    "text_encoder_path",
    "text_encoder_2_path",
    "infusenet_path",
)


@dataclass(frozen=True)
class PictureOptions:
    """What is asked for."""

    id_image: list[Path] = option([], "Photograph of the person; repeat for several of one person.")
    id_face: list[int] = option(
        [], "Which face of each photograph, from 0, the nearest; repeat as --id_image."
    )
    id_embedding: Path | None = option(
        None, "Instead of photographs: the face encoder's vector, an .npy file."
    )
    control_image: Path | None = option(None, "Photograph whose head position to take.")
    control_keypoints: Path | None = option(
        None, "Instead of it: five points in pixels, (5, 2), an .npy file."
    )
    pose: str | None = option(None, f"Instead of it: {', '.join(POSES)}.")
    id_mask: str | None = option(
        None, f"Where in the picture the person is: {', '.join(REGIONS)}, or a picture, white there."
    )
    prompt: str = option("A man, portrait, cinematic", "What the picture shows.")
    negative_prompt: str | None = option(None, "What it should not show; needs --true_cfg_scale above 1.")
    true_cfg_scale: float = option(1.0, "Above 1: a second pass with the negative prompt.")
    true_cfg_start_step: int = option(0, "First step of that second pass.")
    seed: int = option(0, "0: a random one.")
    noise: Path | None = option(
        None, "Instead of the seed's: (num_images, 16, height / 8, width / 8), an .npy file."
    )
    num_images: int = option(1, "Pictures, with seeds counting up.")
    width: int = option(864, "Pixels, 64 to 2048.")
    height: int = option(1152, "Pixels, 64 to 2048.")
    num_steps: int | None = option(
        None, "Denoising steps. Default: 30, or what a few-step model is made for."
    )
    guidance_scale: float | None = option(None, "FLUX's guidance. Default: 3.5, or what that model takes.")
    max_sequence_length: int | None = option(None, "T5 tokens of the prompt that are read.")
    infusenet_conditioning_scale: float = option(1.0, "Strength of the likeness.")
    infusenet_guidance_start: float = option(0.0, "Share of the steps before InfuseNet begins.")
    infusenet_guidance_end: float = option(1.0, "Share of the steps after which it ends.")
    enable_realism_lora: bool = option(False, "Add the released realism LoRA.")
    enable_anti_blur_lora: bool = option(False, "Add the released anti-blur LoRA.")
    lora: list[str] = option(
        [], "FILE, FILE:SCALE, or of a control LoRA FILE:SCALE:PICTURE; repeat for several."
    )
    ominicontrol: list[str] = option(
        [],
        "OminiControl's adapter, and the picture of an object or to follow: FILE:SCALE:PICTURE; repeat for "
        "several. Further settings: --plugin.",
    )
    pulid_image: list[Path] = option(
        [], "Photograph of the person for PuLID-FLUX, beside InfU or alone; repeat for several of one person."
    )
    pulid: str = option("0.9.1", "PuLID-FLUX: its version (0.9.1, 0.9.0), or its file.")
    pulid_id_weight: float = option(1.0, "Strength of PuLID's likeness, 0 to 3.")
    pulid_start_step: int = option(0, "First step with PuLID: 4 for photographs, 0 or 1 for other styles.")
    pulid_encoders: Path | None = option(None, "Folder of the networks that look at PuLID's photograph.")
    ip_adapter_image: list[Path] = option(
        [], "Picture whose style is taken, by an IP-Adapter; repeat for a mixture of several."
    )
    ip_adapter: str = option(
        "xlabs", "The IP-Adapter: xlabs (style), instantx, mini-style (the mini model's), or its file."
    )
    ip_adapter_scale: float = option(0.7, "Its strength.")
    ip_adapter_negative_scale: float = option(1.0, "Its strength in the pass with the negative prompt.")
    ip_adapter_start: float = option(0.0, "Share of the steps before it begins.")
    ip_adapter_end: float = option(1.0, "Share of the steps after which it ends.")
    ip_adapter_encoder: Path | None = option(
        None,
        "Folder of the image encoder it was trained with, where that is not image_encoder beside its file: "
        "CLIP ViT-L/14 (XLabs), SigLIP (InstantX).",
    )
    plugin: list[str] = option(
        [],
        'Any plug-in, as a JSON object: \'{"ip_adapter": "FILE", "image": "PICTURE", "scale": 0.7}\'; repeat '
        "for several.",
    )

    def request(self) -> GenerationRequest:
        """The request, all files of it looked at, so that a wrong name shows before a model is loaded."""
        names = {f.name for f in dataclasses.fields(self)} & {
            f.name for f in dataclasses.fields(GenerationRequest)
        }
        values = {name: getattr(self, name) for name in names - {"id_image", "seed"}}
        for name in ("id_embedding", "control_keypoints"):
            values[name] = read_array(name, values[name])
        values["id_images"], values["id_faces"] = self.id_image, self.id_face
        values["seed"] = self.seed or None
        plugins = [*map(read_lora, self.lora), *map(read_ominicontrol, self.ominicontrol)]
        plugins += [*map(read_plugin_text, self.plugin), *self._pulid(), *self._ip_adapter()]
        values["plugins"] = plugins
        return check_photos(GenerationRequest(**values))

    def _pulid(self) -> list[PuLID]:
        if not self.pulid_image:
            return []
        values = {"image": self.pulid_image, "encoders": self.pulid_encoders}
        return [PuLID(self.pulid, id_weight=self.pulid_id_weight, start_step=self.pulid_start_step, **values)]

    def _ip_adapter(self) -> list[IPAdapter]:
        if not self.ip_adapter_image:
            return []
        names = ("scale", "negative_scale", "start", "end")
        values = {name: getattr(self, f"ip_adapter_{name}") for name in names}
        encoder = self.ip_adapter_encoder
        return [IPAdapter(self.ip_adapter, self.ip_adapter_image, image_encoder=encoder, **values)]


@dataclass(frozen=True)
class OutputOptions:
    """What is printed."""

    json: bool = option(False, "One JSON object per picture on standard output, and nothing else there.")
    debug: bool = option(False, "Show the trace of an error.")


def read_array(name: str, path: Path | None) -> np.ndarray | None:
    """The numbers of an `.npy` file. Raises `MissingFile`, `BrokenFile`."""
    return None if path is None else read_numbers(f"--{name}", path)


def read_lora(text: str) -> Lora:
    """`FILE`, `FILE:SCALE` or `FILE:SCALE:PICTURE`."""
    return check_lora(Lora(*split_file(text)))


def read_ominicontrol(text: str) -> OminiControl:
    """`FILE:SCALE:PICTURE`, or the same without a scale: `FILE::PICTURE`."""
    path, scale, image = split_file(text)
    if image is None:
        raise InvalidRequest(f"--ominicontrol is FILE:SCALE:PICTURE, not {shown(text)}.")
    return OminiControl(path, image, 1.0 if scale is None else scale)


def split_file(text: str) -> tuple[str, float | None, str | None]:
    """`FILE`, `FILE:SCALE` or `FILE:SCALE:PICTURE`; SCALE may be empty, and the files' names may hold
    colons."""
    readings: list[tuple[str, float | None, str | None]] = [(text, None, None)]
    for colon in re.finditer(":", text):
        scale, _, image = text[colon.end() :].partition(":")
        try:
            readings.append((text[: colon.start()], float(scale) if scale else None, image or None))
        except ValueError:
            pass  # the colon is a file's
    return next((reading for reading in readings if Path(reading[0]).is_file()), readings[-1])


def read_plugin_text(text: str) -> Plugin:
    """`--plugin`'s JSON; files are named from the folder that the command runs in."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequest(
            f'--plugin is a JSON object as {{"lora": "FILE", "scale": 1.0}}, not {shown(text)}.'
        ) from None
    return read_plugin(values, partial(find_file, Path()))


def find_file(folder: Path, field: str, name: Any) -> Any:
    """What a plug-in's JSON names: a file of `folder`, or the name of something known, such as "0.9.1"."""
    if not isinstance(name, str):
        raise InvalidRequest(f"{field} must name a file, not {shown(name)}.")
    path = folder / Path(name).expanduser()
    return path if path.exists() or field in PICTURES else name


def check_lora(lora: Lora) -> Lora:
    if not find_lora_file(lora.path).is_file():
        raise MissingFile(f"There is no LoRA file {Path(lora.path).name!r}. Check its name and folder.")
    return lora


def check_photos(request: GenerationRequest) -> GenerationRequest:
    """The same request. Raises `PhotoError` where one of its photographs, or a plug-in's, cannot be used."""
    fields = (
        getattr(plugin, name, None) for plugin in request.plugins for name in PICTURES if name != "mask"
    )
    lists = (value if isinstance(value, list | tuple) else [value] for value in fields)
    for photo in (*request.photos, request.control_image, *itertools.chain.from_iterable(lists)):
        if photo is not None:
            read_photo(photo)
    return request


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options: every field of a group becomes a flag with its name. The model's
    can be given by the environment too, as INFU_QUANTIZE for --quantize: a Space has no command line."""
    parameters = []
    groups = {n: kind for n, kind in get_type_hints(command).items() if dataclasses.is_dataclass(kind)}
    for name, parameter in inspect.signature(command).parameters.items():
        flags = [parameter]
        if kind := groups.get(name):
            flags = [make_flag(f, environment=kind is ModelOptions) for f in dataclasses.fields(kind)]
        parameters += [flag.replace(kind=inspect.Parameter.KEYWORD_ONLY) for flag in flags]

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        whole = {
            n: kind(**{f.name: values.pop(f.name) for f in dataclasses.fields(kind)})
            for n, kind in groups.items()
        }
        command(**whole, **values)

    flat.__signature__ = inspect.Signature(parameters)
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def make_flag(entry: dataclasses.Field, environment: bool) -> inspect.Parameter:
    default = entry.default if entry.default is not MISSING else entry.default_factory()
    variable = {"envvar": f"INFU_{entry.name.upper()}", "show_envvar": False} if environment else {}
    flag = typer.Option(f"--{entry.name}", help=entry.metadata["help"], **variable)
    annotation = Annotated[entry.type, flag]
    return inspect.Parameter(
        entry.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
