"""The plug-ins that ship for the mini model: found by name without any hub, checked against the model that is
loaded, and offered on the page where that is the mini."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from browsing import PATIENCE, visited
from golden import FOLDERS
from playwright.sync_api import Browser, Page, expect
from serving import Server
from typer.testing import CliRunner

from backends import load_backend
from backends.pytorch.load import load_network
from infu import ControlNet, GenerationRequest, InfuError, IPAdapter, generate, models
from infu.cli import app
from infu.errors import BrokenFile, MissingFile
from infu.fitting import check_plugin
from infu.models import CONTROLNETS, IP_ADAPTERS, MINI, find_controlnet, find_ip_adapter
from infu.training.ip_adapter import AdapterLoss, make_adapter, save_adapter
from infu.training.minibase.tower import SIZES, write_tower
from infu.training.networks import make_infusenet, save_side_network

SMALL = GenerationRequest(prompt="a woman", width=64, height=80, num_steps=2, seed=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Both plug-ins at the mini's size, of random weights."""
    folder = tmp_path_factory.mktemp("plugins")
    part = MINI / "base/transformer"
    base = load_network("transformer", part, part, torch.float32, "cpu")
    network = make_infusenet(base, (0, 6))
    state = {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in network.state_dict().items()}
    save_side_network(folder / "canny", state, dict(network.config))
    adapter = AdapterLoss(make_adapter(base, SIZES["hidden_size"], 8, 0), base, 1.0)
    state = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in adapter.state_dict().items()}
    save_adapter(folder / "style", state, torch.float16)
    write_tower(folder / "style/image_encoder")
    return folder


@pytest.fixture
def shipped(made, monkeypatch) -> None:
    for known, name, own in ((CONTROLNETS, "mini-canny", "canny"), (IP_ADAPTERS, "mini-style", "style")):
        monkeypatch.setitem(known, name, replace(known[name], ships=made / own))


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)


def test_what_ships_fits_the_mini_acts_and_is_small(picture):
    request = SMALL.replace(width=128, height=160)
    plugins = (ControlNet("mini-canny", picture, hint="canny"), IPAdapter("mini-style", picture))
    latents = {}
    for name in ("pytorch", "mlx"):
        backend = load_backend(name, dtype="float32")
        plain = generate(request, backend).latents
        for plugin in plugins:
            check_plugin(plugin, backend, request)
            latents[name, plugin.path] = generate(request.replace(plugins=[plugin]), backend).latents
            assert np.abs(latents[name, plugin.path] - plain).max() > 0.1, plugin.path
    for plugin in plugins:
        pytorch, mlx = (latents[name, plugin.path] for name in ("pytorch", "mlx"))
        np.testing.assert_allclose(pytorch, mlx, rtol=0, atol=1e-3, err_msg=plugin.path)
    files = [path for path in (MINI / "plugins").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000


@pytest.mark.parametrize("name", ["pytorch", "mlx"])
def test_both_run_by_name_and_the_adapter_sees_by_the_encoder_beside_it(
    made, shipped, picture, name, monkeypatch
):
    monkeypatch.setattr(models, "find_repo", lambda *_: pytest.fail("the hub's cache was asked"))
    backend = load_backend(name, dtype="float32")
    plain = generate(SMALL, backend).latents
    for plugin in (ControlNet("mini-canny", picture, hint="canny"), IPAdapter("mini-style", picture)):
        check_plugin(plugin, backend, SMALL)
        latents = generate(SMALL.replace(plugins=[plugin]), backend).latents
        assert np.abs(latents - plain).max() > 1e-3, plugin
    named = IPAdapter("mini-style", picture, image_encoder=made / "style/image_encoder")
    np.testing.assert_array_equal(generate(SMALL.replace(plugins=[named]), backend).latents, latents)


def test_another_model_refuses_them_in_words(shipped, picture):
    backend = load_backend("pytorch", **FOLDERS, dtype="float32")
    for plugin in (ControlNet("mini-canny", picture, hint="canny"), IPAdapter("mini-style", picture)):
        with pytest.raises(BrokenFile, match="made for another base model.*Choose one made for the loaded"):
            check_plugin(plugin, backend, SMALL)


def test_an_encoder_that_is_missing_is_named(made, picture, tmp_path, monkeypatch):
    monkeypatch.setattr(models.hub, "find_repo", lambda *_: None)
    shutil.copy(made / "style/ip-adapter.bin", tmp_path)
    backend = load_backend("pytorch", dtype="float32")
    with pytest.raises(MissingFile, match="has it beside it, as the folder image_encoder"):
        check_plugin(IPAdapter(tmp_path, picture), backend, SMALL)
    (tmp_path / "image_encoder").mkdir()
    with pytest.raises(InfuError, match="image_encoder/config.json is missing"):
        check_plugin(IPAdapter(tmp_path / "ip-adapter.bin", picture), backend, SMALL)


def test_the_known_names_are_in_this_package_and_a_download_says_so(shipped, monkeypatch):
    monkeypatch.setattr(models.hub, "fetch_repo", lambda *_: pytest.fail("the hub was asked"))
    names = ["--ip_adapter", "mini-style", "--controlnet", "mini-canny"]
    base = ["--base_model_path", str(MINI / "base")]
    result = CliRunner().invoke(app, ["download", *names, *base])
    assert result.exit_code == 0, result.output
    for name in ("mini-style", "mini-canny"):
        assert f"{name} of InfU Space is here: it ships with this program (Apache-2.0)" in result.output


def test_their_places_are_the_packages_own():
    assert find_controlnet("mini-canny") == MINI / "plugins/canny"
    assert find_ip_adapter("mini-style") == MINI / "plugins/style/ip-adapter.bin"


def test_the_page_offers_them_with_the_mini_and_others_with_another(
    browser: Browser, server: Server, tmp_path: Path
):
    garden = tmp_path / "garden"
    shutil.copytree(MINI / "base", garden)
    with visited(browser, server) as page:
        for part, name in (("style_picture", "mini-style"), ("hint_picture", "mini-canny")):
            page.locator(f"#{part} > button").click()
            expect(page.locator(f"#{part}_weights input")).to_have_value(f"{name}: InfU Space")
            assert read_options(page, part) == [f"{name}: InfU Space", "A file of one's own"]
            verdict = page.locator(f"#{part}_verdict")
            expect(verdict).to_contain_text("Ready to run. Licence: Apache-2.0", timeout=PATIENCE)
        page.locator("#object_picture > button").click()
        expect(page.locator("#object_picture_verdict")).to_contain_text(
            "--lora subject_512", timeout=PATIENCE
        )

        page.locator("#which_model > button").click()
        page.get_by_label("My own files").check()
        page.locator("#base_model_path input, #base_model_path textarea").fill(str(garden))
        page.locator("#load_model").click()
        expect(page.locator("#model_state")).to_contain_text("Loaded: garden.", timeout=PATIENCE)
        for part, name in (("style_picture", "xlabs"), ("hint_picture", "union-pro-2")):
            expect(page.locator(f"#{part}_weights input")).to_have_value(
                f"{name}: {(CONTROLNETS | IP_ADAPTERS)[name].repo}", timeout=PATIENCE
            )
            expect(page.locator(f"#{part}_verdict")).to_contain_text("download --", timeout=PATIENCE)
            options = read_options(page, part)
            assert options[-1] == "A file of one's own" and not any("mini" in option for option in options)


def read_options(page: Page, part: str) -> list[str]:
    field = page.locator(f"#{part}_weights input")
    field.click()
    options = page.locator(f"#{part}_weights").get_by_role("option")
    expect(options.first).to_be_visible(timeout=PATIENCE)
    texts = [text.strip().removeprefix("✓").strip() for text in options.all_inner_texts()]
    field.press("Escape")
    return texts
