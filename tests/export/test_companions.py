"""What lies beside merged weights, read by transformers, llama.cpp and Ollama's rules."""

import json
import logging
import urllib.request
from pathlib import Path

import pytest
import transformers
from go_template import go_rendered, modelfile_of
from merges import make_adapter, make_base, write_gguf, write_hf, write_meta
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from conftest import need
from suri.data.encode import encode_prompt
from suri.data.prompt import Special, TextPrompt, find_prompt, read_prompt
from suri.data.records import Record
from suri.errors import Corrupt
from suri.export.verify import verify
from suri.files import write_json
from suri.model.gguf_file import GgufFile
from suri.model.tokenizer import read_tokenizer
from suri.reading import read_json
from suri.recipe import Decoding

HOSTILE = (
    "{{ messages }} {% raw %} {# no #} {%- endfor -%} }} %} #} \\n \\ \\' '\" ''' \"\"\" `\n\n"
    " 把大象放进冰箱。\t🦙\r\n${HOME} {instruction} {input} .Content {{ .System }}\n"
)
PROMPTS = {
    "alpaca": find_prompt("alpaca"),
    "alpaca_legacy": find_prompt("alpaca_legacy"),
    "hostile": TextPrompt("own", "{instruction} {input}", HOSTILE.replace("{input}", "")),
    "hostile-later": TextPrompt(
        "own", "{instruction} {input}", "'{instruction}' {instruction}\\", HOSTILE + '"'
    ),
    "bare": TextPrompt("own", "{instruction}{input}", "{instruction}", "{instruction}"),
}
CHATML = (
    "{% for message in messages %}{{ bos_token if loop.first }}{{ '[' + message['role'] + ']' }}\n"
    "{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\n' }}{% endif %}"
)
RECORDS = {
    "plain": Record("Name a river.", "", ""),
    "hostile": Record(HOSTILE, "", "", system=HOSTILE),
    "space": Record("  Sort: b, a.\n", "", "", system="Be brief."),
    "history": Record("And 5?", "", "", history=(("Is 4 even?", "Yes."), ("Is 3?", "No\n"))),
    "all": Record(HOSTILE, "", "", history=((HOSTILE, HOSTILE),) * 2, system="你好"),
}


def write_kind(folder: Path, kind: str) -> None:
    """A tokenizer of three families: bytes, bytes with BOS, Llama 1's pieces with BOS."""
    names = ["<s>", "</s>", "<unk>"]
    if kind == "pieces":
        pieces = [f"<0x{i:02X}>" for i in range(256)] + ["▁", "a", "▁a", "#", "##"]
        vocab = {token: i for i, token in enumerate(names + pieces)}
        merges = [("▁", "a"), ("#", "#")]
        tokenizer = Tokenizer(
            models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
        )
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    else:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {token: i for i, token in enumerate([*names, *letters, "##"])}
        tokenizer = Tokenizer(models.BPE(vocab, [("#", "#")]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    if kind != "bytes":
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    config |= {"tokenizer_class": "LlamaTokenizer"} if kind == "pieces" else {}
    write_json(folder / "tokenizer_config.json", config | {"chat_template": CHATML})


IN_GGUF = ("bytes", "bytes-with-bos")


@pytest.fixture(scope="module", params=[*IN_GGUF, "pieces"])
def made(request, tmp_path_factory) -> tuple[Path, Path]:
    """A base with this tokenizer, and an adapter."""
    folder = tmp_path_factory.mktemp("made")
    base = make_base(folder / "base", vocab_size=280)
    write_kind(base, request.param)
    return base, make_adapter(folder / "adapter", base)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("plain")
    base = make_base(folder / "base", vocab_size=280)
    write_kind(base, "bytes")
    return base, make_adapter(folder / "adapter", base)


def messages_of(record: Record) -> list[dict[str, str]]:
    texts = [("system", record.system)] if record.system else []
    for question, answer in record.history:
        texts += [("user", question), ("assistant", answer)]
    return [{"role": r, "content": c} for r, c in [*texts, ("user", record.instruction)]]


def text_of(record: Record, prompt, eos: str) -> str:
    """The prompt's own text up to where the answer starts, without BOS."""
    turns = prompt.turns(record)
    text = ""
    for turn in turns:
        text += "".join(p.token if isinstance(p, Special) else p for p in turn.asked)
        text += "" if turn is turns[-1] else turn.answer + eos
    return text


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMPTS)
def test_transformers_writes_what_training_wrote(name, made, tmp_path):
    base, adapter = made
    prompt = PROMPTS[name]
    prompt.save(adapter)
    write_hf(base, adapter, tmp_path / "merged")
    ours, theirs = (
        read_tokenizer(base),
        transformers.AutoTokenizer.from_pretrained(tmp_path / "merged"),
    )
    start = "<s>" if ours.bos_id is not None else ""
    for case, record in RECORDS.items():
        messages = messages_of(record)
        text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert text == start + text_of(record, prompt, "</s>"), case
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert ids == encode_prompt(record, ours, prompt).tolist(), case
        assert ids.count(0) == len(start) // 3


def test_roles_out_of_turn_are_refused(plain, tmp_path):
    base, adapter = plain
    find_prompt("alpaca").save(adapter)
    write_hf(base, adapter, tmp_path / "merged")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    asked = {"role": "user", "content": "?"}
    for messages in ([asked, asked], [asked, asked | {"role": "system"}], [{**asked, "role": "x"}]):
        with pytest.raises(Exception, match="take turns"):
            theirs.apply_chat_template(messages)


def test_the_template_can_be_trained_with_again(plain, tmp_path):
    base, adapter = plain
    PROMPTS["hostile"].save(adapter)
    write_hf(base, adapter, tmp_path / "merged")
    tokenizer = read_tokenizer(tmp_path / "merged")
    again = find_prompt("chat", tokenizer)
    for record in RECORDS.values():
        expected = encode_prompt(record, tokenizer, PROMPTS["hostile"])
        assert encode_prompt(record, tokenizer, again).tolist() == expected.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("made", IN_GGUF, indirect=True)
def test_the_bases_own_template_stays(made, tmp_path):
    base, adapter = made
    prompt = find_prompt("chat", read_tokenizer(base))
    prompt.save(adapter)
    write_hf(base, adapter, tmp_path / "hf")
    assert (tmp_path / "hf" / "chat_template.jinja").read_text(encoding="utf-8") == CHATML
    write_gguf(base, adapter, tmp_path / "gguf")
    assert read_json(tmp_path / "gguf" / "tokenizer_config.json")["chat_template"] == CHATML
    assert GgufFile(tmp_path / "gguf" / "model.gguf").values["tokenizer.chat_template"] == CHATML


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PROMPTS, "chat"])
@pytest.mark.parametrize("made", IN_GGUF, indirect=True)
def test_ollama_writes_what_training_wrote(name, made, tmp_path):
    base, adapter = made
    tokenizer = read_tokenizer(base)
    prompt = find_prompt("chat", tokenizer) if name == "chat" else PROMPTS[name]
    prompt.save(adapter)
    write_gguf(base, adapter, tmp_path / "merged")
    written = (tmp_path / "merged" / "Modelfile").read_text(encoding="utf-8")
    commands = modelfile_of(written)
    assert ("from", "./model.gguf") in commands
    assert ("stop", "</s>") in commands
    assert ("num_ctx", "256") in commands
    template = dict(commands)["template"]
    adds = GgufFile(tmp_path / "merged" / "model.gguf").values["tokenizer.ggml.add_bos_token"]
    for case, record in RECORDS.items():
        text = text_of(record, prompt, "</s>")
        expected = text.removeprefix("<s>") if adds else text
        assert go_rendered(template, messages_of(record)) == expected, case


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PROMPTS, "chat"])
@pytest.mark.parametrize("made", IN_GGUF, indirect=True)
def test_llama_cpp_writes_what_training_wrote(name, made, tmp_path):
    """Its server's own renderer and tokenizer, over HTTP as any program asks them."""
    need("xllamacpp")
    import xllamacpp

    base, adapter = made
    tokenizer = read_tokenizer(base)
    prompt = find_prompt("chat", tokenizer) if name == "chat" else PROMPTS[name]
    prompt.save(adapter)
    write_gguf(base, adapter, tmp_path / "merged")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(tmp_path / "merged" / "model.gguf")
    settings.use_jinja, settings.warmup = True, False
    settings.n_parallel = settings.cpuparams.n_threads = 1
    server = xllamacpp.Server(settings)

    def ask(path: str, question: dict[str, object]) -> dict[str, object]:
        request = urllib.request.Request(
            server.listening_address + path, json.dumps(question).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    for case, record in RECORDS.items():
        text = ask("/apply-template", {"messages": messages_of(record)})["prompt"]
        expected = text_of(record, prompt, "</s>")
        assert text == (expected if tokenizer.bos_id is None else expected.removeprefix("<s>"))
        question = {"content": text, "add_special": True, "parse_special": True}
        ids = ask("/tokenize", question)["tokens"]
        assert ids == encode_prompt(record, tokenizer, prompt).tolist(), case


@pytest.mark.slow
def test_the_gguf_file_has_the_template_of_the_hf_folder(plain, tmp_path):
    base, adapter = plain
    PROMPTS["hostile-later"].save(adapter)
    write_hf(base, adapter, tmp_path / "hf")
    write_gguf(base, adapter, tmp_path / "gguf")
    template = (tmp_path / "hf" / "chat_template.jinja").read_text(encoding="utf-8")
    values = GgufFile(tmp_path / "gguf" / "model.gguf").values
    assert values["tokenizer.chat_template"] == template
    assert "chat_template" not in read_json(tmp_path / "hf" / "tokenizer_config.json")


@pytest.mark.slow
def test_a_base_without_a_tokenizer_gets_no_template(plain, tmp_path):
    _, adapter = plain
    base = make_base(tmp_path / "base", vocab_size=280)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    write_gguf(base, adapter, tmp_path / "gguf")
    assert not (tmp_path / "gguf" / "Modelfile").exists()
    assert "ollama" not in (tmp_path / "gguf" / "README.md").read_text(encoding="utf-8")


def test_generation_is_set_up_as_in_suris_chat(plain, tmp_path, caplog):
    base, adapter = plain
    write_hf(base, adapter, tmp_path / "merged")
    with caplog.at_level(logging.WARNING, "transformers"):
        config = transformers.GenerationConfig.from_pretrained(tmp_path / "merged")
        config.validate(strict=True)
    assert not caplog.records
    tokenizer = read_tokenizer(base)
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    usual = Decoding()
    assert (config.do_sample, config.temperature) == (True, usual.temperature)
    assert (config.top_p, config.top_k) == (usual.top_p, usual.top_k)


@pytest.mark.slow
def test_the_card_tells_where_it_comes_from_and_how_it_was_checked(plain, tmp_path):
    base, adapter = plain
    find_prompt("alpaca").save(adapter)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    (adapter / "recipe.toml").write_text("lora_r = 5\nlora_alpha = 12.0\nlearning_rate = 0.002\n")
    write_json(adapter / "result.json", {"steps": 7, "rows": 21})
    write_json(adapter / "data.json", {"sha256": "ab" * 32, "licence": "CC0-1.0"})
    commands = {
        "hf": ["vllm serve . --served-model-name my-merge --max-model-len 256"],
        "gguf": [
            "llama-cli -m model.gguf --jinja -c 256",
            "llama-server -m model.gguf --jinja -c 256",
            "ollama create my-merge -f Modelfile && ollama run my-merge",
        ],
        "meta": [],
    }
    for to, write in (("hf", write_hf), ("gguf", write_gguf), ("meta", write_meta)):
        out = tmp_path / to / "My Merge"
        certificate = write(base, adapter, out, "bfloat16")
        card = (out / "README.md").read_text(encoding="utf-8")
        block = card.split("```bash\n")[1].split("\n```")[0].splitlines()
        assert block == ["suri chat .", *commands[to], "suri verify ."]
        for words in (
            "Licence of the base: apache-2.0.", "7 steps of 16 rows", "21 rows in all", "0.002",
            "rank 5, alpha 12", "ab" * 32, "Licence of the data: CC0-1.0.", "`alpaca`",
            certificate.record["reader"],
        ):  # fmt: skip
            assert words in card, words
        rows = [line.split(" | ") for line in card.splitlines() if line.startswith("| ")][1:]
        assert len(rows) == len(certificate.checks)
        for row, check in zip(rows, certificate.checks, strict=True):
            assert row[0] == f"| {check.name}"
            assert float(row[1]) == pytest.approx(check.figure, rel=0.01)
            assert float(row[2].split()[1]) == check.limit
        assert str(tmp_path) not in card


@pytest.mark.slow
def test_the_card_may_be_edited_and_the_chat_template_may_not(plain, tmp_path):
    base, adapter = plain
    write_hf(base, adapter, tmp_path / "merged")
    with (tmp_path / "merged" / "README.md").open("a") as file:
        file.write("Mine.\n")
    assert verify(tmp_path / "merged")[0].passed
    listed = read_json(tmp_path / "merged" / "certificate.json")["output"]["files"]
    written = {path.name for path in (tmp_path / "merged").iterdir()}
    assert set(listed) == written - {"README.md", "certificate.json"}
    (tmp_path / "merged" / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(Corrupt):
        verify(tmp_path / "merged")


def test_the_prompt_comes_back(plain, tmp_path):
    base, adapter = plain
    PROMPTS["hostile"].save(adapter)
    write_hf(base, adapter, tmp_path / "merged")
    assert read_prompt(tmp_path / "merged") == PROMPTS["hostile"]
    assert json.loads((tmp_path / "merged" / "prompt.json").read_text(encoding="utf-8"))
