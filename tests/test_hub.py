"""Fetching from the hub, against a server that answers as it does, in processes of their own (huggingface_hub
reads its environment once). Every refusal is a sentence that says what to do."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from golden import GOLDEN, PEFT
from hub_server import Hub
from safetensors.numpy import load, load_file, save, save_file

from infu.errors import BrokenFile, DownloadError, MissingFile
from infu.hub import explain, fetch_file
from infu.models import CLIP_VISION, IP_ADAPTERS, SIGLIP, find_controlnet, find_lora_file
from infu.weights.pulid import EVA

BASE, INFINITE_YOU = "black-forest-labs/FLUX.1-dev", "ByteDance/InfiniteYou"
TOKEN = "a-token-for-tests"
RELEASE = "infu_flux_v1.0"


def read_folder(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The golden base as the hub holds FLUX.1-dev: the transformer in shards, and much that nobody needs."""
    files = read_folder(GOLDEN / "base")
    name = "transformer/diffusion_pytorch_model"
    tensors = load_file(GOLDEN / "base" / f"{name}.safetensors")
    del files[f"{name}.safetensors"]
    folder, names, places = tmp_path_factory.mktemp("shards"), sorted(tensors), {}
    for k in range(3):
        shard = f"diffusion_pytorch_model-{k + 1:05d}-of-00003.safetensors"
        save_file({n: tensors[n] for n in names[k::3]}, folder / shard)
        files[f"transformer/{shard}"] = (folder / shard).read_bytes()
        places |= dict.fromkeys(names[k::3], shard)
    files[f"{name}.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": places}).encode()
    return files | {"flux1-dev.safetensors": b"waste" * 100, "ae.safetensors": b"waste", "README.md": b"#"}


@pytest.fixture
def hub(sharded: dict[str, bytes]) -> Iterator[Hub]:
    server = Hub()
    server.repos = {BASE: dict(sharded), INFINITE_YOU: infinite_you()}
    server.loose["arcface.pth"] = b"PK\3\4" + bytes(range(256)) * 400
    yield server
    server.close()


def infinite_you() -> dict[str, bytes]:
    version = f"{RELEASE}/aes_stage2"
    files = read_folder(GOLDEN / "InfiniteYou")
    other = {name.replace("aes_stage2", "sim_stage1"): data for name, data in files.items()}
    weights = next(name for name in other if name.endswith(".safetensors"))
    other[weights] = save(load(other[weights]), {"format": "pt", "version": "another"})
    files |= {
        name: data if name == weights else data + b"\n" for name, data in other.items() if name not in files
    }
    antelope = "supports/insightface/models/antelopev2"
    return files | {
        f"{version}/infusenet_aes_bf16.safetensors": b"ComfyUI's",
        f"{antelope}/scrfd_10g_bnkps.onnx": b"detector",
        f"{antelope}/glintr100.onnx": b"recogniser of another system",
        "supports/optional_loras/flux_realism_lora.safetensors": b"realism",
        "assets/teaser.jpg": b"picture",
    }


def start(hub: Hub | str, home: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
    """`python -m infu` with a home of its own, talking to `hub` alone."""
    url = hub if isinstance(hub, str) else hub.url
    settings = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home / "hf"),
        "INFU_CACHE": str(home / "infu"),
        "INFU_ARCFACE_URL": f"{url}/loose/arcface.pth",
    }
    strange = ("HF_", "HUGGING", "INFU_", "HTTP", "ALL_PROXY")  # of the developer's own
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(strange)}
    return subprocess.Popen(
        [sys.executable, "-m", "infu", *command],
        env=kept | settings | environment,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(hub: Hub | str, home: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    process = start(hub, home, *command, **environment)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def refusal(answer: subprocess.CompletedProcess[str], home: Path) -> str:
    """The sentence of a run that failed, checked for what no text may hold."""
    assert answer.returncode == 1, answer
    assert answer.stdout == ""
    error = json.loads(answer.stderr.splitlines()[-1])
    assert str(home) not in answer.stderr and TOKEN not in answer.stderr and "Traceback" not in answer.stderr
    return f"{error['error']}: {error['message']}"


def test_download_fetches_what_is_needed_once_and_then_asks_nothing(hub: Hub, tmp_path: Path):
    first = run(hub, tmp_path, "download", "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout) == {"name": "FLUX.1-dev + InfiniteYou", "model_version": "aes_stage2"}
    wanted = set(hub.repos[BASE]) - {"flux1-dev.safetensors", "ae.safetensors", "README.md"}
    release = {
        name
        for name in hub.repos[INFINITE_YOU]
        if f"{RELEASE}/aes_stage2" in name and "infusenet_aes" not in name
    }
    supports = {"supports/insightface/models/antelopev2/scrfd_10g_bnkps.onnx"}
    loras = {"supports/optional_loras/flux_realism_lora.safetensors"}
    assert hub.fetched() == wanted | release | supports | loras
    assert (tmp_path / "infu" / "recognition_arcface_ir_se50.pth").read_bytes() == hub.loose["arcface.pth"]
    hub.seen.clear()
    assert run(hub, tmp_path, "download", "--json").stdout == first.stdout
    told = json.loads(run(hub, tmp_path, "info", "--json").stdout)
    assert [model["here"] for model in told["models"]][-1] and told["models"][-1]["missing"] == []
    assert hub.seen == []


def test_pulid_is_fetched_with_what_looks_at_its_photograph(hub: Hub, tmp_path: Path):
    names = {"guozinan/PuLID": "pulid_flux_v0.9.1.safetensors", "QuanSun/EVA-CLIP": EVA}
    for repo, name in names.items():
        hub.repos[repo] = {name: b"PK" + name.encode(), "another.safetensors": b"waste", "README.md": b"#"}
    facexlib = {"v0.1.0": "detection_Resnet50_Final.pth", "v0.2.0": "parsing_bisenet.pth"}
    hub.loose |= {f"{release}/{name}": b"PK\3\4" + name.encode() for release, name in facexlib.items()}
    mirror = {"INFU_FACEXLIB_URL": f"{hub.url}/loose"}
    answer = run(hub, tmp_path, "download", "--pulid", "0.9.1", **mirror)
    assert answer.returncode == 0, answer.stderr
    assert "guozinan/PuLID is here (Apache-2.0)." in answer.stderr and "non-commercial" in answer.stderr
    antelope = "supports/insightface/models/antelopev2"
    faces = {f"{antelope}/glintr100.onnx", f"{antelope}/scrfd_10g_bnkps.onnx"}
    assert hub.fetched() >= {*names.values(), *faces} and "another.safetensors" not in hub.fetched()
    for name in facexlib.values():
        assert (tmp_path / "infu" / "facexlib" / name).is_file()
    hub.seen.clear()
    where = "from infu.models import find_pulid; from infu.pulid_photo import find_encoders; "
    script = f"{where} print(find_pulid('0.9.1').name, *(p.name for p in vars(find_encoders(None)).values()))"
    told = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "INFU_CACHE": str(tmp_path / "infu")},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert told.stdout.split() == [
        *names.values(),
        "scrfd_10g_bnkps.onnx",
        "glintr100.onnx",
        *facexlib.values(),
    ], told.stderr
    assert hub.seen == []
    assert "version of PuLID" in refusal(run(hub, tmp_path, "download", "--pulid", "2", "--json"), tmp_path)


def test_loras_and_adapters_are_fetched_by_name_and_known_for_what_they_are(hub: Hub, tmp_path: Path):
    repo = "alimama-creative/FLUX.1-Turbo-Alpha"
    hub.repos[repo] = {"diffusion_pytorch_model.safetensors": PEFT.read_bytes(), "README.md": b"#"}
    adapter = (GOLDEN / "ominicontrol/subject.safetensors").read_bytes()
    hub.repos["Yuanshi/OminiControl"] = {f"omini/{n}.safetensors": adapter for n in ("subject_512", "other")}
    answer = run(hub, tmp_path, "download", "--lora", "turbo-alpha", "--lora", "subject_512")
    assert answer.returncode == 0, answer.stderr
    assert f"turbo-alpha of {repo} is here (FLUX.1 [dev] Non-Commercial License)." in answer.stderr
    assert hub.fetched() >= {"diffusion_pytorch_model.safetensors", "omini/subject_512.safetensors"}
    assert not hub.fetched() & {"README.md", "omini/other.safetensors"}
    hub.seen.clear()
    script = (
        "from infu.few_steps import find_lora_recipe; from infu.models import find_lora_file; "
        "print(find_lora_recipe(find_lora_file('turbo-alpha'), {}).name, find_lora_file('subject_512').name)"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf")}
    root = Path(__file__).parents[1]
    told = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=root, capture_output=True, text=True
    )
    assert told.stdout.split() == ["FLUX.1-Turbo-Alpha", "subject_512.safetensors"], told.stderr
    assert hub.seen == []
    assert "LoRA called 'turbo'" in refusal(
        run(hub, tmp_path, "download", "--lora", "turbo", "--json"), tmp_path
    )
    with pytest.raises(MissingFile, match="python -m infu download --lora hyper-8"):
        find_lora_file("hyper-8")


def test_a_model_that_is_here_needs_no_network(hub: Hub, tmp_path: Path):
    assert run(hub, tmp_path, "download", "--json").returncode == 0
    hub.close()
    assert run(hub.url, tmp_path, "download", "--json").returncode == 0
    assert run(hub.url, tmp_path, "download", "--json", HF_HUB_OFFLINE="1").returncode == 0


def test_a_second_version_costs_only_its_own_files(hub: Hub, tmp_path: Path):
    assert run(hub, tmp_path, "download", "--json").returncode == 0
    hub.seen.clear()
    answer = run(hub, tmp_path, "download", "--json", "--model_version", "sim_stage1")
    assert json.loads(answer.stdout)["model_version"] == "sim_stage1"
    assert hub.fetched() == {name for name in hub.repos[INFINITE_YOU] if "sim_stage1" in name}


@pytest.mark.parametrize("folder", ["transformer/", ""])
def test_a_part_from_another_repository_spares_the_bases_own(hub: Hub, tmp_path: Path, folder: str):
    theirs = {
        name.removeprefix("transformer/"): data
        for name, data in hub.repos[BASE].items()
        if "transformer/" in name
    }
    hub.repos["owner/fine-tune"] = {f"{folder}{name}": data for name, data in theirs.items()} | {
        "demo.mp4": b"film"
    }
    answer = run(
        hub,
        tmp_path,
        "download",
        "--json",
        "--base_model_path",
        BASE,
        "--transformer_path",
        "owner/fine-tune",
    )
    assert answer.returncode == 0, answer.stderr
    sent = {path for method, path, _ in hub.seen if method == "GET" and path.startswith("/file/")}
    assert {path.split("/file/")[1] for path in sent if path.endswith("-of-00003.safetensors")} == {
        "owner/fine-tune"
    }
    assert "demo.mp4" not in hub.fetched() and "flux1-dev.safetensors" not in hub.fetched()


def test_a_cut_connection_is_resumed_where_it_broke(hub: Hub, tmp_path: Path):
    large = bytes(range(256)) * 50_000  # 12.8 MB; huggingface_hub writes in pieces of 10 MiB
    lora = "supports/optional_loras/flux_realism_lora.safetensors"
    hub.repos[INFINITE_YOU][lora], hub.loose["arcface.pth"] = large, large[::-1]
    hub.cut = {lora: 11_000_000, "/loose/arcface.pth": 12_000_000}
    answer = run(hub, tmp_path, "download", "--json")
    assert answer.returncode == 0, answer.stderr
    ranges = {path.rsplit("/", 1)[1]: headers["range"] for _, path, headers in hub.seen if "range" in headers}
    assert ranges == {Path(lora).name: "bytes=10485760-", "arcface.pth": "bytes=10485760-"}
    assert next((tmp_path / "hf").rglob(Path(lora).name)).read_bytes() == large
    assert (tmp_path / "infu" / "recognition_arcface_ir_se50.pth").read_bytes() == large[::-1]
    assert "http" not in answer.stderr


def test_a_download_that_was_killed_goes_on_and_says_so_before(hub: Hub, tmp_path: Path):
    assert run(hub, tmp_path, "download", "--json").returncode == 0
    shard = next((tmp_path / "hf").rglob("*-00002-of-00003.safetensors"))
    blob = shard.resolve()
    blob.rename(blob.with_name(f"{blob.name}.0123abcd.incomplete"))  # as a killed process leaves it
    shard.unlink()
    hub.seen.clear()
    offline = refusal(run(hub, tmp_path, "download", "--json", HF_HUB_OFFLINE="1"), tmp_path)
    assert "HF_HUB_OFFLINE" in offline and BASE in offline
    assert run(hub, tmp_path, "download", "--json").returncode == 0
    assert hub.fetched() == {f"transformer/{shard.name}"}


def test_a_cache_of_an_older_hub_library_is_used_when_whole_and_completed_when_not(hub: Hub, tmp_path: Path):
    assert run(hub, tmp_path, "download", "--json").returncode == 0
    for listing in (tmp_path / "hf").rglob("trees/*.json"):  # it did not keep these
        listing.unlink()
    hub.seen.clear()
    assert run(hub, tmp_path, "download", "--json").returncode == 0
    assert hub.seen == []
    next((tmp_path / "hf").rglob("*-00003-of-00003.safetensors")).unlink()
    assert run(hub, tmp_path, "download", "--json").returncode == 0
    assert {path for _, path, _ in hub.seen if path.endswith("-00003-of-00003.safetensors")}


def test_ctrl_c_ends_a_download_at_once_and_leaves_no_half_files(hub: Hub, tmp_path: Path):
    hub.slow = 0.05  # seconds a kilobyte: the threads of huggingface_hub would finish their files in minutes
    process = start(hub, tmp_path, "download", "--json")
    while not any(method == "GET" and "safetensors" in path for method, path, _ in hub.seen):
        assert process.poll() is None
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")
    assert time.monotonic() - began < 5
    assert not list((tmp_path / "hf").rglob("*.incomplete"))


def test_what_killed_downloads_left_is_removed_by_the_next(hub: Hub, tmp_path: Path):
    blobs = tmp_path / "hf" / "hub" / f"models--{BASE.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    for name, age in (("old", 7200), ("of another process", 60)):
        (blobs / f"{name}.incomplete").write_bytes(b"half")
        os.utime(blobs / f"{name}.incomplete", (time.time() - age,) * 2)
    assert run(hub, tmp_path, "download", "--json").returncode == 0
    assert [path.name for path in blobs.glob("*.incomplete")] == ["of another process.incomplete"]


def test_damaged_files_in_the_cache_are_fetched_again_and_only_those(hub: Hub, tmp_path: Path):
    assert run(hub, tmp_path, "download", "--json").returncode == 0
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    shards = sorted((tmp_path / "hf").rglob("*-of-00003.safetensors"))
    for shard, damage in zip(shards, (pointer, b"", b"cut off"), strict=True):
        shard.resolve().write_bytes(damage)
    hub.seen.clear()
    assert run(hub, tmp_path, "download", "--json").returncode == 0
    assert hub.fetched() == {f"transformer/{shard.name}" for shard in shards}
    for shard in shards:
        assert shard.read_bytes() == hub.repos[BASE][f"transformer/{shard.name}"]


def test_without_a_token_the_licence_and_the_login_are_named(hub: Hub, tmp_path: Path):
    hub.gated = {BASE}
    said = refusal(run(hub, tmp_path, "download", "--json"), tmp_path)
    assert said.startswith("DownloadError") and f"huggingface.co/{BASE}" in said and "not logged in" in said
    assert "hf auth login" in said and "HF_TOKEN" in said


def test_a_wrong_token_is_told_from_a_missing_one(hub: Hub, tmp_path: Path):
    hub.gated, hub.token = {BASE}, "another"
    said = refusal(run(hub, tmp_path, "download", "--json", HF_TOKEN=TOKEN), tmp_path)
    assert "does not accept your token" in said and "huggingface.co/settings/tokens" in said


def test_a_licence_not_accepted_is_named_with_its_page(hub: Hub, tmp_path: Path):
    hub.gated, hub.token = {BASE}, TOKEN
    said = refusal(run(hub, tmp_path, "download", "--json", HF_TOKEN=TOKEN), tmp_path)
    assert "not accepted the licence" in said and f"huggingface.co/{BASE}" in said


def test_a_token_without_the_right_is_told_which_right(hub: Hub, tmp_path: Path):
    hub.gated, hub.token = {BASE}, TOKEN
    hub.refusal = "Please enable access to public gated repositories in your fine-grained token settings."
    said = refusal(run(hub, tmp_path, "download", "--json", HF_TOKEN=TOKEN), tmp_path)
    assert "read access to contents of all public gated repos" in said


def test_with_licence_and_token_the_token_stays_at_the_hub(hub: Hub, tmp_path: Path):
    hub.gated, hub.token, hub.accepted = {BASE}, TOKEN, True
    assert run(hub, tmp_path, "download", "--json", HF_TOKEN=TOKEN).returncode == 0
    hosts = {headers["host"].split(":")[0] for _, _, headers in hub.seen if "authorization" in headers}
    assert hosts == {"127.0.0.1"}  # the storage is at localhost, the face encoder outside the hub
    outside = [headers for _, path, headers in hub.seen if path.startswith("/loose/")]
    assert outside and not any("authorization" in headers for headers in outside)


def test_an_unknown_repository_is_named(hub: Hub, tmp_path: Path):
    said = refusal(run(hub, tmp_path, "download", "--json", "--base_model_path", "nobody/FLUX.2"), tmp_path)
    assert "There is no nobody/FLUX.2 here or on the hub" in said


def test_a_repository_of_another_kind_is_named(hub: Hub, tmp_path: Path):
    hub.repos["owner/poems"] = {"poems.txt": b"roses"}
    said = refusal(run(hub, tmp_path, "download", "--json", "--base_model_path", "owner/poems"), tmp_path)
    assert "owner/poems holds no model of this kind" in said


def test_no_network_is_told_from_a_hub_out_of_order(hub: Hub, tmp_path: Path):
    hub.status = 503
    assert "out of order (status 503)" in refusal(run(hub, tmp_path, "download", "--json"), tmp_path)
    hub.status = 429
    assert "too many requests" in refusal(run(hub, tmp_path, "download", "--json"), tmp_path)
    hub.close()
    assert "cannot be reached" in refusal(run(hub.url, tmp_path, "download", "--json"), tmp_path)


def test_offline_without_the_model_says_which_variable_forbids_it(hub: Hub, tmp_path: Path):
    said = refusal(run(hub, tmp_path, "download", "--json", HF_HUB_OFFLINE="1"), tmp_path)
    assert "HF_HUB_OFFLINE forbids" in said and hub.seen == []


def test_a_disk_too_small_is_seen_before_anything_is_fetched(hub: Hub, tmp_path: Path):
    hub.sizes["transformer/diffusion_pytorch_model-00001-of-00003.safetensors"] = 10**16
    said = refusal(run(hub, tmp_path, "download", "--json"), tmp_path)
    assert (
        re.search(r"disk is too full for .*: 1000000\d\.\d GB are needed and [\d.]+ GB are free", said)
        and "HF_HOME" in said
    )
    assert not any("transformer" in name and "safetensors" in name for name in hub.fetched())


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is too full"),
        (errno.EROFS, "may not be written"),
        (errno.EACCES, "may not be written"),
    ],
)
def test_a_cache_that_cannot_be_written_is_named_without_its_path(number: int, words: str):
    said = str(explain(OSError(number, os.strerror(number), "/home/somebody/secret"), BASE, begun=True))
    assert words in said and "HF_HOME" in said and "somebody" not in said


def test_a_login_page_in_place_of_a_file_is_refused(hub: Hub, tmp_path: Path):
    hub.loose["arcface.pth"] = b"<!DOCTYPE html><html><body>Hotel network: log in</body></html>"
    with pytest.raises(BrokenFile, match="web page"):
        fetch_file(f"{hub.url}/loose/arcface.pth", tmp_path / "arcface.pth", "the face encoder")
    assert list(tmp_path.iterdir()) == []


def test_a_file_complete_but_not_renamed_is_taken_up(hub: Hub, tmp_path: Path):
    (tmp_path / "arcface.pth.part").write_bytes(hub.loose["arcface.pth"])
    path = fetch_file(f"{hub.url}/loose/arcface.pth", tmp_path / "arcface.pth", "the face encoder")
    assert path.read_bytes() == hub.loose["arcface.pth"]
    assert [p.name for p in tmp_path.iterdir()] == ["arcface.pth"]


def test_a_file_that_is_not_there_leaves_nothing_and_names_itself(hub: Hub, tmp_path: Path):
    with pytest.raises(DownloadError, match=r"the face encoder \(status 404\)"):
        fetch_file(f"{hub.url}/loose/nothing.pth", tmp_path / "arcface.pth", "the face encoder")


def test_ip_adapters_are_fetched_with_their_image_encoder_and_nothing_else(hub: Hub, tmp_path: Path):
    parts = ("config.json", "preprocessor_config.json", "model.safetensors")
    for adapter, encoder in (
        ("XLabs-AI/flux-ip-adapter-v2", CLIP_VISION),
        ("InstantX/FLUX.1-dev-IP-Adapter", SIGLIP),
    ):
        (name,) = next(own.files for own in IP_ADAPTERS.values() if own.repo == adapter)
        hub.repos[adapter] = {name: b"adapter", "README.md": b"#", "clip.onnx": b"waste"}
        hub.repos[encoder.repo] = {
            part: part.encode() for part in (*parts, "pytorch_model.bin", "vocab.json")
        }
    answer = run(hub, tmp_path, "download", "--ip_adapter", "xlabs", "--ip_adapter", "instantx")
    assert answer.returncode == 0, answer.stderr
    for repo, licence in (
        ("XLabs-AI/flux-ip-adapter-v2", "FLUX.1 [dev] Non-Commercial License"),
        ("InstantX/FLUX.1-dev-IP-Adapter", "FLUX.1 [dev] Non-Commercial License"),
        (CLIP_VISION.repo, "MIT"),
        (SIGLIP.repo, "Apache-2.0"),
    ):
        assert f"{repo} is here ({licence})" in answer.stderr
    assert hub.fetched() >= {"ip_adapter.safetensors", "ip-adapter.bin", *parts}
    assert not hub.fetched() & {"README.md", "clip.onnx", "pytorch_model.bin", "vocab.json"}


def test_controlnets_and_what_makes_hints_are_fetched_by_name_and_found(hub: Hub, tmp_path: Path):
    name, parts = "flux-canny-controlnet-v3.safetensors", ("config.json", "preprocessor_config.json")
    hub.repos["XLabs-AI/flux-controlnet-collections"] = {
        name: b"canny", "flux-depth-controlnet-v3.safetensors": b"depth", "README.md": b"",
    }  # fmt: skip
    depth = {**{part: part.encode() for part in parts}, "model.safetensors": b"depth", "model.onnx": b"waste"}
    hub.repos["depth-anything/Depth-Anything-V2-Small-hf"] = depth
    answer = run(hub, tmp_path, "download", "--controlnet", "xlabs-canny", "--hint", "depth")
    assert answer.returncode == 0, answer.stderr
    assert "XLabs-AI/flux-controlnet-collections is here (FLUX.1 [dev] Non-Comm" in answer.stderr
    assert "depth-anything/Depth-Anything-V2-Small-hf is here (Apache-2.0)" in answer.stderr
    assert hub.fetched() >= {name, *parts, "model.safetensors"}
    assert not hub.fetched() & {"flux-depth-controlnet-v3.safetensors", "model.onnx"}
    told = refusal(run(hub, tmp_path, "download", "--controlnet", "xlabs-cany", "--json"), tmp_path)
    assert "Did you mean 'xlabs-canny'" in told
    with pytest.raises(MissingFile, match="python -m infu download --controlnet union-pro-2"):
        find_controlnet("union-pro-2")
