"""A picture of the chat page while it answers with a run, where this machine has a browser."""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from suri.data.records import Record
from suri.errors import SuriError

PATIENCE_SECONDS = 120
SIZE = "--window-size=1280,860"
PICTURE = "chat page.png"


def picture_of_chat(run: Path, record: Record, folder: Path) -> str:
    """Write captures/chat page.png into `folder`: the page, asked a held-out row.

    The page runs in a process of its own and is asked as a person asks it. Returns why there is
    no picture, or "" where there is one.
    """
    browser, driver = browser_and_driver()
    if not (browser and driver):
        return "no browser here (chromium and chromedriver)"
    try:
        import gradio  # noqa: F401
        from selenium.common.exceptions import WebDriverException
    except ImportError as problem:
        return f"the package {problem.name} is not installed"
    try:
        with _page(run) as address, _window(browser, driver) as window:
            window.get(address)
            _ask(window, record)
            (folder / "captures").mkdir(exist_ok=True)
            (folder / "captures" / PICTURE).write_bytes(window.get_screenshot_as_png())
    except (SuriError, WebDriverException, OSError) as problem:
        return str(problem).splitlines()[0]
    return ""


def browser_and_driver() -> tuple[str | None, str | None]:
    """The programs that a picture needs, where this machine has them."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    return next(filter(None, found), None), shutil.which("chromedriver")


def _ask(window: Any, record: Record) -> None:
    """Fill the two fields, press the button, wait for the answer's end."""
    _until(lambda: _find(window, "#instruction textarea") and _find(window, "#answer").is_enabled())
    _find(window, "#instruction textarea").send_keys(record.instruction)
    if record.input:
        _find(window, "#input textarea").send_keys(record.input)
    _find(window, "#answer").click()
    _until(lambda: "token" in _find(window, "#facts").text)
    _until(lambda: _find(window, "#answer").is_enabled())


def _find(window: Any, selector: str) -> Any:
    found = window.find_elements("css selector", selector)
    return found[0] if found else None


def _until(is_true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_true():
        if time.monotonic() > deadline:
            raise SuriError("the chat page took too long")
        time.sleep(0.1)


@contextmanager
def _page(run: Path) -> Iterator[str]:
    """The address of `suri chat` on a run, while it is served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "suri", "chat", str(run), "--port", str(port)],
            stdout=log,
            stderr=log,
        )
        try:
            _until(lambda: _answers(port) or process.poll() is not None)
            if process.poll() is not None:
                log.seek(0)
                raise SuriError("the chat page did not start", found=log.read()[-500:])
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()
            process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _window(browser: str, driver: str) -> Iterator[Any]:
    """A browser without a window, with a profile that is thrown away."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    with tempfile.TemporaryDirectory() as profile:
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", SIZE)
        for flag in (*flags, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        window = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield window
        finally:
            window.quit()
