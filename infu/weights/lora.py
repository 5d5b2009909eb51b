"""LoRA files of every layout -> what each does to which module of which network.

W' = W + scale * alpha / rank * up @ down (arXiv 2106.09685, 4.1); the other kinds stand in `changes.py`. A
layout is a prefix, a spelling of the module's name (`names.py`) and endings: tables. Every key of a file is
used, or named in the report; sizes come from the network's own shapes.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infu.errors import BrokenFile, MissingFile
from infu.few_steps import Recipe, find_lora_recipe
from infu.weights.changes import Change, Matrix
from infu.weights.files import fold, open_weights
from infu.weights.foreign import name_foreign_lora
from infu.weights.lora_module import CONTROLLED, ENDINGS, check_finite, make_changes, read_settings
from infu.weights.names import NORMS, Target, encoder_spellings, spellings

Shapes = Mapping[str, tuple[int, ...]]  # module name -> shape of its weight

TRANSFORMER, CLIP, T5 = "transformer", "text_encoder", "text_encoder_2"
NETWORKS = {TRANSFORMER: "the base", CLIP: "CLIP", T5: "T5"}
PREFIXES = (  # before a module's name: who writes it, and the network. Of two that fit, the upper is taken
    ("base_model.model.transformer.", "PEFT", TRANSFORMER),
    ("base_model.model.", "PEFT", TRANSFORMER),
    ("transformer.", "PEFT, diffusers, ai-toolkit", TRANSFORMER),
    ("model.diffusion_model.", "ComfyUI", TRANSFORMER),
    ("diffusion_model.", "ComfyUI", TRANSFORMER),
    ("lora_transformer_", "OneTrainer", TRANSFORMER),
    ("lora_unet_", "kohya, TheLastBen", TRANSFORMER),
    ("lycoris_", "LyCORIS", TRANSFORMER),
    ("text_encoders.clip_l.transformer.", "ComfyUI", CLIP),
    ("text_encoder.", "PEFT, diffusers", CLIP),
    ("lora_te1_", "kohya, OneTrainer", CLIP),
    ("lora_te_", "kohya", CLIP),
    ("text_encoders.t5xxl.transformer.", "ComfyUI", T5),
    ("text_encoder_2.", "diffusers", T5),
    ("lora_te3_", "kohya", T5),
    ("lora_te2_", "OneTrainer", T5),
    ("", "diffusers, BFL, XLabs", TRANSFORMER),
)
BY_ENDING = sorted(
    ((ending, role) for role, endings in ENDINGS.items() for ending in endings), key=lambda e: -len(e[0])
)
IGNORED = (  # keys that belong to nothing FLUX uses, and harm nothing
    (r"text_projection", "CLIP's text projection, which FLUX does not use"),
    (r"^bundle_emb\.", "an embedding bundled with the LoRA, which is not supported"),
)


@dataclass(frozen=True, eq=False)
class LoraFile:
    """Network -> module -> its change; the keys that fit no module; what was left out on purpose, and why."""

    name: str
    changes: dict[str, dict[str, Change]]
    unused: tuple[str, ...]
    ignored: dict[str, tuple[str, ...]]  # reason -> keys
    recipe: Recipe | None = None  # what it was made for, where it is known as one for few steps

    @property
    def changes_text(self) -> bool:
        """Whether a prompt is encoded otherwise with this LoRA."""
        return bool(self.changes.get(CLIP) or self.changes.get(T5))

    @property
    def control(self) -> tuple[Matrix, float] | None:
        """What a control LoRA (BFL's Canny, Depth) does with its picture's latents (1, L, 64): the matrix
        (D, 64) and its factor; the product is added to x_embedder's output. None for any other LoRA."""
        changes = (self.changes.get(TRANSFORMER, {}).get(name) for name in CONTROLLED)
        return next(((c.control, c.factor) for c in changes if c is not None and c.control is not None), None)

    @property
    def matched(self) -> dict[str, int]:
        return {network: len(changes) for network, changes in self.changes.items() if changes}

    @property
    def report(self) -> dict[str, Any]:
        """Plain JSON values: how many modules of each network, and what was not used."""
        ignored = {reason: fold(keys) for reason, keys in self.ignored.items()}
        unused = {"count": len(self.unused), "names": fold(self.unused)} if self.unused else None
        report = {"file": self.name, "matched": self.matched, "unused": unused, "ignored": ignored}
        few_steps = None if self.recipe is None else self.recipe.report
        return report | {"needs_picture": self.control is not None, "few_steps": few_steps}

    @property
    def notes(self) -> list[str]:
        """What a user should know: nothing where every key was used."""
        used = ", ".join(f"{count} modules of {NETWORKS[name]}" for name, count in self.matched.items())
        notes = [f"Left out of the LoRA, as {reason}: {fold(keys)}." for reason, keys in self.ignored.items()]
        if self.unused:
            notes.append(
                f"A LoRA has parts that this model does not use ({len(self.unused)} tensors): "
                f"{fold(self.unused)}. Used: {used}."
            )
        return notes


def read_lora(path: Path, networks: Mapping[str, Shapes]) -> LoraFile:
    """Read a LoRA for networks ("transformer", "text_encoder", "text_encoder_2") whose modules have weights
    of these shapes, by the modules' own names.

    Raises `MissingFile`, or `BrokenFile` when nothing in the file fits, a part is missing, a shape
    contradicts, or a number is not finite.
    """
    if not path.is_file():
        raise MissingFile(f"There is no LoRA file {path.name!r}. Give the path of a safetensors file.")
    weights = open_weights(path)
    foreign = name_foreign_lora(weights)
    if foreign:
        raise BrokenFile(foreign)
    names = {
        network: spellings(shapes) if network == TRANSFORMER else encoder_spellings(shapes)
        for network, shapes in networks.items()
    }
    modules, unused, ignored = sort_keys(weights, names)
    changes: dict[str, dict[str, Change]] = {network: {} for network in networks}
    settings = {network: read_settings(weights.metadata, network) for network in networks}
    for (_, network, module), (target, keys) in modules.items():
        if any(name in changes[network] for name in target.modules):
            ignored.setdefault("the same module is there in another spelling", []).extend(keys.values())
            continue
        parts = {role: weights.read(key) for role, key in keys.items()}
        parts = check_finite(keys, parts)
        shapes = {name: tuple(networks[network][name]) for name in target.modules}
        changes[network] |= make_changes(module, parts, target, shapes, settings[network])
    if not any(changes.values()):
        held = fold([*unused, *(key for keys in ignored.values() for key in keys)])
        raise BrokenFile(
            f"Nothing in the LoRA fits this model: 0 of its modules. It holds {held or 'no tensors'}."
        )
    recipe = find_lora_recipe(path, weights.metadata)
    reasons = {why: tuple(keys) for why, keys in ignored.items()}
    return LoraFile(path.name, changes, tuple(unused), reasons, recipe)


# Names.


def sort_keys(weights: Iterable[str], names: Mapping[str, Mapping[str, Target]]) -> tuple[dict, list, dict]:
    """Keys -> {(rank of the prefix, network, the file's module): (target, {role: key})} in the order of the
    prefixes; those that fit nothing; and those that are ignored, by reason."""
    modules: dict[tuple[int, str, str], tuple[Target, dict[str, str]]] = {}
    unused, ignored = [], {}
    for key in weights:
        reason = next((why for sign, why in IGNORED if re.search(sign, key)), None)
        module, role = split_key(key)
        found = find_target(module, names) if role else None
        if found and role == "norm" and not found[2].modules[0].endswith(NORMS):
            found = None  # a whole weight of another layer
        if reason:
            ignored.setdefault(reason, []).append(key)
        elif found is None:
            unused.append(key)
        else:
            rank, network, target = found
            modules.setdefault((rank, network, module), (target, {}))[1][role] = key
    return dict(sorted(modules.items(), key=lambda item: item[0][0])), unused, ignored


def split_key(key: str) -> tuple[str, str | None]:
    """`module.lora_A.weight` -> module, "down"; the role is None for a key of no known ending."""
    for ending, role in BY_ENDING:
        if key.endswith(ending):
            return key.removesuffix(ending), role
    return key, None


def find_prefix(module: str) -> str:
    """The prefix of a file's module name, "" for none."""
    return next(prefix for prefix, *_ in PREFIXES if module.startswith(prefix))


def find_target(module: str, names: Mapping[str, Mapping[str, Target]]) -> tuple[int, str, Target] | None:
    """A file's module name -> the rank of its prefix, the network, and where it goes there."""
    for rank, (prefix, _, network) in enumerate(PREFIXES):
        if module.startswith(prefix) and network in names:
            name = module.removeprefix(prefix)
            target = names[network].get(name) or names[network].get(name.removesuffix("_"))
            if target is not None:
                return rank, network, target
    return None
