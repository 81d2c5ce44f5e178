"""The words of `suri serve`."""

import socket

import pytest

from conftest import make_model, write_tokenizer
from suri.cli.main import tidy
from suri.cli.serve import run
from suri.errors import UsageError
from suri.infer.served import open_served
from suri.web.serve import how_to_ask, vllm_command


@pytest.mark.parametrize(
    "words, said",
    [
        (["--server_name", "0.0.0.0"], "add --password"),
        (["--server_name", "my-machine"], "add --password"),
        (["--adapter", "sql"], "NAME=FOLDER"),
        (["--adapter", "=here"], "NAME=FOLDER"),
        (["--adapter", "a=x", "--adapter", "a=y"], "each name once"),
        (["--queue", "0"], "queue is at least 1"),
        (["--max_tokens", "0"], "max_tokens is at least 1"),
        (["--max_tokens", "1000000"], "at most 100000"),
        (["nowhere/model"], "no such folder"),
        (["--prompt_template", "nonesuch"], "no prompt template"),
        (["a", "--base_model", "b", "--lora_weights", "c"], "three models"),
    ],
)
def test_words_that_cannot_work(words, said):
    with pytest.raises(UsageError) as refusal:
        run(tidy(words))
    assert said in "\n".join(refusal.value.lines())


def test_a_port_in_use_gets_a_message(tiny):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"choose another port: --port {port + 1}"):
            run(tidy([str(tiny), "--port", str(port)]))


def test_it_tells_how_to_ask_and_never_the_password(tmp_path):
    base = write_tokenizer(make_model(tmp_path / "my-model", head_dim=10))
    served = open_served(str(base))
    assert list(served.voices) == [served.default] == ["my-model"]
    told = how_to_ask(served, "http://127.0.0.1:8000", "fleece")
    assert "curl http://127.0.0.1:8000/v1/chat/completions -H 'Authorization: Bearer PASS" in told
    assert 'base_url="http://127.0.0.1:8000/v1"' in told
    assert "fleece" not in told
    assert vllm_command(served) == f"vllm serve {base} --served-model-name my-model"
