"""Which models exist, where their files are and whether they are whole; `hub.py` fetches what is absent.

A base in FLUX.1's diffusers layout; InfiniteYou as released (github.com/bytedance/InfiniteYou):
`infu_flux_v1.0/<version>/{InfuseNetModel/, image_proj_model.bin}` and `supports/`.
"""

import importlib.util
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infu import hub
from infu.errors import BrokenFile, DownloadError, InvalidRequest, MissingFile, UnknownName
from infu.weights.checkpoint import TITLES, list_parts, open_part
from infu.weights.files import AGAIN, open_weights
from infu.weights.foreign import refuse_pipeline
from infu.weights.intruder import START, name_intruder
from infu.weights.pulid import EVA

BASE = "black-forest-labs/FLUX.1-dev"
INFINITE_YOU = "ByteDance/InfiniteYou"
MINI = Path(__file__).parent / "mini"

PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")  # each may come from elsewhere
VERSIONS = ("aes_stage2", "sim_stage1")  # released, the default first
RELEASE = "infu_flux_v1.0"
OPTIONAL_LORAS = {"realism": "flux_realism_lora.safetensors", "anti_blur": "flux_anti_blur_lora.safetensors"}
TOKENIZER_FILES = {  # any one of these sets is a tokenizer (prompt.py)
    "tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "tokenizer_2": (("tokenizer.json",), ("spiece.model",)),
}
# A network alone in its repository; no weights in the root of a whole model are called so.
OWN_REPOSITORY = ("config.json", "diffusion_pytorch_model*.safetensors*", "model*.safetensors*")
APPEARANCE = "appearance.onnx"
ARCFACE = "recognition_arcface_ir_se50.pth"
FACEXLIB_URL = "https://github.com/xinntao/facexlib/releases/download"
ARCFACE_URL = f"{FACEXLIB_URL}/v0.1.0/{ARCFACE}"
FLUX_LICENCE = "FLUX.1 [dev] Non-Commercial License"
DEFAULTS = {"width": int, "height": int, "num_steps": int, "prompt": str}  # of generation_defaults.json
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Published:
    """Something on the hub beside the base and InfiniteYou, and those of its files that are used; or what
    ships inside this package, for the mini model, in the folder `ships`."""

    repo: str
    licence: str
    files: tuple[str, ...] = OWN_REPOSITORY
    ships: Path | None = None


OURS, OUR_LICENCE = "InfU Space", "Apache-2.0"
XLABS_CONTROLNETS = "XLabs-AI/flux-controlnet-collections"
CONTROLNETS = {  # what a user may call them -> where they are
    "union-pro-2": Published("Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro-2.0", FLUX_LICENCE),
    "union-pro": Published("Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro", FLUX_LICENCE),
    "union": Published("InstantX/FLUX.1-dev-Controlnet-Union", FLUX_LICENCE),
    "instantx-canny": Published("InstantX/FLUX.1-dev-Controlnet-Canny", FLUX_LICENCE),
    "shakker-depth": Published("Shakker-Labs/FLUX.1-dev-ControlNet-Depth", FLUX_LICENCE),
    **{
        f"xlabs-{kind}": Published(
            XLABS_CONTROLNETS, FLUX_LICENCE, (f"flux-{kind}-controlnet-v3.safetensors",)
        )
        for kind in ("canny", "depth", "hed")
    },
    "mini-canny": Published(OURS, OUR_LICENCE, ships=MINI / "plugins/canny"),
}
FLAGS = {"ControlNet": "controlnet", "IP-Adapter": "ip_adapter"}  # of download
PREPROCESSED = ("config.json", "preprocessor_config.json", "model.safetensors")
HINT_MODELS = {  # of infu/hints.py
    "depth": Published("depth-anything/Depth-Anything-V2-Small-hf", "Apache-2.0", PREPROCESSED),
    "pose": Published("usyd-community/vitpose-base-simple", "Apache-2.0", PREPROCESSED),
    "people": Published("PekingU/rtdetr_r50vd", "Apache-2.0", PREPROCESSED),  # whose poses are wanted
}

IP_ADAPTERS = {
    "xlabs": Published("XLabs-AI/flux-ip-adapter-v2", FLUX_LICENCE, ("ip_adapter.safetensors",)),
    "xlabs-v1": Published("XLabs-AI/flux-ip-adapter", FLUX_LICENCE, ("ip_adapter.safetensors",)),
    "instantx": Published("InstantX/FLUX.1-dev-IP-Adapter", FLUX_LICENCE, ("ip-adapter.bin",)),
    "mini-style": Published(OURS, OUR_LICENCE, ("ip-adapter.bin",), ships=MINI / "plugins/style"),
}
ENCODER = "image_encoder"  # the folder beside an IP-Adapter's file that comes with an encoder of its own
CLIP_VISION = Published("openai/clip-vit-large-patch14", "MIT", PREPROCESSED)
SIGLIP = Published("google/siglip-so400m-patch14-384", "Apache-2.0", PREPROCESSED)

PULID = {  # what a user may call it -> where it is
    version: Published("guozinan/PuLID", "Apache-2.0", (f"pulid_flux_v{version}.safetensors",))
    for version in ("0.9.1", "0.9.0")
}
PULID_ENCODERS = (  # what looks at its photograph, on the hub
    Published("QuanSun/EVA-CLIP", "MIT", (EVA,)),
    Published(
        INFINITE_YOU,  # holds the whole of antelopev2
        "non-commercial research only (insightface's antelopev2)",
        ("supports/insightface/*scrfd_10g_bnkps.onnx", "supports/insightface/*glintr100.onnx"),
    ),
)
PULID_FACEXLIB = {  # and in facexlib's releases, MIT: file -> release
    "detection_Resnet50_Final.pth": "v0.1.0",
    "parsing_bisenet.pth": "v0.2.0",
}


NAMED_LORAS = {  # what a user may call them: LoRAs for few steps (infu/few_steps.py), OminiControl's adapters
    **{
        f"hyper-{steps}": Published(
            "ByteDance/Hyper-SD", FLUX_LICENCE, (f"Hyper-FLUX.1-dev-{steps}steps-lora.safetensors",)
        )
        for steps in (8, 16)
    },
    "turbo-alpha": Published(
        "alimama-creative/FLUX.1-Turbo-Alpha", FLUX_LICENCE, ("diffusion_pytorch_model.safetensors",)
    ),
    **{
        name: Published("Yuanshi/OminiControl", "Apache-2.0", (f"{folder}/{name}.safetensors",))
        for folder, names in {
            "omini": ("subject_512", "subject_1024_beta"),
            "experimental": ("canny", "depth", "coloring", "deblurring", "fill"),
        }.items()
        for name in names
    },
}


@dataclass(frozen=True)
class ModelFiles:
    """Every file of one model. `name` and `model_versions` may be shown to a user; no path ever is.

    `infusenet`, `projection` None: plain FLUX, no identity. `detector` and `recogniser` may name files that
    are not there: the face stack says so when it needs them. With `embedded_faces` the detector is None, and
    the recogniser None or the appearance part that the model was trained with.
    """

    base: Path  # folder; its config files describe the parts that are given as a single file
    transformer: Path  # these four: a folder, or a single file
    vae: Path
    text_encoder: Path
    text_encoder_2: Path
    tokenizer: Path
    tokenizer_2: Path
    scheduler: Path
    name: str  # "FLUX.1-dev + InfiniteYou", "mini", or made of the folders' last names
    infusenet: Path | None = None  # the folder `InfuseNetModel`, or a single file
    projection: Path | None = None  # `image_proj_model.bin`
    detector: Path | None = None  # the folder `antelopev2`
    recogniser: Path | None = None  # ArcFace IR-SE50's `.pth`, or `appearance.onnx`
    optional_loras: dict[str, Path] = field(
        default_factory=dict
    )  # "realism", "anti_blur": only those that are there
    model_version: str | None = None
    model_versions: tuple[str, ...] = ()  # those that can be switched to
    model_dir: Path | str | None = None  # folder, or hub id: where `versioned` looks for the others
    embedded_faces: bool = False


def locate(
    base_model_path: str | Path | None = None,
    model_dir: str | Path | None = None,
    model_version: str = VERSIONS[0],
    transformer_path: str | Path | None = None,
    vae_path: str | Path | None = None,
    text_encoder_path: str | Path | None = None,
    text_encoder_2_path: str | Path | None = None,
    infusenet_path: str | Path | None = None,
    fetch: bool = True,
) -> ModelFiles:
    """The files of a model, each checked; what a hub id names is fetched unless `fetch` is False.

    Every path is a folder, a file or a hub id. No path at all is the mini model; a base without `model_dir`
    is plain FLUX; what is given without a base belongs to FLUX.1-dev, and so does what a base that is a
    single file does not hold.

    Raises `MissingFile`, `BrokenFile`, `DownloadError`; `UnknownName` for an unknown `model_version`.
    """
    elsewhere = (transformer_path, vae_path, text_encoder_path, text_encoder_2_path)
    given = {part: path for part, path in zip(PARTS, elsewhere, strict=True) if path is not None}
    if infusenet_path is not None and model_dir is None:
        model_dir = INFINITE_YOU  # for the projection
    if base_model_path is None and model_dir is None and not given:
        base_model_path, model_dir = MINI / "base", MINI / "InfiniteYou"
    base_model_path = BASE if base_model_path is None else base_model_path
    held = find_held_parts(base_model_path)
    parts = held | {part: find_part(part, path, fetch) for part, path in given.items()}
    for part, path in parts.items():
        if path.is_file():
            open_part(path, part)  # what is no FLUX.1 is refused before gigabytes are fetched to go with it
    if held:
        base = find_rest(base_model_path, held, set(parts), fetch)
    else:
        base = find_base(base_model_path, set(parts), fetch)
    files = ModelFiles(
        base=base,
        **{part: parts.get(part, base / part) for part in PARTS},
        **{name: base / name for name in ("tokenizer", "tokenizer_2", "scheduler")},
        name=name_model(base_model_path, model_dir),
        model_dir=local_path(model_dir, "model_dir") or str(model_dir) if model_dir is not None else None,
    )
    check_base(files)
    if files.model_dir is not None:
        files = versioned(files, model_version, infusenet_path, fetch)
    if isinstance(files.model_dir, str) and fetch:
        fetch_recogniser(files)
    return files


def versioned(
    files: ModelFiles, model_version: str, infusenet_path: str | Path | None = None, fetch: bool = True
) -> ModelFiles:
    """The same model with another version of InfuseNet and projection, both checked."""
    if files.model_dir is None:
        raise InvalidRequest(
            "This model was loaded without InfiniteYou, so it has no versions. Load it with model_dir."
        )
    from_hub = isinstance(files.model_dir, str)
    here = VERSIONS if from_hub else list_versions(files.model_dir)
    if model_version not in (*here, *VERSIONS):
        raise UnknownName("model version", str(model_version), here or VERSIONS)
    if model_version not in here:
        raise MissingFile(
            f"This InfiniteYou folder has no {model_version}; it has {', '.join(here) or 'no version'}. "
            f"Choose one that is there, copy {RELEASE}/{model_version} into the folder, or give the hub id "
            f"{INFINITE_YOU} as model_dir."
        )
    folder = find_infinite_you(files.model_dir, model_version, infusenet_path is None, fetch)
    infusenet = find_infusenet(folder / RELEASE / model_version, infusenet_path, fetch)
    projection = folder / RELEASE / model_version / "image_proj_model.bin"
    check_weights(infusenet)
    check_file(projection)
    embedded = has_embedded_faces(folder)
    loras = {name: folder / "supports" / "optional_loras" / file for name, file in OPTIONAL_LORAS.items()}
    return replace(
        files,
        infusenet=infusenet,
        projection=projection,
        detector=None if embedded else folder / "supports" / "insightface" / "models" / "antelopev2",
        recogniser=find_appearance(folder) if embedded else find_recogniser(folder),
        optional_loras={name: path for name, path in loras.items() if path.is_file()},
        model_version=model_version,
        model_versions=tuple(here),
        embedded_faces=embedded,
    )


# Where things are.


def find_published(
    what: str,
    source: str | Path,
    known: dict[str, Published],
    files: Iterable[str] = OWN_REPOSITORY,
    fetch: bool = True,
) -> Path:
    """A plug-in's folder or file: a path, a name of `known`, or a hub id, of which `files` are fetched.
    `what` names it in errors. Raises `UnknownName`, `MissingFile`, `DownloadError`."""
    if isinstance(source, str) and source in known and not Path(source).exists():
        published = known[source]
        flags = f" --{FLAGS[what]} {source}" if what in FLAGS else ""
        folder = published.ships or find_repo(published.repo, list(published.files), fetch, flags)
        return folder / published.files[0] if len(published.files) == 1 else folder
    if isinstance(source, str) and re.fullmatch(r"[\w-]+", source) and not Path(source).exists():
        raise UnknownName(what, source, known)
    return local_path(source, what) or find_repo(str(source), list(files), fetch)


def find_lora_file(source: str | Path) -> Path:
    """A LoRA's or OminiControl adapter's file: a path, or one of `NAMED_LORAS`, which a request does not
    fetch. Raises `MissingFile`."""
    if str(source) not in NAMED_LORAS or Path(source).exists():
        return Path(source).expanduser()
    try:
        return find_published("LoRA", str(source), NAMED_LORAS, (), fetch=False)
    except MissingFile:
        raise MissingFile(
            f"{source} is not here. Run `python -m infu download --lora {source}`, or give its file."
        ) from None


def fetch_lora(name: str) -> Published:
    """Fetch one of `NAMED_LORAS`, where it is not here. Raises `UnknownName`, `DownloadError`."""
    if name not in NAMED_LORAS:
        raise UnknownName("LoRA", name, NAMED_LORAS)
    find_published("LoRA", name, NAMED_LORAS, ())
    return NAMED_LORAS[name]


def find_controlnet(source: str | Path, fetch: bool = False) -> Path:
    """The folder or file of a ControlNet: a path, one of `CONTROLNETS`, or a hub id, which a request does not
    fetch. Raises `UnknownName`, `MissingFile`, `DownloadError`."""
    try:
        return find_published("ControlNet", source, CONTROLNETS, OWN_REPOSITORY, fetch)
    except MissingFile:
        if str(source) in CONTROLNETS or local_path(source, "ControlNet") is None:
            raise MissingFile(
                f"{source} is not here. Run `python -m infu download --controlnet {source}`, or give a file."
            ) from None
        raise


def fetch_controlnet(name: str) -> Published:
    """One of `CONTROLNETS`, or a hub id's, into the hub's cache. Raises `UnknownName`, `DownloadError`."""
    find_controlnet(name, fetch=True)
    return CONTROLNETS.get(name) or Published(name, "its page tells the licence")


def fetch_hint_models(kind: str) -> list[Published]:
    """What makes a hint of a `kind`, into the hub's cache. Raises `UnknownName`, `DownloadError`."""
    kinds = {"depth": ("depth",), "pose": ("people", "pose")}
    if kind not in kinds:
        raise UnknownName("hint with a network", kind, kinds)
    for one in kinds[kind]:
        find_hint_model(one, fetch=True)
    return [HINT_MODELS[one] for one in kinds[kind]]


def find_ip_adapter(source: str | Path, fetch: bool = False) -> Path:
    """The file of an IP-Adapter, or the folder that holds it (see `find_published`)."""
    files = {file for published in IP_ADAPTERS.values() for file in published.files}
    return find_published("IP-Adapter", source, IP_ADAPTERS, files, fetch)


def find_image_encoder(source: str | Path | None, adapter: Path, siglip: bool, fetch: bool = False) -> Path:
    """The folder of what sees the pictures of the IP-Adapter in the file or folder `adapter`: `source`, the
    folder `image_encoder` beside the adapter, or the released adapters' own."""
    beside = (adapter if adapter.is_dir() else adapter.parent) / ENCODER
    if source is None and beside.is_dir():
        return beside
    own, released = (SIGLIP, "instantx") if siglip else (CLIP_VISION, "xlabs")
    try:
        return find_own(own, source, ENCODER, fetch, f" --ip_adapter {released}")
    except MissingFile as error:
        if source is not None:
            raise
        other = f"An adapter with an encoder of its own has it beside it, as the folder {ENCODER}."
        raise MissingFile(f"{error} {other}") from None


def fetch_ip_adapter(name: str) -> list[Published]:
    """One of `IP_ADAPTERS` and its image encoder, into the hub's cache. An adapter that ships has its own.
    Raises `UnknownName`, `DownloadError`."""
    if name not in IP_ADAPTERS:
        raise UnknownName("IP-Adapter", name, IP_ADAPTERS)
    adapter = find_ip_adapter(name, fetch=True)
    siglip = name == "instantx"
    find_image_encoder(None, adapter, siglip, fetch=True)
    own = IP_ADAPTERS[name]
    return [own] if own.ships else [own, SIGLIP if siglip else CLIP_VISION]


def find_hint_model(kind: str, source: str | Path | None = None, fetch: bool = False) -> Path:
    """The folder of a hint's network: `source`, or ours."""
    return find_own(HINT_MODELS[kind], source, f"{kind} model", fetch)


def find_own(own: Published, source: str | Path | None, argument: str, fetch: bool, flags: str = "") -> Path:
    """The folder of a network: `source`, a hub id's, or `own`'s, which `flags` of `download` fetch, where
    nothing is said."""
    if source is None:
        return find_repo(own.repo, list(own.files), fetch, flags)
    return local_path(source, argument) or find_repo(str(source), list(own.files), fetch)


def find_pulid(source: str | Path) -> Path:
    """PuLID's checkpoint: a path, or a version of `PULID` that is here. Raises `MissingFile`."""
    if str(source) not in PULID or Path(source).exists():
        return Path(source).expanduser()
    try:
        return find_published("PuLID", str(source), PULID, (), fetch=False)
    except MissingFile:
        raise MissingFile(
            f"PuLID {source} is not here. Run `python -m infu download --pulid {source}`, or give its file."
        ) from None


def list_pulid_places() -> list[Path]:
    """The folders in which the networks that look at PuLID's photograph are, where they were downloaded."""
    found = (hub.find_repo(own.repo, list(own.files)) for own in PULID_ENCODERS)
    return [infu_cache() / "facexlib", *facexlib_weights(), *(folder for folder in found if folder)]


def fetch_pulid(version: str) -> dict[str, str]:
    """Fetch a version of PuLID and what looks at its photograph, but for what is here: what it is -> the
    licence it is under. INFU_FACEXLIB_URL names a mirror of facexlib's releases. Raises `UnknownName`,
    `DownloadError`."""
    if version not in PULID:
        raise UnknownName("version of PuLID", version, PULID)
    published = (PULID[version], *PULID_ENCODERS)
    for own in published:
        find_repo(own.repo, list(own.files), fetch=True)
    releases, folder = os.environ.get("INFU_FACEXLIB_URL") or FACEXLIB_URL, infu_cache() / "facexlib"
    for name, release in PULID_FACEXLIB.items():
        if not any((place / name).is_file() for place in (folder, *facexlib_weights())):
            hub.fetch_file(f"{releases}/{release}/{name}", folder / name, f"facexlib's {name}")
    return {own.repo: own.licence for own in published} | {
        f"facexlib's {name}": "MIT" for name in PULID_FACEXLIB
    }


def local_path(source: str | Path, argument: str) -> Path | None:
    """The folder or file that `source` names; None where it is a hub id and nothing of that name is here."""
    path = Path(source).expanduser()
    if source != "" and os.path.exists(path):  # False, not an error, for a name no file can have
        return path
    if isinstance(source, str) and HUB_ID.fullmatch(source):
        return None
    raise MissingFile(
        f"What {argument} names ({path.name!r}) does not exist. "
        "Give a folder or file that does, or a hub id such as owner/name."
    )


def find_base(source: str | Path, elsewhere: set[str], fetch: bool) -> Path:
    """The base's folder. Of the parts that come from `elsewhere` only the small config files are fetched."""
    path = local_path(source, "base_model_path")
    if path is None:
        return find_repo(str(source), base_patterns(elsewhere), fetch)
    refuse_pipeline(path)
    return path


def find_held_parts(source: str | Path) -> dict[str, Path]:
    """The networks in a base that is a single file (a checkpoint of all or some), each in that file."""
    path = local_path(source, "base_model_path")
    if path is None or not path.is_file():
        return {}
    held = [part for part in list_parts(path.name, open_weights(path)) if part in PARTS]
    if "transformer" not in held:
        raise BrokenFile(
            f"{path.name} holds {name_parts(held) or TITLES['infusenet']} but no FLUX transformer, so it is "
            "no base. Give it as vae_path, text_encoder_path, text_encoder_2_path or infusenet_path."
        )
    return dict.fromkeys(held, path)


def find_rest(source: str | Path, held: Iterable[str], elsewhere: set[str], fetch: bool) -> Path:
    """FLUX.1-dev's folder, for what a single file holding the networks `held` cannot: configs, tokenizers,
    schedule, and the networks that are not from `elsewhere`."""
    try:
        return find_base(BASE, elsewhere, fetch)
    except (MissingFile, DownloadError) as error:
        lacking = name_parts(part for part in PARTS if part not in elsewhere)
        raise type(error)(
            f"{Path(source).name} holds {name_parts(held)}. Its configs and tokenizers"
            f"{f', and {lacking},' if lacking else ''} come from {BASE}, or from a folder of its layout that "
            f"you give as base_model_path, with the file as transformer_path. {error}"
        ) from None


def name_parts(parts: Iterable[str]) -> str:
    return ", ".join(TITLES[part] for part in parts)


def base_patterns(elsewhere: set[str]) -> list[str]:
    """The files of a base worth fetching: not its second copy as one file (flux1-dev.safetensors, 24 GB)."""
    wanted = [
        "model_index.json",
        "scheduler/*",
        "tokenizer/*",
        "tokenizer_2/*",
        *(f"{p}/*.json" for p in PARTS),
    ]
    return wanted + [f"{part}/*.safetensors" for part in PARTS if part not in elsewhere]


def find_part(part: str, source: str | Path, fetch: bool) -> Path:
    """One network from elsewhere: a file, a folder or repository of its own, or a model that holds it."""
    path = local_path(source, f"{part}_path")
    if path is None:
        path = find_repo(str(source), [f"{part}/*.json", f"{part}/*.safetensors", *OWN_REPOSITORY], fetch)
    if part == "transformer":
        refuse_pipeline(path)
    return path / part if (path / part).is_dir() else path


def find_infinite_you(source: Path | str, version: str, with_infusenet: bool, fetch: bool) -> Path:
    if isinstance(source, Path):
        return source
    return find_repo(source, infinite_you_patterns(version, with_infusenet), fetch)


def infinite_you_patterns(version: str, with_infusenet: bool = True) -> list[str]:
    """The files of InfiniteYou's repository that one version needs: not its ComfyUI builds, not the demo."""
    patterns = [
        f"{RELEASE}/{version}/image_proj_model.bin",
        "supports/insightface/*scrfd_10g_bnkps.onnx",  # the detector; the pack's other networks are not used
        "supports/optional_loras/*.safetensors",
    ]
    return patterns + [f"{RELEASE}/{version}/InfuseNetModel/*"] if with_infusenet else patterns


def find_infusenet(folder: Path, source: str | Path | None, fetch: bool) -> Path:
    """The version's `InfuseNetModel`, one of ComfyUI's single files beside it, or what the user names."""
    if source is not None:
        return find_part("infusenet", source, fetch)
    single = sorted(folder.glob("infusenet_*.safetensors"))  # bf16 sorts before fp8
    return folder / "InfuseNetModel" if (folder / "InfuseNetModel").is_dir() or not single else single[0]


def find_repo(repo_id: str, patterns: list[str], fetch: bool, flags: str = "") -> Path:
    """The snapshot of a hub repository in the hub's own cache; no request where all of it is there. `flags`:
    those of the command that fetches it."""
    folder = hub.find_repo(repo_id, patterns)
    if folder is not None:
        return folder
    if not fetch:
        raise MissingFile(f"{repo_id} is not here, or not all of it. Run `python -m infu download{flags}`.")
    return hub.fetch_repo(repo_id, patterns)


def list_versions(model_dir: Path) -> tuple[str, ...]:
    """The versions in an InfiniteYou folder: the released ones first, then a user's own."""
    folder = model_dir / RELEASE
    if not folder.is_dir():
        raise MissingFile(
            f"model_dir ({model_dir.name!r}) is not an InfiniteYou folder: it has no {RELEASE}. Give the "
            f"folder that holds {RELEASE} and supports, or the hub id {INFINITE_YOU}."
        )
    signs = ("image_proj_model.bin", "InfuseNetModel")  # either: what of a version is missing is said later
    names = {path.name for path in folder.iterdir() if any((path / sign).exists() for sign in signs)}
    return tuple(sorted(names, key=lambda name: (name not in VERSIONS, name)))


def find_recogniser(model_dir: Path) -> Path:
    """ArcFace IR-SE50, which InfiniteYou's repository does not hold: beside the model, in our cache, or
    where facexlib puts it. Our cache's place where it is nowhere."""
    folders = (model_dir / "supports" / "facexlib", infu_cache(), *facexlib_weights())
    places = [folder / ARCFACE for folder in folders]
    return next((place for place in places if place.is_file()), infu_cache() / ARCFACE)


def find_appearance(model_dir: Path) -> Path | None:
    """What stands beside the embedded recogniser, where the model was trained with it."""
    path = model_dir / "supports" / APPEARANCE
    return path if path.is_file() else None


def facexlib_weights() -> list[Path]:
    """The folder in which facexlib, where it is installed, keeps what it downloads."""
    facexlib = importlib.util.find_spec("facexlib")
    return [Path(facexlib.origin).parent / "weights"] if facexlib is not None and facexlib.origin else []


def fetch_recogniser(files: ModelFiles) -> None:
    """Fetch the face encoder where it is not here. INFU_ARCFACE_URL names a mirror."""
    if files.recogniser is not None and not files.recogniser.is_file():
        url = os.environ.get("INFU_ARCFACE_URL") or ARCFACE_URL
        hub.fetch_file(url, files.recogniser, f"the face encoder ({ARCFACE} of facexlib's release v0.1.0)")


def infu_cache() -> Path:
    """Our own cache; the hub's models lie in the hub's."""
    return Path(os.environ.get("INFU_CACHE") or "~/.cache/infu").expanduser()


def has_embedded_faces(model_dir: Path) -> bool:
    path = model_dir / "supports" / "face_stack.json"
    try:
        return path.is_file() and json.loads(path.read_bytes())["stack"] == "embedded"
    except (ValueError, KeyError, TypeError):
        raise BrokenFile(
            'supports/face_stack.json is damaged. It should read {"stack": "embedded"}.'
        ) from None


def name_model(base: str | Path, model_dir: str | Path | None) -> str:
    """What a user calls the model. The hub's cache keeps a model's name above its snapshot."""
    if Path(base) == MINI / "base":
        return MINI.name
    names = []
    for source in (base, model_dir):
        cached = re.search(r"models--[\w.-]+?--([\w.-]+)/snapshots/", str(source))
        if source is not None:
            path = Path(source)
            names.append(cached[1] if cached else path.stem if path.is_file() else path.name)
    return " + ".join(names)


def read_defaults(options: dict) -> dict[str, Any]:
    """`read_made_for` of the base that is named in `options`, those of `load_backend`. A hub id is not asked:
    FLUX's are everyone's."""
    base = options.get("base_model_path")
    if base is None and options.get("model_dir") is None:
        base = MINI / "base"
    return read_made_for(Path(base or ""))


def read_made_for(base: Path) -> dict[str, Any]:
    """The size, steps and words that a model was made for, where its base's folder says so
    (`generation_defaults.json`; the mini's does)."""
    path = base / "generation_defaults.json"
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {name: DEFAULTS[name](value) for name, value in values.items() if name in DEFAULTS}
    except (ValueError, TypeError, AttributeError):
        raise BrokenFile(f'{path.name} is damaged. It should read like {{"width": 256}}.') from None


# Whether they are whole.


def check_base(files: ModelFiles) -> None:
    for part in PARTS:
        check_weights(getattr(files, part))
    for name, choices in TOKENIZER_FILES.items():
        if not any(all((files.base / name / file).is_file() for file in choice) for choice in choices):
            wanted = " or ".join(" and ".join(choice) for choice in choices)
            raise MissingFile(
                f"The model's folder {name} holds no {wanted}. "
                "Run `python -m infu download`, or copy the folder again."
            )
    check_file(files.scheduler / "scheduler_config.json")


def check_weights(path: Path) -> None:
    """A network's folder or file: every shard there, none a pointer, none shorter than its header says."""
    if path.is_file() and path.suffix != ".safetensors":
        return check_file(path)
    try:
        open_weights(path)
    except MissingFile as error:
        unfinished = [*path.glob("*.incomplete"), *path.glob(".cache/huggingface/download/*.incomplete")]
        if not unfinished:
            raise
        raise MissingFile(
            f"The download of {path.name} was interrupted ({len(unfinished)} file(s) unfinished). {error}"
        ) from None
    if path.is_dir():
        check_file(path / "config.json")


def check_file(path: Path) -> None:
    """A file that is not safetensors: there, not empty, not a pointer, not a web page."""
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise MissingFile(
            f"The model has no {where}. Run `python -m infu download`, or copy the folder again."
        )
    with path.open("rb") as stream:
        intruder = name_intruder(stream.read(START))
    if intruder is not None:
        raise BrokenFile(f"{where} {intruder}. {AGAIN}")
