"""The page as a person meets it: a real process, a real browser, a real model."""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch
from web_servers import api_server

from conftest import missing
from suri.data.findings import KINDS
from suri.data.records import Record
from suri.errors import UsageError
from suri.export.checks import compare_logits
from suri.infer.engines import open_model
from suri.infer.pieces import Pieces
from suri.infer.served import open_served
from suri.infer.shelf import Shelf
from suri.model.adapter import initial_adapter
from suri.model.adapter_file import write_adapter
from suri.model.config import read_config
from suri.recipe import GREEDY, LINEARS, Decoding
from suri.train.jobs import Runs
from suri.train.runs import readable_figure
from suri.web.api_line import Job, Line
from suri.web.api_metrics import Metrics
from suri.web.page_chat import Desk
from suri.web.page_results import Results
from suri.web.page_train import Trainer
from suri.web.page_words import TEXTS, Words, curves, line, table
from suri.wording import readable_seconds

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
def serving(folder, *words, runs=None, end=signal.SIGTERM):
    """The address of a page, started as a user starts it and ended by that signal."""
    place = ["--runs", str(runs or folder / "runs")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "suri", "chat", *words, "--port", str(port), *place],
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
        process.send_signal(end)
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
    until_ready(browser)
    return browser


def until_ready(page):
    """Wait for the chat's elements, and for their being alive."""
    until(lambda: page.find_elements("css selector", "#instruction textarea"))
    until(lambda: any(b.is_enabled() for b in page.find_elements("css selector", "#answer")))


def until(condition, patience=PATIENCE_SECONDS):
    """What the condition gives once it is true; fails when patience ends.

    A part of the page that is drawn again in the middle of the question is asked again.
    """
    from selenium.common import exceptions

    drawn_again = exceptions.StaleElementReferenceException, exceptions.NoSuchElementException
    deadline = time.monotonic() + patience
    while True:
        with suppress(*drawn_again):
            if found := condition():
                return found
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def click(page, selector):
    """Press what a person could press: it is there, and nothing lies over it."""
    from selenium.common.exceptions import WebDriverException

    def pressed():
        with suppress(WebDriverException):
            find(page, selector).click()
            return True

    until(pressed)


def find(page, selector):
    return page.find_element("css selector", selector)


def output(page):
    return find(page, "#output textarea").get_attribute("value")


def ask(page, instruction):
    find(page, "#instruction textarea").send_keys(instruction)
    click(page, "#answer")


def test_text_arrives_while_it_is_still_growing(page):
    ask(page, "Write a long story about a mountain.")
    first = until(lambda: output(page))
    assert find(page, "#stop").is_enabled()
    second = until(lambda: output(page) if len(output(page)) > len(first) else "")
    assert second.startswith(first)
    assert not find(page, "#answer").is_enabled()  # not the end of the answer

    click(page, "#stop")
    until(lambda: "stopped" in find(page, "#facts").text)
    until(lambda: find(page, "#answer").is_enabled())
    tokens = re.search(r"Tokens: (\d+) in .* tokens/s", find(page, "#facts").text)
    assert 0 < int(tokens[1]) < 128  # the default of Max tokens
    stopped_at = output(page)
    time.sleep(1)
    assert output(page) == stopped_at


def test_a_conversation_is_shown_and_stop_ends_the_answers_of_all_models(page):
    click(page, "#remember input")
    choose(page, "8-bit")
    ask(page, "Write a long story about a mountain.")
    until(lambda: output(page))
    click(page, "#stop")
    until(lambda: find(page, "#answer").is_enabled())
    assert "stopped" in find(page, "#facts").text
    assert "Tokens: 0" in find(page, "#facts-2").text  # its turn had not come
    assert "stopped" in find(page, "#facts-2").text
    shown = until(lambda: find(page, "#talk").text)
    assert "Write a long story about a mountain." in shown
    assert output(page)[:20] in shown


@pytest.mark.slow
def test_a_file_is_dropped_a_mistake_told_and_whether_it_fits(page, tmp_path):
    until(lambda: [t for t in tabs(page) if t.text == "Train"])[0].click()
    file = tmp_path / "mine.json"
    row = {"instruction": "Say <b>a</b>.", "output": "a"}
    file.write_text(json.dumps([row, row, {"instruction": "no answer"}]))
    find(page, "#file input[type=file]").send_keys(str(file))
    until(lambda: "2 can be used; 1 problem" in find(page, "#seen").text)
    assert "the same as an earlier row" in find(page, "#seen").text
    assert find(page, "#data_path input").get_attribute("value") == "data/mine.json"
    assert "learned" in find(page, "#seen .tokens").get_attribute("innerHTML")
    assert not page.find_elements("css selector", "#seen b")

    box = find(page, "#name textarea, #name input")
    box.clear()
    box.send_keys("../elsewhere")
    click(page, "#start")
    until(lambda: "please take a name" in find(page, ".toast-body, .toast-wrap").text)

    click(page, "#fit")
    toasts = ".toast-body"
    until(lambda: any("no response" in t.text for t in page.find_elements("css selector", toasts)))
    assert "2 can be used" in find(page, "#seen").text  # what stood there still stands
    choose(page, "bundled:32", "#data_path")
    click(page, "#fit")
    until(lambda: "Memory by parts" in find(page, "#seen").text)
    assert "of training for" in find(page, "#seen").text


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
    click(page, "#answer")
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


@pytest.mark.slow
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


def checks_of(dtype):
    """The checks of a merge in this number format."""
    return compare_logits(torch.zeros(2, 3), torch.zeros(2, 3), dtype)


TAB, OTHER_TAB = SimpleNamespace(session_hash="tab"), SimpleNamespace(session_hash="other")


@pytest.fixture(scope="module")
def shelf(tiny, tmp_path_factory):
    return Shelf(open_served(str(tiny)), Runs(tmp_path_factory.mktemp("runs")))


def desk_of(shelf):
    return Desk(shelf, Words(0))


def answers(
    desk, *, temperature=0.0, beams=1, streaming=True, instruction="Say it.", tab=TAB, names=(),
    remember=False, talk=(),
):  # fmt: skip
    """Everything that the page shows, one after the other."""
    settings = (temperature, 0.9, 0, beams, 12, 0)
    given = (list(names), remember, list(talk), instruction, "", streaming, *settings)
    return list(desk.answer(tab, *given))


def texts(shown, place=0):
    """What stood in one model's two boxes, in order; the conversation comes last."""
    boxes = [row[2 * place : 2 * place + 2] for row in shown]
    return [box for box in boxes if isinstance(box[0], str) and "asking" not in box[1]]


@pytest.mark.parametrize("beams, streaming", [(1, True), (1, False), (3, True), (3, False)])
def test_the_answer_shown_is_the_models(shelf, beams, streaming):
    decoding = Decoding(temperature=0, top_p=0.9, top_k=0, num_beams=beams, max_new_tokens=12)
    model = shelf.take(shelf.served.default)
    (expected,) = model.answer([Record("Say it.", "", "")], decoding)
    shown = texts(answers(desk_of(shelf), beams=beams, streaming=streaming))
    assert shown[-1][0] == expected.text.lstrip()
    assert f"Tokens: {expected.tokens} in" in shown[-1][1]
    if not streaming:
        assert len(shown) == 1


def test_a_conversation_goes_on_from_the_answers_of_each_model(shelf):
    name = shelf.served.default
    desk, decoding = desk_of(shelf), Decoding(temperature=0, top_p=0.9, top_k=0, max_new_tokens=12)
    *_, talk, shown = answers(desk, remember=True)[-1]
    first = talk[0][1][name]
    assert shown["value"] == [
        {"role": "user", "content": "Say it."},
        {"role": "assistant", "content": f"{name}: {first}"},
    ]
    boxes = texts(answers(desk, instruction="And now?", remember=True, talk=talk))
    asked = Record("And now?", "", "", history=(("Say it.", first),))
    (expected,) = shelf.take(name).answer([asked], decoding)
    assert boxes[-1][0] == expected.text.lstrip()
    *_, forgotten, hidden = answers(desk, instruction="And now?", talk=talk)[-1]
    assert forgotten == hidden["value"] == []
    assert not hidden["visible"]


def test_stop_reaches_its_own_tab_only_also_before_its_turn(shelf):
    desk = desk_of(shelf)
    desk.begin([], TAB)
    desk.begin([], OTHER_TAB)
    desk.stop(TAB)
    assert "Tokens: 0" in texts(answers(desk))[-1][1]
    assert "stopped" in texts(answers(desk))[-1][1]
    assert "Tokens: 12" in texts(answers(desk, tab=OTHER_TAB))[-1][1]
    desk.begin([], TAB)  # a new question
    assert "at the limit of Max tokens" in texts(answers(desk))[-1][1]


def test_a_closed_tab_ends_its_answer(shelf):
    desk = desk_of(shelf)
    desk.begin([], TAB)
    pieces = desk.answer(TAB, [], False, [], "Say it.", "", True, 0, 1, 0, 1, 12, 0)
    stop = desk.stops["tab"]
    desk.leave(TAB)
    assert stop.is_set()
    assert not desk.stops
    desk.leave(TAB)  # a tab that never asked
    assert list(pieces)  # an answer without a tab still ends well


def test_settings_that_cannot_work_get_a_message(shelf):
    ((text, facts),) = texts(answers(desk_of(shelf), temperature=99.0))
    assert text == ""
    assert "temperature = 99.0 is not from 0 to 10" in facts


MARKUP = "<script>alert('&')</script><img src=//elsewhere>"


def test_names_and_messages_are_shown_as_text():
    assert line(MARKUP[:27]) == "<p>&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;</p>"
    shown = [
        table([MARKUP], [[MARKUP]]),
        curves([(MARKUP, [(0, 1.0), (1, 0.5)])]),
    ]
    for html in shown:
        assert "<script" not in html
        assert "<img" not in html
        assert "&lt;img" in html


@pytest.mark.parametrize(
    "said",
    [kind.says for kind in KINDS.values()]
    + ["line 3", "record 4", readable_seconds(9), readable_seconds(200), readable_seconds(9000)]
    + [readable_figure("train_seconds", seconds) for seconds in (3.0, 200.0, 9000.0)]
    + ["210 targets: largest error of W + 2 B A, in roundings"]
    + [check.name for kind in ("float32", "bfloat16", "q8_0") for check in checks_of(kind)],
)
def test_what_other_parts_say_is_said_in_chinese_too(said):
    assert Words(0).again(said) == said
    assert re.search("[一-鿿]", Words(1).again(said))
    assert Words(1).again("what nobody says") == "what nobody says"


def test_every_text_is_there_in_both_languages():
    assert all(len(both) == 2 and all(text.strip() for text in both) for both in TEXTS.values())
    for english, chinese in TEXTS.values():
        fields = [set(re.findall(r"{(\w+)", text)) for text in (english, chinese)]
        assert fields[0] == fields[1], english


def test_a_curve_without_points_has_no_name_below_the_chart():
    html = curves([("one", [(0, 1.0), (1, 0.5)]), ("none", [])])
    assert "one" in html
    assert "none</span>" not in html
    assert curves([("none", [])]) == ""


@pytest.mark.parametrize("language", [0, 1])
def test_every_figure_says_what_it_shows(tmp_path, language):
    """By those of the committed reports; one that nobody described is called by its name."""
    drawn = sorted(Path(__file__).parents[2].glob("docs/results/*/figures/*.svg"))
    assert len(drawn) > 12
    figures = tmp_path / "study" / "figures"
    figures.mkdir(parents=True)
    (figures / "a<b.svg").write_text("<svg/>")
    for picture in drawn:
        shutil.copyfile(picture, figures / picture.name)
    _, shown = Results(Runs(tmp_path), Words(language)).report("study")
    said = re.findall(r'alt="([^"]+)"><figcaption>([^<]+)</figcaption>', shown)
    assert len(said) == len(drawn) + 1
    assert all(alternative == caption for alternative, caption in said)
    captions = [caption for _, caption in said]
    assert captions.pop(0) == "a&lt;b"
    assert len(set(captions)) == len(drawn)
    assert all(bool(re.search("[一-鿿]", caption)) == bool(language) for caption in captions)
    assert any("1024" in caption for caption in captions)


def test_a_chinese_page_shows_the_chinese_figures_where_there_are_some(tmp_path):
    for folder in ("figures", "figures-zh"):
        (tmp_path / "study" / folder).mkdir(parents=True)
        (tmp_path / "study" / folder / "quality.svg").write_text(folder)
    coded = base64.b64encode(b"figures-zh").decode()
    shown = [Results(Runs(tmp_path), Words(language)).report("study")[1] for language in (0, 1)]
    assert [f'base64,{coded}"' in html for html in shown] == [False, True]


def test_buttons_pressed_before_anything_is_chosen_say_so(tmp_path):
    runs = Runs(tmp_path / "runs")
    for press in (runs.place, runs.stop, runs.state):
        with pytest.raises(UsageError, match="nothing is chosen"):
            press(None)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/etc/passwd", "a/../../x", "link", "link/hostname", ".page", "a/.git",
     "\0"],
)  # fmt: skip
def test_no_name_leads_out_of_the_folder_of_runs(tmp_path, name):
    runs = Runs(tmp_path / "runs")
    (runs.root / "link").symlink_to("/etc")
    with pytest.raises(UsageError):
        runs.place(name)
    results, trainer = (
        Results(runs, Words(0)),
        Trainer(None, runs, Words(0)),
    )
    for work in (results.report, trainer.resume, lambda n: results.merge(n, "hf")):
        with pytest.raises(UsageError):
            work(name)


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".a", "-a", "a;b", "x" * 65, "there"])
def test_odd_or_taken_names_are_refused(tmp_path, name):
    runs = Runs(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError):
        runs.new(name)
    assert runs.new("mine") == tmp_path.resolve() / "mine"


def test_a_report_that_is_a_link_to_elsewhere_is_not_copied(tmp_path):
    runs = Runs(tmp_path / "runs")
    (runs.root / "study").mkdir()
    (runs.root / "study" / "summary.json").write_text("{}")
    results = Results(runs, Words(0))
    copies, _ = results.report("study")
    assert [Path(copy).name for copy in copies] == ["summary.json"]
    (runs.root / "study" / "report.html").symlink_to("/etc/hostname")
    with pytest.raises(UsageError):
        results.report("study")


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_what_was_copied_for_a_download_goes_when_the_page_ends(tiny, tmp_path, monkeypatch, end):
    runs, temporary = tmp_path / "runs", tmp_path / "temporary"
    (runs / "study").mkdir(parents=True)
    (runs / "study" / "summary.json").write_text("{}")
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with serving(tmp_path, str(tiny), runs=runs, end=end) as address:
        _choose_report(address, "study", temporary)
    assert not [*temporary.glob("suri-page-*")]
    words = [str(tiny), "--runs", str(runs)]
    with api_server(tmp_path, *words, page=True, end=end) as server:
        _choose_report(f"{server.address}/", "study", temporary)
    assert not [*temporary.glob("suri-page-*")]


def _choose_report(address, name, temporary):
    """Choose a report as the page's script does, and wait until it was copied there."""
    assert not [*temporary.glob("suri-page-*")]
    with urllib.request.urlopen(f"{address}config", timeout=60) as answer:
        config = json.load(answer)
    for element, action, path, value in (
        ("refresh", "click", "run/predict", None), ("report", "change", "queue/join", name),
    ):  # fmt: skip
        box = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == element)
        event = next(d["id"] for d in config["dependencies"] if [box, action] in d["targets"])
        body = json.dumps({"data": [value], "fn_index": event, "session_hash": "tab"}).encode()
        json_type = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{address}gradio_api/{path}", body, json_type)
        urllib.request.urlopen(asked, timeout=60).close()
    until(lambda: [*temporary.glob("suri-page-*/*/summary.json")], patience=20)


def test_a_file_that_is_dropped_is_kept_checked_and_shown(tiny, tmp_path):
    runs = Runs(tmp_path / "runs")
    trainer = Trainer(open_served(str(tiny)), runs, Words(0))
    file = tmp_path / "rows.json"
    rows = [{"instruction": f"Say {n}<b>.", "input": "", "output": f"{n}"} for n in "abc"]
    file.write_text(json.dumps([*rows, {"instruction": "no answer"}]))
    trainer.keep(str(file))
    trainer.keep(str(file))  # the same again is the same
    assert trainer.rows()[0] == "data/rows.json"
    base = trainer.choices()[0]["value"]
    shown = trainer.look(base, "data/rows.json", "none", 0, 1, 3e-4, 512, 8)
    assert "4 rows, 3 can be used; 1 problem" in shown
    assert "<b>" not in shown
    assert 'class="learned">a</span>' in shown
    file.write_text("[]")
    with pytest.raises(UsageError, match="there already"):
        trainer.keep(str(file))
    with pytest.raises(UsageError, match="not in the folder"):
        trainer.look(base, str(file), "none", 0, 1, 3e-4, 512, 8)
    with pytest.raises(UsageError, match="lora_r"):
        trainer.look(base, "data/rows.json", "none", 0, 1, 3e-4, 512, 0)


@pytest.mark.slow
def test_models_are_opened_when_asked_for_and_closed_when_memory_is_short(
    tiny, tmp_path, monkeypatch
):
    runs = Runs(tmp_path)
    for name in ("one", "two"):
        shutil.copytree(tiny, runs.root / name)
    shelf = Shelf(open_served(str(tiny)), runs)
    assert set(shelf.names()) == {shelf.served.default, "8-bit", "one", "two"}
    for name in ("one", "8-bit"):
        shelf.take(name)
    assert list(shelf.opened) == ["one", "8-bit"]
    free = iter([0, 10**12])
    monkeypatch.setattr("suri.infer.shelf.free_memory_bytes", lambda _: next(free))
    shelf.take("two")
    assert list(shelf.opened) == ["8-bit", "two"]  # the oldest went
    monkeypatch.setattr("suri.infer.shelf.free_memory_bytes", lambda _: 0)
    shown = texts(answers(desk_of(shelf), names=["one"]))
    assert "does not fit into memory" in shown[-1][1]


def test_a_job_outlives_who_started_it_and_runs_once(tmp_path):
    runs = Runs(tmp_path)
    (tmp_path / "rows.json").write_text("[]")
    runs.start("job", ["data", "check", str(tmp_path / "rows.json"), "--base_model", "none"])
    assert runs.is_running("job")
    with pytest.raises(UsageError, match="running already"):
        Runs(tmp_path).start("job", ["--help"])
    until(lambda: not Runs(tmp_path).is_running("job"))
    assert "rows.json" in runs.said("job")
    runs.start("job", ["data", "--help"])  # again, anew
    until(lambda: not runs.is_running("job"))
    assert "rows.json" not in runs.said("job")


@pytest.mark.slow
def test_the_page_and_the_api_share_a_decoder_in_turns(tiny, tmp_path):
    """The API answers as the base again and again, while the page answers as two adapters."""
    folders = [adapter_of(tiny, tmp_path / name, seed) for seed, name in enumerate("ab")]
    served = open_served(str(folders[0]))
    base = next(name for name, voice in served.voices.items() if not voice.pairs)
    line, shelf = Line(served, Metrics()), Shelf(served, Runs(tmp_path))
    ids, jobs, enough, ended = [5, 6, 7], [], Event(), Event()
    decoding = Decoding(temperature=0.7, top_p=1.0, top_k=0, max_new_tokens=40)

    def again(part=None):
        if part and not part.finish:
            return
        if enough.is_set():
            ended.set()
        else:
            jobs.append(Job(base, ids, decoding, Pieces(served.tokenizer), again))
            line.join(jobs[-1])

    again()
    record, greedy = Record("Say it.", "", ""), replace(GREEDY, max_new_tokens=12)
    beams = replace(greedy, num_beams=2)
    found = []
    for folder in folders:
        model = shelf.take(folder.name)
        found += ["".join(model.stream(record, greedy)), model.answer([record], beams)[0].text]
    enough.set()
    assert ended.wait(60)
    line.close()
    alone = [open_model(str(folder)) for folder in folders]
    assert found == [m.answer([record], d)[0].text for m in alone for d in (greedy, beams)]
    assert len(set(found[::2])) == 2
    (expected,) = open_model(str(tiny)).engine.generate([ids], served.tokenizer.eos_id, decoding)
    assert [job.pieces.ids for job in jobs] == [expected.ids] * len(jobs)


def adapter_of(base, folder, seed):
    """A random adapter over a base."""
    adapter = initial_adapter(
        read_config(base), r=3, alpha=6, targets=LINEARS, seed=seed, base={"path": str(base)}
    )
    for _, b in adapter.tensors.values():
        b.normal_(generator=torch.Generator().manual_seed(seed))
    folder.mkdir()
    write_adapter(folder, adapter)
    return folder


@pytest.mark.slow
def test_pages_of_other_sites_cannot_ask_the_page(address):
    """By their own name, by one that was turned to this machine, and by none."""
    place = urllib.parse.urlsplit(address).netloc
    port = place.partition(":")[2]

    def status(host, origin):
        headers = {"Host": host, "Content-Type": "application/json"} | origin
        body = json.dumps({"data": [["embedded"]], "fn_index": 1, "session_hash": "x"}).encode()
        request = urllib.request.Request(f"{address}gradio_api/queue/join", body, headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status
        except urllib.error.HTTPError as refusal:
            refusal.close()
            return refusal.code

    own = {"Origin": f"http://{place}"}
    assert status(place, own) == status(f"localhost:{port}", {}) == 200
    turned = f"elsewhere.example:{port}"
    for host, origin in ((place, "http://elsewhere.example"), (place, "null"),
                         (turned, f"http://{turned}"), (turned, "")):  # fmt: skip
        assert status(host, {"Origin": origin} if origin else {}) == 403


@pytest.mark.slow
def test_suri_serve_shows_the_page_beside_the_api(tiny, browser, tmp_path):
    words = (str(tiny), "--password", "fleece", "--runs", str(tmp_path / "runs"))
    with api_server(tmp_path, *words, page=True) as server:

        def status(path, **more):
            request = urllib.request.Request(server.address + path, **more)
            try:
                with urllib.request.urlopen(request) as answer:
                    return answer.status
            except urllib.error.HTTPError as refusal:
                refusal.close()
                return refusal.code

        knows = {"Authorization": "Bearer fleece"}
        paths = ("/health", "/v1/models", "/metrics", "/config")
        assert [status(path) for path in paths] == [200, 401, 401, 401]
        assert [status(path, headers=knows) for path in paths[:3]] == [200, 200, 200]
        elsewhere = {"Origin": "http://elsewhere.example"}
        assert status("/login", data=b"", headers=elsewhere) == 403
        browser.get(server.address)
        until(lambda: browser.find_elements("css selector", "input[type=password]"))
        for box in browser.find_elements("css selector", "form input, .wrap input, input"):
            box.send_keys("fleece")
        find(browser, "button.primary, button.lg").click()
        until_ready(browser)
        ask(browser, "Say it.")
        until(lambda: "tokens/s" in find(browser, "#facts").text)


@pytest.fixture
def lab(browser, shallow, tmp_path, monkeypatch):
    """A page over a folder of runs that holds a study, and the folder."""
    monkeypatch.setenv("SURI_CACHE", str(shallow.parent))
    runs = tmp_path / "runs"
    study = runs / "study"
    (study / "figures").mkdir(parents=True)
    rows = [{"instruction": f"Say {n}.", "output": n} for n in "abcdefgh"]
    (runs / "data").mkdir()
    (runs / "data" / "rows.json").write_text(json.dumps(rows))
    (study / "report.html").write_text("<h1>Found</h1>")
    (study / "figures" / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    with serving(tmp_path, runs=runs) as address:
        yield browser, address, runs, tmp_path


def open_tab(page, address, name):
    page.get(address)
    until(lambda: page.find_elements("css selector", "#instruction textarea"))
    until(lambda: [t for t in tabs(page) if t.text == name])[0].click()


def tabs(page):
    return page.find_elements("css selector", "button[role=tab]")


def put(page, selector, value):
    (box, *_) = until(lambda: page.find_elements("css selector", f"{selector} input"))
    until(box.is_displayed)
    box.send_keys("\ue009a\ue000", value)  # Control and a, then the text


def points(page):
    found = page.find_elements("css selector", "#view svg")
    return int(found[0].get_attribute("data-points")) if found else 0


@pytest.mark.slow
def test_a_run_is_started_watched_stopped_resumed_merged_and_asked(lab):
    page, address, runs, folder = lab
    open_tab(page, address, "Train")
    for box in ("#base_model", "#data_path"):  # what there is to choose from arrives after the page
        until(lambda box=box: find(page, f"{box} input").get_attribute("value"))
    click(page, "#more button")
    put(page, "#num_epochs", "12")
    find(page, "#name textarea, #name input").send_keys("-1")
    click(page, "#look")
    until(lambda: page.find_elements("css selector", "#seen .learned"))
    click(page, "#start")
    first = until(lambda: points(page))
    page.refresh()
    open_tab(page, address, "Train")
    until(lambda: points(page) > first)  # it moves, and was not lost
    click(page, "#stop_run")
    until(lambda: "Stopped, and saved" in find(page, "#view").text)
    assert not (runs / "my-lora-1" / "result.json").is_file()

    with serving(folder, runs=runs) as address:  # another server over the same folder
        open_tab(page, address, "Train")
        until(lambda: "Stopped, and saved" in find(page, "#view").text)
        click(page, "#resume")
        until(lambda: "Finished" in find(page, "#view").text, 3 * PATIENCE_SECONDS)
        assert "Step 12 of 12" in find(page, "#view").text

        open_tab(page, address, "Results")
        until(lambda: page.find_elements("css selector", "#runs td"))
        until(lambda: page.find_elements("css selector", "#beside svg"))
        click(page, "#merge")
        until(lambda: "PASS" in find(page, "#merged").text)
        assert (runs / "my-lora-1-hf" / "certificate.json").is_file()
        click(page, "#report input")
        until(lambda: page.find_elements("css selector", "ul[role=listbox] li"))[0].click()
        link = until(lambda: page.find_elements("css selector", "#files a[href*='report.html']"))[0]
        with urllib.request.urlopen(link.get_attribute("href")) as answer:
            assert answer.read() == b"<h1>Found</h1>"
        assert page.find_elements("css selector", "#figures img")

        open_tab(page, address, "Chat")
        for name in ("my-lora-1", "my-lora-1-hf"):
            choose(page, name)
        ask(page, "Say hello.")
        until(lambda: "tokens/s" in "".join(e.text for e in facts(page, 3)))
        until(lambda: find(page, "#answer").is_enabled())
        texts = [find(page, f"#output{n} textarea").get_attribute("value") for n in ("-2", "-3")]
        assert "tokens/s" in find(page, "#facts-3").text
        assert texts[0] == texts[1]  # the merge answers as the adapter


@pytest.mark.slow
def test_a_narrow_screen_shows_all_without_scrolling_sideways(lab):
    page, address, runs, _ = lab
    (runs / "one").mkdir()
    for name in ("recipe.toml", "metrics.jsonl"):
        (runs / "one" / name).touch()
    for name in ("environment.json", "result.json"):
        (runs / "one" / name).write_text("{}")
    screen = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        open_tab(page, address, "Train")
        buttons = [f"#{name}" for name in ("look", "fit", "start", "stop_run", "resume")]
        until(lambda: all(find(page, button).is_displayed() for button in buttons))
        assert max(find(page, button).size["height"] for button in buttons) < 50  # one line each
        open_tab(page, address, "Results")
        until(lambda: find(page, "#runs td").is_displayed())
        wide = "return [...document.querySelectorAll('html, .wide')]"
        sideways = f"{wide}.filter(each => each.scrollWidth > each.clientWidth).length"
        assert page.execute_script(sideways) == 0
        assert find(page, "#refresh").size["width"] < 195
        choose(page, "study", "#report")
        until(lambda: find(page, "#files a").is_displayed())
        removing = page.find_elements("css selector", "#files button[aria-label^=Remove]")
        assert not any(button.is_displayed() for button in removing)
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def facts(page, number):
    """The line below a model's answer, once it is on the page."""
    return page.find_elements("css selector", f"#facts-{number}")


def choose(page, name, box="#models"):
    find(page, f"{box} input").send_keys("\ue009a\ue000", name)  # Control and a, then the text
    until(lambda: option(page, name)).click()


def option(page, name):
    found = page.find_elements("css selector", "ul[role=listbox] li")
    return next((o for o in found if o.get_attribute("data-value") == name or o.text == name), None)


@pytest.mark.slow
def test_the_page_speaks_chinese(page, address):
    page.get(address + "zh/")
    until(lambda: [t.text for t in tabs(page)] == ["对话", "训练", "结果"])
    assert "指令" in find(page, "#instruction").text
