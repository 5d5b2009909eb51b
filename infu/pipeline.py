"""generate(): the whole way of one request, from photograph and sentence to pictures.

Follows the released InfiniteYou pipeline (arXiv 2503.16418, `pipelines/pipeline_infu_flux.py`), in which
InfuseNet reads identity tokens in place of the text and its residuals are added to the DiT's blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from infu.errors import InvalidRequest, NonFiniteError
from infu.few_steps import settle
from infu.flow import make_sigmas
from infu.hooks import NOTHING, Additions, Infused, Run, Runner
from infu.images import fit_picture, pad_picture, read_photo
from infu.keypoints import draw_keypoints, fit_control_photo
from infu.metadata import describe, picture_metadata
from infu.noise import make_noise, pack_latents
from infu.plugins import Lora, Person
from infu.pose import place_pose
from infu.preview import draw_preview
from infu.regions import read_mask, to_latent_grid
from infu.request import GenerationRequest
from infu.room import check_room, people_at_once
from infu.weights.changes import ControlPicture
from infu.weights.lora import LoraFile

if TYPE_CHECKING:
    from backends.base import Backend

NO_FACES = (
    "This model was loaded without InfiniteYou's weights and cannot take a face. Load it with model_dir, or "
    "leave the photo out."
)


@dataclass(frozen=True, eq=False)
class Step:
    """After step `step` of `num_steps` (both count over all pictures, from 1). `preview()` makes a small
    PIL picture; it costs nothing until it is called, or until the step goes to another process."""

    step: int
    num_steps: int
    preview: Callable[[], Image.Image]

    def __reduce__(self):  # the arrays that `preview` holds stay where the networks are
        return seen_step, (self.step, self.num_steps, self.preview())


@dataclass(frozen=True, eq=False)
class Result:
    """What a request made. `pixels`: float32 (num_images, height, width, 3) in 0..1; `latents`: the final
    packed latents, float32 (num_images, L, 64); `metadata`: what is written into the PNG, with `partial`, the
    steps that were run, where the run was ended early; `notes`: what the user should know (a prompt cut
    short, a LoRA's unmatched keys)."""

    pixels: np.ndarray
    latents: np.ndarray
    seeds: tuple[int, ...]
    metadata: dict[str, Any]
    notes: tuple[str, ...] = field(default=())

    @property
    def images(self) -> list[Image.Image]:
        return [Image.fromarray(np.rint(p * 255).astype(np.uint8)) for p in self.pixels]

    @property
    def image(self) -> Image.Image:
        return self.images[0]

    @property
    def seed(self) -> int:
        return self.seeds[0]

    def __reduce__(self):  # to another process in 8 bits, a quarter of the bytes: `images` are the same
        levels = np.stack([np.asarray(image) for image in self.images])
        return whole_result, (levels, self.latents, self.seeds, self.metadata, self.notes)


def seen_step(step: int, num_steps: int, picture: Image.Image) -> Step:
    return Step(step, num_steps, lambda: picture)


def whole_result(levels: np.ndarray, *rest: Any) -> Result:
    return Result(levels.astype(np.float32) / 255, *rest)


def generate(
    request: GenerationRequest,
    backend: Backend,
    noise: np.ndarray | None = None,
    on_step: Callable[[int, int, Callable[[], Image.Image]], None] | None = None,
) -> Result:
    """Make the pictures of one request.

    `noise`: float32 (num_images, 16, height / 8, width / 8), None to make it from the seed.
    `on_step(step, num_steps, preview)` is called after every step, step counting from 1; raise `Cancelled`
    in it to stop. Raises `InfuError` for what its reader can put right.
    """
    pictures = []
    for event in stream(request, backend, noise):
        if isinstance(event, Result):
            pictures.append(event)
        elif on_step:
            on_step(event.step, event.num_steps, event.preview)
    return join(pictures)


def join(pictures: Sequence[Result]) -> Result:
    """The pictures of one request, made one by one, as one result."""
    first = pictures[0]
    return Result(
        np.concatenate([picture.pixels for picture in pictures]),
        np.concatenate([picture.latents for picture in pictures]),
        tuple(picture.seed for picture in pictures),
        first.metadata | {"num_images": len(pictures)},
        first.notes,
    )


def stream(
    request: GenerationRequest,
    backend: Backend,
    noise: np.ndarray | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> Iterator[Step | Result]:
    """`generate` as a generator: a `Step` after every step, a `Result` of one picture after each picture.

    Closing it stops the run. `enough` is asked after every step: once it is true, the run ends with the
    picture that this step foresees.
    """
    noise = check_noise(request, noise)
    request, advice = settle(request, backend)
    check_room(request, backend)
    read = read_photographs(request, backend)  # no face: an error, before any network runs
    with backend.lock, backend.plugged(request.loras) as loras:
        controls = encode_controls(request, backend, loras)
        text = backend.encode_prompt(request.prompt, request.max_sequence_length)
        notes = advice + [note for lora in loras for note in lora.notes]
        notes += backend.tokenizers.notes(request.prompt, request.max_sequence_length)
        negative = encode_negative(request, backend)
        constants = make_constants(read, backend, text, negative, controls)
        notes += [note for runner in constants.runners for note in runner.notes]
        metadata = describe(request, backend, loras)
        for k in range(request.num_images):  # one by one: picture k is exactly the single run of its seed
            latents, steps = yield from denoise(request, backend, k, noise[k : k + 1], constants, enough)
            final = backend.numpy(latents)
            pixels = decode(request, backend, latents, final)
            early = {} if steps == request.num_steps else {"partial": steps}
            made = picture_metadata(metadata, k) | early
            yield Result(pixels[None], final, request.seeds[k : k + 1], made, tuple(notes))
            if enough():
                return


@dataclass(frozen=True, eq=False)
class Constants:
    """What every step of every picture of a request shares: `sigmas`, N + 1 floats from 1 to 0, the
    backend's constants of the DiT and of the negative pass (None where there is none), and the networks
    beside the DiT; `blind`: the same without their pictures, where `image_guidance` asks for that pass."""

    sigmas: list[float]
    base: Any
    opposite: Any
    runners: list[Runner]
    blind: list[Runner] | None
    image_guidance: float


def make_constants(request, backend, text, negative, controls) -> Constants:
    width, height = request.run_size
    sigmas = make_sigmas(request.num_steps, width // 16 * (height // 16), backend.scheduler)
    size, steered = (sigmas, width, height), (request.guidance_scale, controls)
    asked = (request.width, request.height)
    run = Run(*size, text, negative, request.guidance_scale, asked)
    runners = [backend.make_runner(plugin, run) for plugin in request.networks]
    base = backend.make_base_constants(*size, text, *steered)
    opposite = None
    if negative is not None:
        opposite = backend.make_base_constants(*size, negative, *steered)
    if any(map(request.infuses, range(request.num_steps))):
        people = infused_people(request, backend)
        at_once = people_at_once(width, height)
        for start in range(0, len(people), at_once):
            some = people[start : start + at_once]
            side = backend.make_infuse_constants(*size, some, text)
            runners.append(Infusion(request, backend, side))
    return Constants(sigmas, base, opposite, runners, *turn_blind(runners))


def turn_blind(runners: Sequence[Runner]) -> tuple[list[Runner] | None, float]:
    """The runners of the pass without pictures, and by how much what these change is multiplied."""
    guidances = {runner.image_guidance for runner in runners if runner.blind is not None}
    if not guidances:
        return None, 1.0
    if len(guidances) > 1:
        raise InvalidRequest("Several pictures have one image_guidance in common: give all the same number.")
    return [runner.blind or runner for runner in runners], guidances.pop()


@dataclass(frozen=True, eq=False)
class Infusion(Runner):
    """InfuseNet on one person, or on several at once. The negative pass gets no residuals, as released."""

    request: GenerationRequest
    backend: Backend
    side: Any

    def add(self, step: int, latents: Any, negative: bool) -> Additions:
        if negative or not self.request.infuses(step):
            return NOTHING
        return Additions(residuals=(self.backend.infuse(self.side, step, latents),))


def infused_people(request: GenerationRequest, backend: Backend) -> list[Infused]:
    """Everyone of a request whose photographs are read, as InfuseNet takes them."""
    alone = len(request.people) == 1
    size, run_size = (request.width, request.height), request.run_size
    people = []
    for person in request.people:
        identity = backend.project_identity(person.id_embedding)
        control = backend.encode_image(draw_control(person, run_size))  # a black one like any other
        everywhere = isinstance(person.mask, str) and person.mask == "whole"
        mask = None
        if not (alone and everywhere):
            mask = to_latent_grid(read_mask(person.mask, *size), size, run_size)
        people.append(Infused(identity, control, person.scale, mask))
    return people


def denoise(
    request: GenerationRequest,
    backend: Backend,
    k: int,
    noise: np.ndarray,
    constants: Constants,
    enough: Callable[[], bool],
) -> Generator[Step, None, tuple[Any, int]]:
    """Noise (1, 16, h, w) of picture `k` -> a `Step` after every step, and at the end the latents (1, L, 64)
    and how many steps they took. Euler steps along the rectified flow (arXiv 2403.03206)."""
    num_steps, runners = request.num_steps, constants.runners
    latents = backend.array(pack_latents(noise))
    for step, (sigma, next_sigma) in enumerate(pairwise(constants.sigmas)):
        added = backend.gather(runners, step, latents, negative=False)
        velocity = backend.velocity(constants.base, step, latents, added)
        if constants.blind is not None:
            added = backend.gather(constants.blind, step, latents, negative=False)
            unseen = backend.velocity(constants.base, step, latents, added)
            velocity = unseen + constants.image_guidance * (velocity - unseen)
        if constants.opposite is not None and step >= request.true_cfg_start_step:
            added = backend.gather(runners, step, latents, negative=True)
            away = backend.velocity(constants.opposite, step, latents, added)
            velocity = away + request.true_cfg_scale * (velocity - away)
        latents = latents + (next_sigma - sigma) * velocity
        backend.evaluate(latents)
        clean = latents - next_sigma * velocity  # what this step foresees; after the last one, the latents
        preview = partial(make_preview, request, backend, clean)
        yield Step(k * num_steps + step + 1, request.num_images * num_steps, preview)
        if enough():
            return clean, step + 1
    return latents, num_steps


def read_photographs(request: GenerationRequest, backend: Backend) -> GenerationRequest:
    """The same request with what the networks take of its people's photographs in their place: the face's
    embedding, the five points of the pose, the mask. It needs no device, and its result can be pickled."""
    size = (request.width, request.height)
    own: dict[str, Any] = {}
    if request.has_identity:
        own = read_person(request, size, backend)
    elif any(x is not None for x in (request.control_image, request.control_keypoints, request.pose)):
        raise InvalidRequest("A control image needs a person to go with it: give a photograph of a face too.")
    elif request.id_mask is not None:
        raise InvalidRequest("id_mask is where the person may be: give a photograph of a face too.")
    if request.id_mask is not None:
        own["id_mask"] = read_mask(request.id_mask, *size)
    plugins = []
    for plugin in request.plugins:
        if isinstance(plugin, Person) and plugin.counts:
            mask = read_mask(plugin.mask, *size)
            plugin = replace(plugin, **read_person(plugin, size, backend), mask=mask)
        plugins.append(plugin)
    return request.replace(**own, plugins=plugins)


def read_person(
    person: GenerationRequest | Person, size: tuple[int, int], backend: Backend
) -> dict[str, Any]:
    """The fields of a person that take the place of the photographs in a picture of `size`."""
    if backend.model_version is None:
        raise InvalidRequest(NO_FACES)
    embedding, keypoints = person.id_embedding, person.control_keypoints
    if embedding is None:
        embedding = backend.faces.embed([read_photo(photo) for photo in person.photos], person.id_faces)
    elif embedding.shape != (backend.faces.embedding_size,):
        raise InvalidRequest(
            f"id_embedding has {embedding.size} numbers; this model's projection reads "
            f"{backend.faces.embedding_size}."
        )
    if person.control_image is not None:
        photo = fit_control_photo(read_photo(person.control_image), *size)
        keypoints = backend.faces.find_one(np.asarray(photo), "control image").keypoints
    if person.pose is not None:
        keypoints = place_pose(person.pose, *size)
    read = {"id_image": None, "id_images": (), "id_faces": (), "control_image": None, "pose": None}
    return read | {"id_embedding": embedding, "control_keypoints": keypoints}


def draw_control(person: Person, run_size: tuple[int, int]) -> np.ndarray:
    """The five points of a person as the control picture, uint8 (H, W, 3); without them it is black."""
    width, height = run_size
    if person.control_keypoints is None:
        return np.zeros((height, width, 3), np.uint8)
    return draw_keypoints(person.control_keypoints, width, height)


def encode_controls(
    request: GenerationRequest, backend: Backend, loras: Sequence[LoraFile]
) -> list[ControlPicture]:
    """The pictures of the control LoRAs among `loras`, the files of `request.loras`, in the same order."""
    controls = []
    for plugin, lora in zip(request.loras, loras, strict=True):
        photo = read_control(request, plugin, lora)
        if lora.control is not None:
            matrix, factor = lora.control
            controls.append(ControlPicture(matrix, factor * plugin.scale, backend.encode_image(photo)))
    return controls


def read_control(request: GenerationRequest, plugin: Lora, lora: LoraFile) -> np.ndarray | None:
    """The picture of a control LoRA, uint8 RGB, as large as the run; None for any other LoRA."""
    if (lora.control is None) != (plugin.image is None):
        raise InvalidRequest(
            f"{lora.name} is a control LoRA: it needs a picture to follow (its edges or depth). "
            "Give one with it, as Lora(path, scale, image), or on the command line FILE:SCALE:PICTURE."
            if plugin.image is None
            else f"{lora.name} is no control LoRA and takes no picture. Leave the picture out."
        )
    if plugin.image is None:
        return None
    photo = fit_picture(plugin.image, request.width, request.height)
    return pad_picture(photo, *request.run_size)  # a little larger, and cut again after decoding


def encode_negative(request: GenerationRequest, backend: Backend) -> Any:
    """The negative prompt's encoding where true classifier-free guidance is asked for, else None."""
    if request.true_cfg_scale <= 1.0 or request.negative_prompt is None:  # as released
        return None
    return backend.encode_prompt(request.negative_prompt, request.max_sequence_length)


def decode(request: GenerationRequest, backend: Backend, latents: Any, final: np.ndarray) -> np.ndarray:
    """Final latents (1, L, 64), and as numpy -> float32 (height, width, 3), cropped to what was asked for."""
    pixels = backend.decode(latents, *request.run_size)[: request.height, : request.width]
    if not np.isfinite(final).all() or not np.isfinite(pixels).all():
        raise NonFiniteError(
            "The model made numbers that are not finite (NaN), so there is no picture. Load it with "
            'dtype="bfloat16" or "float32", and without a LoRA that it was not made for.'
        )
    return pixels


def make_preview(request: GenerationRequest, backend: Backend, clean: Any) -> Image.Image:
    return draw_preview(backend.numpy(clean), request.run_size, backend.latent_colours)


def check_noise(request: GenerationRequest, noise: np.ndarray | None) -> np.ndarray:
    """Given noise, or the noise of the request's seeds, (num_images, 16, h / 8, w / 8) float32."""
    width, height = request.run_size
    shape = (request.num_images, 16, height // 8, width // 8)
    if noise is None:
        return np.concatenate([make_noise(seed, width, height) for seed in request.seeds])
    try:
        noise = np.asarray(noise, np.float32)
    except (ValueError, TypeError):
        raise InvalidRequest(f"noise must be an array of numbers, {shape}.") from None
    if noise.shape != shape:
        raise InvalidRequest(f"noise has the shape {noise.shape}; this request needs {shape}.")
    return noise
