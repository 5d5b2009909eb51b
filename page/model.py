"""Which model: what there is, what each way of loading it needs and whether it fits here; and the switch."""

import html
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from typing import Any, NamedTuple

import gradio as gr

from infu.errors import UnknownName
from infu.hub import count_fetched
from infu.info import RELEASED, find_model, list_memory
from infu.inspect import megabytes
from infu.memory import RELEASED as NETWORKS
from infu.memory import read_machine, weight_bytes
from infu.models import (
    HUB_ID,
    MINI,
    VERSIONS,
    ModelFiles,
    list_versions,
    local_path,
    name_model,
)
from infu.options import PATHS
from page.events import QUICK, QUIET
from page.settings import list_choices
from page.size import list_shapes
from page.studio import Studio
from page.switch import find_dtype, switch
from page.texts import label, say
from page.told import told

OFFLOADS = {None: "offload_none", "model": "offload_model", "sequential": "offload_sequential"}
WAYS = {f"{bits} {offload}": (bits, offload) for bits in (None, 8, 6, 4, 3) for offload in OFFLOADS}
PLAIN = "None None"
OWN = ("base_model_path", "model_dir", "transformer_path")  # what a visitor of this machine may name
MODELS: dict[str, dict[str, str]] = {"mini": {}, "flux": RELEASED}  # the choices but "own" -> their paths
POLL = 0.5  # seconds


class ModelFold(NamedTuple):
    model: gr.Radio
    own: gr.Group
    paths: tuple[gr.Textbox, ...]
    files: gr.HTML
    way: gr.Radio
    load: gr.Button
    state: gr.HTML


def draw_model(studio: Studio) -> ModelFold:
    choices = [(MINI.name, "mini"), (name_model(*RELEASED.values()), "flux"), (label("model_own"), "own")]
    model = gr.Radio(choices, value=find_choice(studio), label=label("model"), elem_id="model")
    with gr.Group(visible=model.value == "own") as own:
        paths = tuple(
            gr.Textbox(studio.options.get(name), label=label(name), max_lines=1, elem_id=name) for name in OWN
        )
    files = gr.HTML("", elem_id="model_files")
    way = gr.Radio([(label("offload_none"), PLAIN)], value=PLAIN, label=label("way"), elem_id="way")
    load = gr.Button(label("load_model"), elem_id="load_model")
    return ModelFold(model, own, paths, files, way, load, gr.HTML("", elem_id="model_state"))


def wire_model(
    studio: Studio,
    blocks: gr.Blocks,
    opened: gr.Accordion,
    fold: ModelFold,
    shape: gr.Radio,
    settings: dict[str, Any],
) -> gr.events.Dependency:
    """`settings`: those with the released names; what the loaded model was made for is filled in there, and
    into the shapes. Returns the switch, to chain on."""
    filled = [shape, *(settings[name] for name in ("width", "height", "num_steps", "model_version"))]

    @told
    def look(visitor: gr.Request, model: str, *named: str | None) -> Iterator[tuple[Any, ...]]:
        """The model that was chosen -> its own fields, its ways, and the line about its files."""
        paths = read_paths(model, named)
        if model == "own" and not paths:
            yield gr.update(visible=True), gr.skip(), draw_line(str(label("model_name_it")))
            return
        files, found = find_model(**paths)
        if not studio.trouble:
            studio.load()  # its precision is the device's choice, and told
        if found["here"]:
            line = str(label("model_here"))
        elif model == "flux":
            line = f"{label('model_to_fetch')} {megabytes(count_released())}"
        else:
            line = html.escape(" ".join(found["missing"]))
        ways = list_ways(files, find_dtype(studio, studio.options), visitor)
        yield gr.update(visible=model == "own"), ways, draw_line(line)

    def load(visitor: gr.Request, model: str, way: str, *named: str | None) -> Iterator[tuple[Any, ...]]:
        """The switch: its stages, then the line about the loaded model, and the settings it was made for."""
        same = [gr.skip()] * len(filled)
        try:
            for line in follow(studio, read_paths(model, named), way, visitor):
                yield draw_line(line), *same
        except gr.Error as error:
            kept = say(visitor, "model_kept", name=studio.backend.model_name) if studio.backend else ""
            yield draw_line(f"{error.message} {html.escape(kept)}"), *same
            raise
        name = html.escape(studio.backend.model_name)
        yield draw_line(say(visitor, "model_loaded", name=name)), *fill(studio)

    def catch_up() -> tuple[Any, ...]:
        """A page opened after a switch -> what was drawn for the model before it."""
        return (find_choice(studio), *fill(studio)) if studio.switched else (gr.skip(),) * (1 + len(filled))

    chosen = [fold.model, *fold.paths]
    named = [event for path in fold.paths for event in (path.submit, path.blur)]
    seen = gr.on(
        [opened.expand, fold.model.change, *named],
        look,
        chosen,
        [fold.own, fold.way, fold.files],
        trigger_mode="always_last",
        concurrency_limit=None,
        **QUIET,
    )
    seen.failure(lambda: "", None, fold.files, **QUICK)
    blocks.load(catch_up, None, [fold.model, *filled], **QUICK)
    asked = [fold.model, fold.way, *fold.paths]
    return fold.load.click(load, asked, [fold.state, *filled], concurrency_limit=None, **QUIET)


@told
def follow(studio: Studio, paths: dict[str, str], way: str, visitor: gr.Request) -> Iterator[str]:
    """Switches the model, and says twice a second how far it is, as HTML. A visitor who leaves does not stop
    it: others may be waiting for it."""
    if way not in WAYS:
        raise UnknownName("way of loading", way, WAYS)
    kept = {name: studio.options.get(name) for name in ("name", "dtype")}
    bits, offload = WAYS[way]
    options = kept | {"model_version": VERSIONS[0]} | paths | {"quantize": bits, "offload": offload}
    stage, done, begun = ["model_reading"], Future(), time.monotonic()

    def work() -> None:
        try:
            done.set_result(switch(studio, options, stage.append))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()  # a daemon: the server can end within a download
    repos = [name for name in paths.values() if HUB_ID.fullmatch(name)]
    while not wait([done], POLL).done:
        fetched = megabytes(sum(map(count_fetched, repos))) if stage[-1] == "model_reading" and repos else ""
        seconds = f"{time.monotonic() - begun:.0f} s"
        yield html.escape(f"{say(visitor, stage[-1])} {', '.join(filter(None, (fetched, seconds)))}")
    done.result()


def read_paths(model: str, named: tuple[str | None, ...]) -> dict[str, str]:
    """The choice of a model, and its own fields -> `locate`'s arguments, those that are given.
    Raises `InfuError`."""
    if model == "own":
        paths = {name: path.strip() for name, path in zip(OWN, named, strict=True) if path and path.strip()}
        folder = local_path(paths["model_dir"], "model_dir") if "model_dir" in paths else None
        versions = list_versions(folder) if folder else ()
        return paths | ({"model_version": versions[0]} if versions else {})
    if model not in MODELS:
        raise UnknownName("model", model, (*MODELS, "own"))
    return MODELS[model]


def find_choice(studio: Studio) -> str:
    """What the loaded model is among the choices."""
    paths = {name: studio.options[name] for name in PATHS if studio.options.get(name)}
    return next((choice for choice, its_paths in MODELS.items() if paths == its_paths), "own")


def fill(studio: Studio) -> tuple[Any, ...]:
    """The shapes, width, height and steps that the loaded model was made for, and its versions."""
    defaults = studio.defaults
    version = studio.backend.model_version or VERSIONS[0]
    versions = gr.update(choices=list_choices(version), value=version)
    size = defaults.width, defaults.height
    shapes = gr.update(choices=list_shapes(*size), value=f"{size[0]}x{size[1]}")
    return shapes, *size, defaults.num_steps, versions


def list_ways(files: ModelFiles | None, dtype: str, visitor: gr.Request) -> dict[str, Any]:
    """The ways of loading a model in that precision, what each needs, and whether it fits here; the first
    that does is chosen."""
    machine, whole = read_machine(), dtype == "float32"
    on_card = machine["device_memory"] is not None
    rows = [row for row in list_memory(files, machine) if (row["dtype"] == "float32") == whole]
    choices, fitting = [], []
    for row in rows:
        bits, offload = row["quantize"], row["offload"]
        needed = row["device"] if on_card else row["shared"]
        fits = say(visitor, "way_fits" if row["fits"] else "way_too_large")
        kind = bits or (32 if whole else 16)
        how = f"{kind} {say(visitor, 'bits')}, {say(visitor, OFFLOADS[offload])}"
        choices.append((f"{how}: {megabytes(needed)}, {fits}", f"{bits} {offload}"))
        fitting += [choices[-1][1]] if row["fits"] else []
    return gr.update(choices=choices, value=fitting[0] if fitting else choices[0][1])


def count_released() -> int:
    """Bytes of FLUX.1-dev's and InfiniteYou's files, which are in bfloat16 but for the projection."""
    dtypes = dict.fromkeys(NETWORKS, "bfloat16") | {"projection": "float32"}
    return sum(weight_bytes(name, network, dtypes[name], None) for name, network in NETWORKS.items())


def draw_line(text: str) -> str:
    return f"<p role='status'>{text}</p>"
