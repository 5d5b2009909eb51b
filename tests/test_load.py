"""Many clients at once, one that vanishes, and what stays of them. tests/load.py is the full load."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from load import SMALL, kept, put_under_load
from serving import Server, served


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFU_KEPT_MINUTES", "1")
        with served(tmp_path_factory.mktemp("server")) as server:
            yield server
            assert "A request failed." not in server.printed()


def test_forty_requests_of_eight_clients_are_answered_and_none_mixed_up(
    server: Server, photo: Path, tmp_path: Path
):
    load = put_under_load(server, photo, tmp_path, requests=40, clients=8)
    assert len(load.seconds) == 40 and load.mixed_up == []
    assert load.queued > 20  # one device: the others wait, and are told so
    half, end = load.samples[4], load.samples[-1]
    assert end[1] < 1.2 * half[1]  # megabytes; a picture or photograph kept by each request would show


def test_nothing_of_a_visitor_stays(server: Server, photo: Path):
    client = Client(server.url, verbose=False)
    client.predict(handle_file(photo), **SMALL, api_name="/generate_image")
    assert kept(server)[0] >= 2  # the photograph and the picture
    end = time.monotonic() + 120
    while kept(server)[0] and time.monotonic() < end:
        for path in server.files.glob("*/*/*"):  # as if a minute had passed
            os.utime(path, (time.time() - 3600,) * 2)
        time.sleep(0.5)
    assert kept(server)[0] == 0


VANISHING = """
import sys
from gradio_client import Client, handle_file
client = Client(sys.argv[1], verbose=False)
photo = handle_file(sys.argv[2])
job = client.submit(photo, width=384, height=512, num_steps=200, api_name="/generate_image")
for answer in job:
    print(answer["label"], flush=True)
"""


def test_a_client_that_is_killed_frees_the_device(server: Server, photo: Path):
    command = [sys.executable, "-c", VANISHING, server.url, str(photo)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as vanishing:
        heard = [(vanishing.stdout.readline(), time.monotonic()) for _ in range(10)]
        vanishing.kill()
    assert all(re.match(r"Step \d+ of 200", line) for line, _ in heard)
    step_seconds = (heard[-1][1] - heard[1][1]) / 8
    client = Client(server.url, verbose=False)
    left = time.monotonic()
    client.predict(handle_file(photo), **SMALL, api_name="/generate_image")
    assert time.monotonic() - left < 100 * step_seconds + 5  # a run that went on had 190 steps to go
