"""Browser tests, beside conftest.py's fixtures: a visitor's page, checked at its end, and gestures."""

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect
from serving import Server

from infu.metadata import read_picture
from page.texts import TEXTS

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 60_000  # milliseconds: the machine may be busy with other things


@contextmanager
def visited(
    browser: Browser, server: Server, viewport: dict[str, int] = DESK, mini: bool = True, **options: str
) -> Iterator[Page]:
    """The page, opened by a new visitor. At the end: no error in the console, no other host was asked.
    `mini`: that model is loaded, and the page says so. `options`: `new_context`'s, such as locale and
    color_scheme."""
    context = browser.new_context(viewport=viewport, accept_downloads=True, **options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    errors, hosts = [], set()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.on("request", lambda request: hosts.update(re.findall("^(?:blob:)?[a-z]+://([^/]+)", request.url)))
    page.goto(server.url)
    notice = TEXTS["mini_notice"][options.get("locale", "en")[:2]] if mini else ""
    expect(page.locator("#notice")).to_contain_text(notice, timeout=PATIENCE)
    yield page
    context.close()
    assert errors == []
    assert hosts == {server.url.partition("://")[2].rstrip("/")}


def set_field(page: Page, name: str, value: object) -> None:
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Tab")
    expect(field).to_have_value(str(value))


def field_value(page: Page, name: str) -> float:
    return float(page.locator(f"#{name} input[type=number]").input_value())


def upload(page: Page, photo: Path) -> None:
    page.locator("#photo input[type=file]").set_input_files(photo)
    expect(page.locator("#photo img")).to_be_visible(timeout=PATIENCE)


def open_fold(page: Page) -> None:
    page.locator("#advanced > button").click()
    expect(page.locator("#num_steps")).to_be_visible()
    page.wait_for_timeout(1000)  # Gradio gives the fold's controls their values a moment after it shows them


def expect_ready(page: Page) -> None:
    expect(page.locator("#generate")).to_be_enabled(timeout=PATIENCE)
    expect(page.locator("#stop")).to_be_disabled(timeout=PATIENCE)


def make(page: Page, path: Path) -> dict:
    """Generate, and download the picture -> its settings."""
    pictures = page.locator("#history [role=option]")
    before = pictures.count()
    page.locator("#generate").click()
    expect(pictures).to_have_count(before + 1, timeout=3 * PATIENCE)
    expect_ready(page)
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(path)
    return read_picture(path)


def step_of(page: Page) -> int:
    expect(page.locator("#progress")).to_contain_text(re.compile(r"Step \d+ of"), timeout=PATIENCE)
    return int(page.locator("#progress").inner_text().split()[1])


def drop(page: Page, zone: str, path: Path) -> None:
    """Drop a file on a zone as a mouse does."""
    content = base64.b64encode(path.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """([content, name]) => {
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "image/png" }));
            return transfer;
        }""",
        [content, path.name],
    )
    page.locator(f"{zone} button[aria-dropeffect]").dispatch_event("drop", {"dataTransfer": transfer})
