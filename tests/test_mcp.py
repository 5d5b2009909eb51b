"""The MCP server that the page is, through the MCP project's own client over HTTP."""

import base64
import io
from pathlib import Path

import anyio
import numpy as np
import pytest
from gradio_client import Client, handle_file
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, Tool
from PIL import Image
from serving import Server

SMALL = {"prompt": "a portrait", "seed": 7, "width": 128, "height": 160, "num_steps": 3}


def list_tools(server: Server) -> list[Tool]:
    async def ask(session: ClientSession) -> list[Tool]:
        return (await session.list_tools()).tools

    return with_session(server, ask)


def call(server: Server, name: str = "make_picture", on_progress=None, **arguments) -> CallToolResult:
    async def ask(session: ClientSession) -> CallToolResult:
        return await session.call_tool(name, arguments, progress_callback=on_progress)

    return with_session(server, ask)


def with_session(server: Server, ask):
    async def connect():
        async with (
            streamable_http_client(f"{server.url}gradio_api/mcp/") as (reading, writing, _),
            ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            return await ask(session)

    return anyio.run(connect)


@pytest.fixture(scope="module")
def sent(photo: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(photo.read_bytes()).decode()


def test_one_tool_is_offered_and_each_argument_described(server: Server):
    [tool] = list_tools(server)
    assert tool.name == "make_picture"
    assert tool.description.startswith("Make a new picture of the person in a photograph")
    arguments = tool.inputSchema["properties"]
    assert list(arguments) == ["photo", "prompt", "seed", "width", "height", "num_steps"]
    assert all(argument["description"] for argument in arguments.values())
    assert "https address" in arguments["photo"]["description"]


def test_the_tool_answers_with_the_picture_that_the_api_makes(server: Server, photo: Path, sent: str):
    said = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        said.append(message)

    answer = call(server, on_progress=on_progress, photo=sent, **SMALL)
    assert (
        call(server, photo=sent, **SMALL).content[0] == answer.content[0]
    )  # Gradio's other way: no progress
    assert not answer.isError
    picture, address = answer.content
    made = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.data))))
    assert picture.mimeType == "image/png" and address.text.endswith("infiniteyou-seed-7.png")
    result = Client(server.url, verbose=False).predict(
        handle_file(photo), **SMALL, api_name="/generate_image"
    )
    np.testing.assert_array_equal(made, np.asarray(Image.open(result["value"])))
    assert any(message and "of 3" in message for message in said)

    again = call(
        server, photo=address.text.partition(": ")[2], **SMALL
    )  # a picture made here, by its address
    # It is found; a pattern of the mini model need not hold a face.
    assert not again.isError or "face" in again.content[0].text


@pytest.mark.parametrize(
    "photo, sentence",
    [
        ("", "Give a photograph of a face"),
        ("data:image/png;base64,bm90IGEgcGljdHVyZQ==", "is text, not a picture"),
        ("http://127.0.0.1:9/a.png", "could not be fetched from its address"),
        ("/etc/hostname", "must be uploaded"),
    ],
)
def test_what_is_wrong_reaches_the_assistant_in_words(server: Server, photo: str, sentence: str):
    answer = call(server, photo=photo, **SMALL)
    assert answer.isError and sentence in answer.content[0].text


def test_what_is_no_tool_cannot_be_called(server: Server):
    answer = call(server, "generate", prompt="x")
    assert answer.isError and "Unknown tool" in answer.content[0].text
