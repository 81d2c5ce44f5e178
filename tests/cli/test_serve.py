"""The words of `suri serve`."""

import shlex
import socket

import pytest

from conftest import make_model, write_tokenizer
from suri.cli.main import tidy
from suri.cli.merge import run_merge
from suri.cli.serve import run_serve
from suri.data.prompt import find_prompt
from suri.errors import UsageError
from suri.infer.served import open_served
from suri.model.adapter import initial_adapter
from suri.model.adapter_file import write_adapter
from suri.model.config import read_config
from suri.recipe import LINEARS
from suri.web.serve import for_many_users, how_to_ask


@pytest.mark.parametrize(
    "words, said",
    [
        (["--server_name", "0.0.0.0"], "add --password"),
        (["--server_name", "my-machine"], "add --password"),
        (["--adapter", "sql"], "NAME=FOLDER"),
        (["--adapter", "=here"], "NAME=FOLDER"),
        (["--adapter", "a=x", "--adapter", "a=y"], "each name once"),
        (["--queue", "0"], "queue = 0 is not from 1 to"),
        (["--max_tokens", "0"], "max_tokens = 0 is not from 1 to 100000"),
        (["--max_tokens", "1000000"], "max_tokens = 1000000 is not from 1 to 100000"),
        (["--port", "70000"], "port = 70000 is not from 0 to 65535"),
        (["nowhere/model"], "no such folder"),
        (["--prompt_template", "nonesuch"], "no prompt template"),
        (["a", "--base_model", "b", "--lora_weights", "c"], "three models"),
    ],
)
def test_words_that_cannot_work(words, said):
    with pytest.raises(UsageError) as refusal:
        run_serve(tidy(words))
    assert said in "\n".join(refusal.value.lines())


@pytest.mark.slow
def test_a_port_in_use_gets_a_message(tiny):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"choose another port: --port {port + 1}"):
            run_serve(tidy([str(tiny), "--port", str(port)]))


def test_it_tells_how_to_ask_and_never_the_password(tmp_path):
    base = write_tokenizer(make_model(tmp_path / "my-model", head_dim=10))
    served = open_served(str(base))
    assert list(served.voices) == [served.default] == ["my-model"]
    told = how_to_ask(served, "http://127.0.0.1:8000", "fleece")
    assert "curl http://127.0.0.1:8000/v1/chat/completions -H 'Authorization: Bearer PASS" in told
    assert 'base_url="http://127.0.0.1:8000/v1"' in told
    assert "fleece" not in told
    assert for_many_users(served) == f"  vllm serve {base} --served-model-name my-model"


def test_an_adapter_is_first_made_ready_for_vllm(tiny, tmp_path):
    base = tiny
    adapter = initial_adapter(
        read_config(base), r=3, alpha=6, targets=LINEARS, seed=1, base={"path": str(base)}
    )
    (tmp_path / "my lora").mkdir()
    write_adapter(tmp_path / "my lora", adapter)
    find_prompt("alpaca").save(tmp_path / "my lora")
    served = open_served(str(tmp_path / "my lora"))
    printed = shlex.split(for_many_users(served).partition("#")[0])
    assert printed[:3] == ["suri", "merge", str(tmp_path / "my lora")]
    out = tmp_path / "ready"
    run_merge(tidy([*printed[2:5], "--output_dir", str(out)]))
    assert (out / "adapter_config.json").is_file()
