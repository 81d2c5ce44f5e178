"""The page as a person meets it: a real process, a real browser, a real model."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import missing
from suri.data.records import Record
from suri.infer.engines import open_model
from suri.recipe import Decoding
from suri.web.page import Desk, _line

PATIENCE_SECONDS = 120
CHROMIUM_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1280,900",
)  # fmt: skip
OPENING = {
    "GRADIO_SERVER_NAME": "0.0.0.0",
    "GRADIO_SERVER_PORT": "1",
    "GRADIO_SHARE": "True",
    "GRADIO_ALLOWED_PATHS": "/",
    "GRADIO_ROOT_PATH": "/elsewhere",
    "GRADIO_ANALYTICS_ENABLED": "True",
}
"""Variables by which Gradio would open the page to others."""


@contextmanager
def serving(folder, *words):
    """The address of a page, started as a user starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "suri", "chat", *words, "--port", str(port)],
            env=os.environ | OPENING,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        address = f"http://127.0.0.1:{port}/"
        until(lambda: address in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def address(embedded, tmp_path_factory):
    """A page on the embedded base."""
    with serving(tmp_path_factory.mktemp("page")) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        missing("the browser tests need chromium and chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*CHROMIUM_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    yield window
    window.quit()


@pytest.fixture
def page(browser, address):
    browser.get(address)
    until(lambda: browser.find_elements("css selector", "#instruction textarea"))
    until(lambda: any(b.is_enabled() for b in browser.find_elements("css selector", "#answer")))
    return browser


def until(condition):
    """What the condition gives once it is true; fails when patience ends."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def find(page, selector):
    return page.find_element("css selector", selector)


def output(page):
    return find(page, "#output textarea").get_attribute("value")


def ask(page, instruction):
    find(page, "#instruction textarea").send_keys(instruction)
    find(page, "#answer").click()


def test_text_arrives_while_it_is_still_growing(page):
    ask(page, "Write a long story about a mountain.")
    first = until(lambda: output(page))
    assert find(page, "#stop").is_enabled()
    second = until(lambda: output(page) if len(output(page)) > len(first) else "")
    assert second.startswith(first)
    assert not find(page, "#answer").is_enabled()  # not the end of the answer

    find(page, "#stop").click()
    until(lambda: "stopped" in find(page, "#facts").text)
    until(lambda: find(page, "#answer").is_enabled())
    tokens, rest = find(page, "#facts").text.split(" ", 1)
    assert 0 < int(tokens) < 128  # the default of Max tokens
    assert "tokens/s" in rest
    stopped_at = output(page)
    time.sleep(1)
    assert output(page) == stopped_at


def test_the_page_asks_no_other_server(page, address):
    urls = {
        message["params"]["request"]["url"]
        for entry in page.get_log("performance")
        for message in [json.loads(entry["message"])["message"]]
        if message["method"] == "Network.requestWillBeSent"
    }
    assert any(url.startswith(address) for url in urls)
    outside = {url for url in urls if not url.startswith((address, "data:", "chrome", "blob:"))}
    assert not outside


def test_too_long_and_empty_instructions_get_a_message(page):
    page.execute_script(
        "const box = document.querySelector('#instruction textarea');"
        "box.value = 'x'.repeat(9000); box.dispatchEvent(new Event('input'));"
    )
    find(page, "#answer").click()
    until(lambda: "9,000 characters" in find(page, "#facts").text)
    assert output(page) == ""

    find(page, "#instruction textarea").clear()
    until(lambda: find(page, "#answer").is_enabled())
    ask(page, " ")
    until(lambda: "Write an instruction first" in find(page, "#facts").text)


def test_no_variable_opens_the_page_and_no_file_is_served(address):
    port = int(address.rstrip("/").rpartition(":")[2])
    # A server on all addresses would answer on every loopback address too.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5).close()
    for path in (__file__, str(Path.cwd() / "pyproject.toml"), "/etc/hostname"):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(f"{address}gradio_api/file={path}")
        assert refusal.value.code == 403
        refusal.value.close()


def test_a_password_keeps_others_out(tiny, tmp_path):
    def status(path, fields=None):
        data = urllib.parse.urlencode(fields).encode() if fields else None
        try:
            with urllib.request.urlopen(address + path, data) as answer:
                return answer.status
        except urllib.error.HTTPError as refusal:
            refusal.close()
            return refusal.code

    with serving(tmp_path, str(tiny), "--password", "fleece") as address:
        assert status("config") == 401
        assert status("login", {"username": "me", "password": "wool"}) == 400
        assert status("login", {"username": "me", "password": "fleece"}) == 200


TAB, OTHER_TAB = SimpleNamespace(session_hash="tab"), SimpleNamespace(session_hash="other")


@pytest.fixture(scope="module")
def model(tiny):
    return open_model(str(tiny))


def answers(desk, *, temperature=0.0, beams=1, streaming=True, instruction="Say it.", tab=TAB):
    """Everything that the page shows, one after the other."""
    return list(desk.answer(instruction, "", temperature, 0.9, 0, beams, 12, streaming, tab))


@pytest.mark.parametrize("beams, streaming", [(1, True), (1, False), (3, True), (3, False)])
def test_the_answer_shown_is_the_models(model, beams, streaming):
    decoding = Decoding(temperature=0, top_p=0.9, top_k=0, num_beams=beams, max_new_tokens=12)
    (expected,) = model.answer([Record("Say it.", "", "")], decoding)
    shown = answers(Desk(model), beams=beams, streaming=streaming)
    assert shown[-1][0] == expected.text.lstrip()
    assert f"{expected.tokens} tokens in" in shown[-1][1]
    if beams > 1 or not streaming:
        assert len(shown) == 1


def test_stop_reaches_its_own_tab_only_also_before_its_turn(model):
    desk = Desk(model)
    desk.begin(TAB)
    desk.begin(OTHER_TAB)
    desk.stop(TAB)
    assert "0 tokens" in answers(desk)[-1][1]
    assert "stopped" in answers(desk)[-1][1]
    assert "12 tokens" in answers(desk, tab=OTHER_TAB)[-1][1]
    desk.begin(TAB)  # a new question
    assert "at the limit of Max tokens" in answers(desk)[-1][1]


def test_a_closed_tab_ends_its_answer(model):
    desk = Desk(model)
    desk.begin(TAB)
    pieces = desk.answer("Say it.", "", 0, 1, 0, 1, 12, True, TAB)
    stop = desk.stops["tab"]
    desk.leave(TAB)
    assert stop.is_set()
    assert not desk.stops
    desk.leave(TAB)  # a tab that never asked
    assert list(pieces)  # an answer without a tab still ends well


def test_settings_that_cannot_work_get_a_message(model):
    ((text, facts),) = answers(Desk(model), temperature=99.0)
    assert text == ""
    assert "temperature = 99.0 is not from 0 to 10" in facts


def test_names_and_messages_are_shown_as_text():
    assert _line("<script>alert('&')</script>") == (
        "<p>&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;</p>"
    )
