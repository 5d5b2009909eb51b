"""Every pair of plug-ins in one request, on both backends: both act, in either order, alike; what is refused
says why; weights are loaded once. docs/plugins.md tells what comes out here."""

import functools
import os
import re
import shlex
from collections.abc import Callable

import numpy as np
import pytest
from golden import FOLDERS
from PIL import Image
from plugin_document import DOCUMENT, Outcome, draw_pairs, draw_refused, draw_sizes, put
from plugin_pairs import INFU, KINDS, NAMES, PAIRS, REFUSED, WORKING, Part, ask, make_refused

import infu
from backends import base, load_backend
from infu import InfuError, Lora, generate
from infu.models import CONTROLNETS, IP_ADAPTERS, NAMED_LORAS, PULID
from infu.options import PictureOptions
from infu.plugin_json import read_plugin

BACKENDS = ["pytorch", "mlx"]
ALL = [(name, 0) for name in NAMES]
EACH = pytest.mark.parametrize("pair", WORKING, ids=lambda pair: " + ".join(f"{n} {i}" for n, i in pair))
ROUNDING = 1e-5  # of sums in another order in float32; latents are of size 4


@pytest.fixture(scope="module")
def loaded():
    """Backends by name, each loaded once."""
    return functools.cache(lambda name: load_backend(name, **FOLDERS, dtype="float32"))


@pytest.fixture(scope="module")
def outcome(loaded) -> Callable[..., Outcome]:
    """A backend's name and parts -> their latents, or the sentence with which they are refused; each once."""

    @functools.cache
    def make(name: str, *parts: Part) -> Outcome:
        try:
            return generate(ask(parts), loaded(name)).latents
        except InfuError as error:
            return str(error)

    return make


@EACH
def test_both_of_a_pair_act_alike_on_both_backends(outcome, pair: tuple[Part, Part]):
    """The golden base's tolerance; what the weakest of them changes in a pair is 0.2."""
    pytorch, mlx = (outcome(name, *pair) for name in BACKENDS)
    np.testing.assert_allclose(mlx, pytorch, rtol=0, atol=1e-4)
    for alone in pair:
        assert np.abs(pytorch - outcome("pytorch", alone)).max() > 0.05, alone


@EACH
@pytest.mark.parametrize("name", BACKENDS)
def test_order_of_a_pair_means_nothing(outcome, name: str, pair: tuple[Part, Part]):
    """Plug-ins add at different places, or sum at the same one. InfiniteYou's face is in no list, so it has
    no order: there the two requests are one."""
    one, other = pair
    turned = pair if INFU in (one[0], other[0]) else (other, one)
    np.testing.assert_allclose(outcome(name, *turned), outcome(name, *pair), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("pair", REFUSED, ids=str)
@pytest.mark.parametrize("name", BACKENDS)
def test_refused_pairs_say_the_same_in_either_order(outcome, name: str, pair: tuple[Part, Part]):
    assert "give all the same number" in outcome(name, *pair)
    assert outcome(name, *pair) == outcome(name, *pair[::-1]) == outcome("pytorch", *pair)


def test_all_at_once_are_alike_in_either_order(outcome):
    """One of every kind and a face in one picture."""
    (pytorch, mlx), turned = (outcome(name, *ALL) for name in BACKENDS), outcome("pytorch", *ALL[::-1])
    np.testing.assert_allclose(mlx, pytorch, rtol=0, atol=1e-4)
    np.testing.assert_allclose(turned, pytorch, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", BACKENDS)
def test_weights_are_loaded_once_and_shared_between_requests(loaded, name: str, monkeypatch):
    """Counted at the two doors through which a plug-in's file comes in; another seed is another request."""
    backend, opened = loaded(name), []
    network, read_lora = backend.network, base.read_lora

    def watch_network(kind, path, load):
        return network(kind, path, lambda: opened.append((kind, path)) or load())

    def watch_lora(path, *rest):
        opened.append(("lora", path))
        return read_lora(path, *rest)

    backend.drop_networks()
    backend.cache.clear("lora")
    monkeypatch.setattr(backend, "network", watch_network)
    monkeypatch.setattr(base, "read_lora", watch_lora)
    request = ask(ALL)
    first = generate(request, backend).latents
    files = {plugin.path for plugins in KINDS.values() for plugin in plugins[:1] if hasattr(plugin, "path")}
    assert len(set(opened)) == len(opened) and {path for _, path in opened} == files
    opened.clear()
    generate(request.replace(seed=2), backend)
    assert not opened
    np.testing.assert_array_equal(generate(request, backend).latents, first)


# docs/plugins.md.


def test_the_document_is_up_to_date(loaded, outcome):
    """With INFU_WRITE_DOCS=1 in the environment it is written anew instead."""
    sentences = {}
    for what, request in make_refused().items():
        with pytest.raises(InfuError) as error:
            generate(request, loaded("pytorch"))
        sentences[what] = str(error.value)
    found = {(one[0], other[0]): outcome("pytorch", one, other) for one, other in PAIRS}
    text = DOCUMENT.read_text(encoding="utf-8")
    wanted = put(text, "pairs", draw_pairs(found))
    wanted = put(wanted, "refusals", draw_refused(sentences))
    wanted = put(wanted, "memory", draw_sizes())
    if os.environ.get("INFU_WRITE_DOCS"):
        DOCUMENT.write_text(wanted, encoding="utf-8")
    assert wanted == DOCUMENT.read_text(encoding="utf-8")


LINES = re.findall(
    r"^\* (Python|Command line|`/generate`): `(.+)`$", DOCUMENT.read_text(encoding="utf-8"), re.M
)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with the files that the document's examples name."""
    for name in set(re.findall(r"[\w-]+\.(?:png|jpg)", DOCUMENT.read_text(encoding="utf-8"))):
        Image.new("RGB", (64, 80)).save(tmp_path / name)
    for name in set(re.findall(r"[\w-]+\.safetensors", DOCUMENT.read_text(encoding="utf-8"))):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("lines", [LINES[i : i + 3] for i in range(0, len(LINES), 3)], ids=lambda x: x[0][1])
def test_the_three_ways_to_write_a_plugin_are_one(files, lines):
    (_, python), (_, flags), (_, sent) = lines
    assert [way for way, _ in lines] == ["Python", "Command line", "`/generate`"]
    plugin = eval(python, {kind.__name__: kind for kind in PLUGIN_KINDS})
    (typed,) = read_flags(flags).request().plugins
    read = read_plugin(eval(sent, {"handle_file": str}), lambda _, value: value)
    for other in (typed, read):
        assert type(other) is type(plugin) and other.settings() == plugin.settings()
        assert seen(other) == seen(plugin)


PLUGIN_KINDS = (infu.ControlNet, infu.IPAdapter, Lora, infu.OminiControl, infu.Person, infu.PuLID)


def seen(plugin) -> list[str]:
    """The pictures of a plug-in, in any of the forms that a list of one may have."""
    values = [getattr(plugin, name, None) for name in ("image", "id_image", "mask", "hint")]
    return [str(value[0] if isinstance(value, list | tuple) else value) for value in values]


def read_flags(text: str) -> PictureOptions:
    """What the command line makes of these flags."""
    words, values = shlex.split(text), {}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        default = getattr(PictureOptions(), name := flag.removeprefix("--"))
        values[name] = [value] if isinstance(default, list) else type(default)(value)
    return PictureOptions(**values)


def test_downloads_are_known_and_their_licences_told():
    known = {"lora": NAMED_LORAS, "controlnet": CONTROLNETS, "ip_adapter": IP_ADAPTERS, "pulid": PULID}
    text = re.sub(r"\s+", " ", DOCUMENT.read_text(encoding="utf-8"))
    told = re.findall(r"`python -m infu download --(\w+) (\S+)` \(([^)]+)\)", text)
    assert {kind for kind, *_ in told} == known.keys()
    for kind, name, licence in told:
        assert licence == known[kind][name].licence, name
