"""The settings of a training run, one YAML or JSON file; what the paper says and what is our choice stands in
docs/training.md beside each."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infu.errors import InvalidRequest, MissingFile

VERSIONS = {1: "sim_stage1", 2: "aes_stage2"}  # the released names of what each stage makes
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Side = Annotated[int, Field(ge=16, multiple_of=16)]


class Settings(BaseModel):
    """Names that are not known are errors, and so is a value of another kind."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ProjectionSettings(Settings):
    """The projection's size; its output is as wide as the base's text, its input as long as the embedding."""

    width: Positive = 1280
    depth: Positive = 4
    num_heads: Positive = 20
    num_tokens: Positive = 8


class Sample(Settings):
    """A picture that is made during the run, always with the same noise. Photographs lie relative to the file
    of settings."""

    prompt: str
    id_image: Path
    width: Positive = 864
    height: Positive = 1152
    num_steps: Positive = 30
    guidance_scale: float = 3.5
    seed: int = 0


class TrainSettings(Settings):
    """One stage. Paths lie relative to the file of settings; a name of the form owner/name may be a hub
    id."""

    stage: Literal[1, 2]
    data: Annotated[list[Path], Field(min_length=1)]  # folders that `make-data` wrote
    model_dir: Path  # the trained model comes here, in InfiniteYou's layout
    run_dir: Path  # states to go on from, the log, the plot, sample pictures
    base_model_path: str | None = None  # None: the mini base
    start_from: Path | None = None  # stage 2: the model_dir that holds stage 1; None: this one
    # "ip_adapter": on faces, to compare, or on style pictures; "controlnet": on hints.
    network: Literal["infusenet", "ip_adapter", "controlnet"] = "infusenet"
    # double, single: 4 and 10 blocks beside FLUX's; 0: none of that kind
    blocks_per_residual: tuple[Natural, Natural] = (5, 4)
    projection: ProjectionSettings = ProjectionSettings()

    steps: Positive
    batch: Positive = 512  # over all processes
    micro_batch: Positive = 1  # of one process at once; the rest of its share is accumulated
    learning_rate: Annotated[float, Field(gt=0)]
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    cooldown_steps: Annotated[int, Field(ge=0)] = (
        0  # over which the rate falls at the end; the paper names none
    )
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    time_mean: float = 0.0  # of the normal whose sigmoid t is; the paper's is 0
    guidance_scale: float = 1.0  # of the base while training; InfuseNet's own is 1, as released
    keypoints_share: Share = 0.5  # of the samples whose control image is the five points, not black
    seed: int = 0

    precision: Literal["bf16", "no"] = "bf16"
    gradient_checkpointing: bool = True
    fsdp: bool = False
    workers: Annotated[int, Field(ge=0)] = 2  # processes that read shards ahead
    save_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    save_every: Positive = 1000
    keep_states: Positive = 2
    sample_every: Positive = 1000
    samples: list[Sample] = []

    @model_validator(mode="after")
    def check(self) -> "TrainSettings":
        if self.batch % self.micro_batch:
            raise ValueError(f"batch ({self.batch}) must be a multiple of micro_batch ({self.micro_batch})")
        if self.network != "infusenet" and (self.stage == 2 or self.samples):
            raise ValueError(f"{self.network} trains in stage 1 and draws no samples")
        if not any(self.blocks_per_residual):
            raise ValueError("blocks_per_residual leaves no block to train: give at least one number over 0")
        return self

    @property
    def version(self) -> str:
        return VERSIONS[self.stage]


class Filters(Settings):
    """What a photograph must be to be trained on. The paper names the kinds of filters, not one number. A
    hook is `package.module:function`, uint8 RGB (H, W, 3) -> a score from 0 to 1."""

    min_face: float = 96  # the shorter side of the face's box in the cut picture, pixels
    max_enlarged: float = 1.25  # how much a photograph may be blown up to its bucket
    max_crowd: Share = 0.05  # the next face's area, as a share of the chosen one's: one person
    min_sharpness: float = 20
    watermark: str | None = None
    max_watermark: Share = 0.5
    unsafe: str | None = None
    max_unsafe: Share = 0.5


class Choice(Settings):
    """A LoRA that pictures are made with."""

    path: Path
    scale: float = 1.0


class Swapper(Settings):
    """insightface's face swap: `inswapper_128.onnx`, and the recogniser whose vectors it takes (buffalo_l's
    `w600k_r50.onnx`). Both are the user's to bring."""

    model: Path
    recogniser: Path


class Pictures(Settings):
    """Stage 2's targets: pictures of each person by the stage-1 model with what makes them look better. The
    paper names the kinds of these, not which ones, and no number."""

    model_dir: str  # InfiniteYou with the stage-1 version
    prompts: Path  # one a line
    per_person: Positive = 4
    model_version: str = VERSIONS[1]
    num_steps: Positive = 30
    guidance_scale: float = 3.5
    loras: list[Choice] = []
    swap: Swapper | None = None
    enhancer: str | None = None  # a hook: uint8 RGB -> uint8 RGB of the same size
    aesthetics: str | None = None  # a hook: uint8 RGB -> a score of any range
    min_aesthetics: float = 0.0
    min_likeness: float = 0.4
    max_yaw: float = 45  # degrees
    max_pitch: float = 30
    max_roll: float = 30


class DataSettings(Settings):
    """Photographs -> encoded samples. With `pictures`: stage 2's, else stage 1's."""

    sources: Annotated[
        list[Path], Field(min_length=1)
    ]  # folders, tar shards, parquet files, folders of those
    out: Path
    base_model_path: str | None = None  # None: the mini base
    faces: str = "embedded"  # or a folder or hub id in InfiniteYou's layout, for antelopev2 and ArcFace
    dtype: Literal["bfloat16", "float16", "float32"] | None = None  # None: what the device does best
    offload: Literal["model"] | None = None
    pixels: Positive = 1024 * 1024
    bucket_step: Side = 64
    max_ratio: Annotated[float, Field(ge=1)] = 2.0
    sizes: list[tuple[Side, Side]] = []  # the buckets themselves, width and height, instead of those three
    filters: Filters = Filters()
    captions: Annotated[list[str], Field(min_length=1)] = [
        "file"
    ]  # "file", or models; one is drawn a picture
    caption_prompt: str = "Describe this picture in one sentence."
    store_text: bool = True  # False: captions are encoded during training
    max_sequence_length: Annotated[int, Field(ge=1, le=512)] | None = None
    pictures: Pictures | None = None
    per_unit: Positive = 64  # samples of a shard; photographs of a folder that a worker takes at a time
    workers: Positive = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1


NOT_OF_THE_DATA = {"out", "workers", "gpus_per_worker", "cpus_per_worker", "offload"}
T = TypeVar("T", bound=Settings)


def read_settings(kind: type[T], path: Path) -> T:
    """A file of settings, its relative paths taken from its own folder. Raises `MissingFile`,
    `InvalidRequest`."""
    if not path.is_file():
        raise MissingFile(f"There is no file {path.name!r}. Check its name and folder.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path.name} is not YAML or JSON: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise InvalidRequest(f"{path.name} must hold settings, one `name: value` a line.")
    try:
        return rooted(kind(**values), path.parent)
    except ValidationError as error:
        raise InvalidRequest(f"{path.name}: {'; '.join(map(tell, error.errors()))}.") from None


def tell(fault: dict[str, Any]) -> str:
    """One of pydantic's faults in words."""
    where = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"there is no setting {where!r}"
    if fault["type"] == "missing":
        return f"{where} is missing"
    text = fault["msg"].removeprefix("Value error, ")
    return f"{where}: {text[0].lower()}{text[1:]}" if where else text


def rooted(value: Any, folder: Path) -> Any:
    """The same settings, every path in them absolute."""
    if isinstance(value, Settings):
        return value.model_copy(update={k: rooted(v, folder) for k, v in value})
    if isinstance(value, Path):
        return (folder / value.expanduser()).absolute()
    if isinstance(value, list):
        return [rooted(item, folder) for item in value]
    return value


def plain(settings: Settings) -> dict[str, Any]:
    """Settings as JSON values."""
    return json.loads(settings.model_dump_json())
