"""The API as programs meet it: a real server, the official client, a real model."""

import http.client
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from web_servers import api_server

from conftest import make_model, write_tokenizer
from suri.data.prompt import find_prompt
from suri.data.records import Record
from suri.infer.engines import open_model
from suri.model.adapter import initial_adapter
from suri.model.adapter_file import write_adapter
from suri.model.config import read_config
from suri.recipe import LINEARS, Decoding

MESSAGES = [{"role": "user", "content": "Say it."}]
PATIENCE_SECONDS = 120


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A tiny random Llama that reads 4096 tokens and writes letters alone."""
    folder = tmp_path_factory.mktemp("served") / "wide"
    make_model(folder, head_dim=10, max_position_embeddings=4096, vocab_size=99)
    return write_tokenizer(folder)


@pytest.fixture(scope="module")
def two_adapters(wide, tmp_path_factory):
    """Two different adapters over `wide`, by name."""
    folders = {}
    for number, name in enumerate(("red", "blue")):
        adapter = initial_adapter(
            read_config(wide), r=3, alpha=6, targets=LINEARS, seed=number,
            base={"path": str(wide)},
        )  # fmt: skip
        for _, b in adapter.tensors.values():
            b.normal_(generator=torch.Generator().manual_seed(number))
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        folders[name].mkdir()
        write_adapter(folders[name], adapter)
        find_prompt("alpaca_short").save(folders[name])
    return folders


@pytest.fixture(scope="module")
def server(wide, two_adapters, tmp_path_factory):
    adapters = [f"{name}={folder}" for name, folder in two_adapters.items()]
    words = [word for adapter in adapters for word in ("--adapter", adapter)]
    folder = tmp_path_factory.mktemp("api")
    with api_server(folder, str(wide), *words, "--max_tokens", "3000") as server:
        yield server


@contextmanager
def official(server, **settings):
    with openai.OpenAI(
        base_url=f"{server.address}/v1", **{"api_key": "none", "max_retries": 0} | settings
    ) as client:
        yield client


@pytest.fixture(scope="module")
def client(server):
    with official(server) as client:
        yield client


@pytest.fixture(scope="module")
def model(wide):
    return open_model(str(wide))


def greedy(model, record, tokens=24):
    (answer,) = model.answer([record], Decoding(temperature=0, max_new_tokens=tokens))
    return answer


def chat(client, **changes):
    asked = {"model": "wide", "messages": MESSAGES, "temperature": 0, "max_tokens": 24} | changes
    return client.chat.completions.create(**asked)


def streamed(client, **changes):
    """The text of a stream, its finish and its usage."""
    with chat(client, stream=True, stream_options={"include_usage": True}, **changes) as events:
        chunks = list(events)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert len(texts) > 2
    return "".join(texts), chunks[-2].choices[0].finish_reason, chunks[-1].usage


def send(server, body, method="POST", path="/v1/chat/completions", headers=None):
    """Status, headers and body of one request without any client's help."""
    place = urlsplit(server.address)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=PATIENCE_SECONDS)
    try:
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, raw, headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()


def metric(server, name):
    _, _, text = send(server, None, "GET", "/metrics")
    found = [line.split()[1] for line in text.decode().splitlines() if line.startswith(f"{name} ")]
    return float(found[0])


def until(condition):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def test_the_official_client_gets_the_models_answer(client, model):
    expected = greedy(model, Record("Say it.", "", ""))
    answer = chat(client)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == ("stop" if expected.stopped else "length")
    assert answer.model == "wide"
    text, finish, usage = streamed(client)
    assert (text, finish) == (expected.text, answer.choices[0].finish_reason)
    assert usage == answer.usage
    assert usage.completion_tokens == expected.tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    newer = chat(client, max_tokens=openai.NOT_GIVEN, max_completion_tokens=24)
    assert newer.choices[0].message.content == expected.text


def test_an_answer_that_ends_by_itself_says_stop(client, model):
    def sampled(seed):
        decoding = Decoding(temperature=1.5, top_p=1, top_k=0, max_new_tokens=100, seed=seed)
        return model.answer([Record("Say it.", "", "")], decoding)[0]

    seed, expected = next(
        (seed, answer) for seed in range(200) if (answer := sampled(seed)).stopped
    )
    settings = {"temperature": 1.5, "top_p": 1, "seed": seed, "max_tokens": 100}
    answer = chat(client, **settings, extra_body={"top_k": 0})
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == expected.tokens


def test_every_adapter_is_a_model_and_nothing_else_is(client, server, wide, two_adapters):
    assert [each.id for each in client.models.list()] == ["wide", "red", "blue"]
    assert client.models.retrieve("red").owned_by == "suri"
    with ThreadPoolExecutor(6) as pool:  # they come mixed
        names = ["wide", "red", "blue"] * 4
        answers = list(pool.map(lambda name: chat(client, model=name), names))
    texts = {}
    for name, answer in zip(names, answers, strict=True):
        assert texts.setdefault(name, answer.choices[0].message.content)
        assert texts[name] == answer.choices[0].message.content
    assert len(set(texts.values())) == 3
    for name, folder in two_adapters.items():
        alone = open_model(str(wide), lora_weights=str(folder))
        assert texts[name] == greedy(alone, Record("Say it.", "", "")).text
    with pytest.raises(openai.NotFoundError, match="no model 'green'; there is wide, red, blue"):
        chat(client, model="green")
    with pytest.raises(openai.NotFoundError) as refusal:
        client.models.retrieve("green")
    assert refusal.value.code == "model_not_found"
    assert send(server, None, "GET", "/v2")[0] == 404
    assert send(server, None, "GET")[0] == 405


def test_stop_strings_end_the_answer_and_are_not_shown(client, model):
    whole = greedy(model, Record("Say it.", "", "")).text
    stop = whole[6:9]  # a token is a letter, so it lies across tokens
    before = whole[: whole.index(stop)]
    for asked in (stop, ["never", stop], [whole[6:8] + "never", stop]):
        answer = chat(client, stop=asked)
        assert answer.choices[0].message.content == before
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens < 24
        assert streamed(client, stop=asked)[:2] == (before, "stop")
    # What only begins like a stop string is shown after all.
    assert chat(client, stop=whole[-2:] + "\n\n").choices[0].message.content == whole


def test_the_seed_decides(client):
    def said(seed):
        return chat(client, temperature=1.5, top_p=1, seed=seed).choices[0].message.content

    assert said(1) == said(1)
    assert len({said(seed) for seed in (1, 2, -3, openai.NOT_GIVEN, openai.NOT_GIVEN)}) == 5


def test_completions_put_the_text_as_it_is(client, model):
    answer = client.completions.create(
        model="wide", prompt="Once upon", temperature=0, max_tokens=9
    )
    ids = model.tokenizer.encode("Once upon")
    (expected,) = model.engine.generate(
        [ids], model.tokenizer.eos_id, Decoding(temperature=0, max_new_tokens=9)
    )
    assert answer.choices[0].text == model.tokenizer.decode(expected.ids)
    assert answer.usage.prompt_tokens == len(ids)
    with client.completions.create(
        model="wide", prompt=["Once upon"], temperature=0, max_tokens=9, stream=True
    ) as events:
        assert "".join(each.choices[0].text for each in events) == answer.choices[0].text


def test_a_conversation_is_put_as_in_training_and_text_stays_text(client, model):
    said = [("system", "Be brief.</s>"), ("user", "One?"), ("assistant", "1"), ("user", "<s>Two?")]
    record = Record("<s>Two?", "", "", history=(("One?", "1"),), system="Be brief.</s>")
    answer = chat(client, messages=[{"role": r, "content": c} for r, c in said])
    assert answer.choices[0].message.content == greedy(model, record).text
    prompt = [*model._ids(record)]
    assert answer.usage.prompt_tokens == len(prompt)
    assert prompt.count(model.tokenizer.eos_id) == 1  # the one after the first answer
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "it."}]
    in_parts = chat(client, messages=[{"role": "user", "content": parts}])
    assert in_parts.choices[0].message.content == chat(client).choices[0].message.content


WRONG = [
    ({"temperature": -1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": 1e300}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"top_p": "much"}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"seed": 2**70}, "seed"),
    ({"max_tokens": 10**6}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
    ({"n": 1000}, "n"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"logprobs": True}, "logprobs"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 9}, "stop"),
    ({"stop": 3}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options"),
    ({"model": 3}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [*MESSAGES, {"role": "assistant", "content": "So"}]}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ({"messages": ["hello"]}, "messages[0]"),
    ({"messages": MESSAGES * 1000}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 900_000}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 4096}]}, "messages"),
]


@pytest.mark.parametrize("changes, field", WRONG, ids=[str(each[0])[:40] for each in WRONG])
def test_what_cannot_be_is_refused_by_field(server, changes, field):
    status, _, body = send(server, {"messages": MESSAGES, "max_tokens": 3} | changes)
    error = json.loads(body)["error"]
    assert status == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == field
    assert field.partition("[")[0] in error["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"\xff\xfe", b'"text"', b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}",
        b'{"model": "\\ud800"}', b'{"messages": [{"role": "user", "content": "\\udfff"}]}',
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(server, raw):
    status, _, body = send(server, raw)
    assert status == 400
    assert json.loads(body)["error"]["message"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
FIELDS = [
    "model", "messages", "prompt", "temperature", "top_p", "top_k", "seed", "stop", "stream", "n",
    "stream_options", "repetition_penalty", "logprobs", "tools", "max_completion_tokens", "user",
]  # fmt: skip
PLAIN = st.fixed_dictionaries({}, optional={name: VALUES for name in FIELDS})
TALK = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": VALUES | st.text()}
    ),
    max_size=4,
)
LIKELY = st.fixed_dictionaries(
    {"messages": TALK},
    optional={
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1),
        "seed": st.integers(-100, 100),
        "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3),
        "stream": st.booleans(),
        "repetition_penalty": st.floats(0.1, 10),
    },
)


@pytest.mark.slow
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=PLAIN | LIKELY, chatting=st.booleans())
def test_no_body_ends_in_a_server_error(server, body, chatting):
    path = "/v1/chat/completions" if chatting else "/v1/completions"
    status, _, answer = send(server, body | {"max_tokens": 2}, path=path)
    assert status in (200, 400, 404)
    if status != 200:
        assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server):
    status, _, _ = send(server, b" " * 1_000_001)
    assert status == 413
    place = urlsplit(server.address)
    with socket.create_connection((place.hostname, place.port), timeout=60) as line:
        line.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(16):
            line.sendall(piece)
        assert line.recv(100).startswith(b"HTTP/1.1 413")


def test_pages_of_other_sites_are_refused(server):
    port = urlsplit(server.address).port
    here, body = f"127.0.0.1:{port}", {"messages": MESSAGES, "max_tokens": 2}
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": f"http://127.0.0.1:{port + 1}"},
        {"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"},
        {"Host": "evil.example"},
    ):
        status, given, answer = send(server, body, headers=headers)
        assert status == 403, headers
        assert json.loads(answer)["error"]["message"]
        assert not any(name.lower().startswith("access-control") for name in given)
    assert send(server, body, headers={"Origin": f"http://{here}", "Host": here})[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/hostname", "/v1/../../../etc/hostname", "/%2e%2e/%2e%2e/etc/hostname",
        "//etc/hostname", "/gradio_api/file=/etc/hostname", "/v1/models/../../../../etc/hostname",
        "/v1/models/%2Fetc%2Fhostname", "/docs", "/openapi.json",
    ],
)  # fmt: skip
def test_no_path_leads_to_a_file(server, path):
    status, _, body = send(server, None, "GET", path)
    assert status == 404
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_no_variable_opens_the_api(server):
    port = urlsplit(server.address).port
    assert urlsplit(server.address).hostname == "127.0.0.1"
    # A server on all addresses would answer on every loopback address too.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5).close()


@pytest.fixture(scope="module")
def endless(model):
    """Settings of an answer that only its limit of 3000 tokens ends."""
    assert not greedy(model, Record("Say it.", "", ""), 3000).stopped
    return {"messages": MESSAGES, "temperature": 0, "max_tokens": 3000}


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_answer(server, client, endless, stream):
    written = "suri_completion_tokens_total"
    before = metric(server, written)
    raw, place = json.dumps(endless | {"stream": stream}).encode(), urlsplit(server.address)
    with socket.create_connection((place.hostname, place.port), timeout=60) as line:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {place.netloc}\r\n"
        line.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        until(lambda: metric(server, written) > before)
        assert metric(server, "suri_running") == 1
    until(lambda: metric(server, "suri_running") == 0)
    assert 0 < metric(server, written) - before < 2000
    assert chat(client).choices[0].message.content


@pytest.mark.slow
def test_a_full_queue_is_said_while_others_are_answered(wide, endless, tmp_path):
    with (
        api_server(tmp_path, str(wide), "--max_tokens", "3000", "--queue", "2") as server,
        official(server) as client,
    ):
        with (
            chat(client, **endless, stream=True) as first,
            chat(client, **endless, stream=True) as second,
        ):
            next(first), next(second)
            status, headers, body = send(server, {"messages": MESSAGES})
            assert status == 429
            assert int(headers["retry-after"]) > 0
            assert json.loads(body)["error"]["code"] == "queue_full"
            with pytest.raises(openai.RateLimitError):
                chat(client)
            assert send(server, None, "GET", "/health")[0] == 200
            assert next(first).choices[0].delta.content  # goes on
        with official(server, max_retries=5) as patient:
            assert chat(patient).choices[0].message.content


@pytest.mark.slow
def test_ctrl_c_ends_it_also_while_it_answers(wide, endless, tmp_path):
    with (
        api_server(tmp_path, str(wide), "--max_tokens", "3000") as server,
        official(server) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        answers = [pool.submit(chat, client, **endless) for _ in range(4)]
        until(lambda: metric(server, "suri_running") > 0)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0
        assert "error" not in server.log.read_text()
        for answer in answers:  # all of it, or told that it is none
            ended = answer.exception()
            assert ended is None or isinstance(ended, openai.APIError)


@pytest.mark.slow
def test_other_machines_need_the_password(wide, tmp_path):
    words = (str(wide), "--server_name", "0.0.0.0", "--password", "fleece")
    with api_server(tmp_path, *words) as server:
        server.address = server.address.replace("0.0.0.0", "127.0.0.1")
        body = {"messages": MESSAGES, "max_tokens": 2}
        for given in ({}, {"Authorization": "Bearer wool"}, {"Authorization": "Basic fleece"}):
            for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"),
                                 ("GET", "/metrics")):  # fmt: skip
                assert send(server, body, method, path, given)[0] == 401
        assert send(server, None, "GET", "/health")[0] == 200
        with official(server, api_key="wool") as client, pytest.raises(openai.AuthenticationError):
            chat(client)
        with official(server, api_key="fleece") as client:
            assert chat(client).choices[0].message.content
        assert "fleece" not in server.log.read_text()


@pytest.mark.slow
def test_fifty_clients_get_the_answers_of_one(server, client):
    def ask(number):
        messages = [{"role": "user", "content": f"Say {number % 10}."}]
        sampled = {"temperature": 1.2, "seed": number % 10} if number % 2 else {}
        return chat(client, messages=messages, max_tokens=40, **sampled).choices[0].message.content

    alone = [ask(number) for number in range(50)]
    with ThreadPoolExecutor(50) as pool:
        for _ in range(2):  # libraries keep code for the sizes of passes that they met
            assert list(pool.map(ask, range(50))) == alone
        before, passes = _resident(server.process.pid), metric(server, "suri_passes_total")
        for _ in range(3):
            assert list(pool.map(ask, range(50))) == alone
    # 150 answers of up to 40 tokens, up to 16 of them in each pass
    assert metric(server, "suri_passes_total") - passes < 150 * 40 / 8
    assert _resident(server.process.pid) < before + 60e6
    until(lambda: metric(server, "suri_running") == 0)
    assert metric(server, "suri_queue_length") == 0


def _resident(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))
