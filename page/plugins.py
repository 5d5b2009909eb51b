"""The folds of the plug-ins together: drawn, wired, asked for a run, and filled from a picture's settings."""

from typing import Any, NamedTuple

import gradio as gr

from infu.plugins import Person, Plugin
from page.another import (
    DRAWN,
    PLACES,
    AnotherFold,
    ask_another,
    draw_another,
    give_rest,
    list_another,
    restore_another,
    wire_another,
)
from page.hint import HintFold, ask_hint, draw_hint, list_hint, restore_hint, wire_hint
from page.pictures import (
    KINDS,
    Fold,
    ask_pictures,
    draw_fold,
    list_controls,
    read_strength,
    restore_picture,
    wire_fold,
)
from page.studio import Studio
from page.texts import say

# What a plug-in's settings call it -> the text that a visitor reads.
TITLES = {kind.key: part for part, kind in KINDS.items()} | {
    "controlnet": "hint_picture",
    "person": "another_person",
}


class Plugins(NamedTuple):
    another: AnotherFold
    hint: HintFold
    pictures: dict[str, Fold]


def draw_plugins(studio: Studio) -> Plugins:
    another, hint = draw_another(studio), draw_hint(studio)
    return Plugins(another, hint, {part: draw_fold(studio, part) for part in KINDS})


def wire_plugins(studio: Studio, plugins: Plugins, settings: dict[str, gr.components.Component]) -> list[Any]:
    """Returns, for each fold, what has its verdict given once more after another event."""
    judged = [wire_fold(studio, part, fold) for part, fold in plugins.pictures.items()]
    another = wire_another(studio, plugins.another, settings)
    return [*judged, another, wire_hint(studio, plugins.hint, settings)]


def list_plugin_controls(plugins: Plugins) -> dict[str, gr.components.Component]:
    """What a run reads, by the names in `ask_plugins`."""
    controls = list_another(plugins.another) | list_hint(plugins.hint)
    for part, fold in plugins.pictures.items():
        controls |= list_controls(part, fold)
    return controls


def list_restored(plugins: Plugins) -> list[gr.components.Component]:
    """What `restore_plugins` fills."""
    another, hint = plugins.another, plugins.hint
    filled = [
        another.scale,
        another.place,
        another.frame,
        hint.scale,
        hint.weights.which,
        hint.kind,
        hint.mode,
    ]
    for fold in plugins.pictures.values():
        filled += [fold.scale, fold.weights.which]
    return filled


def ask_plugins(studio: Studio, asked: dict[str, Any]) -> tuple[tuple[Plugin, ...], dict[str, Any]]:
    """The values of the page's controls, by name -> the plug-ins of a run, and what a request takes besides.
    What cannot run is told here, before it begins. Raises `InfuError`."""
    people: tuple[Person, ...] = ask_another(studio, asked)
    plugins = (*people, *ask_hint(studio, asked), *ask_pictures(studio, asked))
    return plugins, give_rest(people, asked)


def restore_plugins(settings: dict[str, Any], visitor: gr.Request) -> tuple[Any, ...]:
    """The settings inside a picture -> values of `list_restored`: strength 0 where a plug-in was not used. A
    file is not to be trusted: raises `InvalidRequest`, as for any request."""
    used = {key: plugin for plugin in reversed(list_plugins(settings)) for key in TITLES if key in plugin}
    pictures = [
        value for kind in KINDS.values() for value in restore_picture(used.get(kind.key), kind, visitor)
    ]
    return (
        *restore_another(used.get("person"), settings, visitor),
        *restore_hint(used.get("controlnet"), visitor),
        *pictures,
    )


def list_plugins(settings: dict[str, Any]) -> list[dict[str, Any]]:
    plugins = settings.get("plugins")
    return [plugin for plugin in plugins if isinstance(plugin, dict)] if isinstance(plugins, list) else []


def name_lost(settings: dict[str, Any], visitor: gr.Request | str) -> list[str]:
    """The plug-ins in a picture's settings whose pictures do not come back with them."""
    plugins = list_plugins(settings)
    return [say(visitor, title) for key, title in TITLES.items() if any(key in plugin for plugin in plugins)]


def describe_plugin(plugin: dict[str, Any], visitor: gr.Request | str) -> tuple[str, str]:
    """A plug-in's settings -> name and value for the facts of a picture."""
    key = next((key for key in TITLES if key in plugin), "lora")
    title = say(visitor, TITLES[key]) if key in TITLES else "LoRA"
    if key == "person":
        region = plugin["region"]
        places = {name: say(visitor, text) for name, text in PLACES.items()}
        name = places.get(region if isinstance(region, str) else DRAWN, "")
    else:
        name = ", ".join(filter(None, (plugin[key], plugin.get("hint") or plugin.get("mode"))))
    return title, f"{name} ({read_strength(plugin):g})"
