"""The embedded base against transformers' own reading of the same GGUF file."""

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from suri.model.embedded import INSTALL, PACKAGE
from suri.model.tokenizer import read_tokenizer

TEXTS = ("Hello world", "In 2024, 3.5 % of\n\n  it's  fine…", "naïve 你好 🦙\t!", "### Response:\n")


def gguf_file() -> Path:
    package = distribution(PACKAGE)
    return next(
        Path(str(package.locate_file(f))) for f in package.files or [] if str(f).endswith(".gguf")
    )


@pytest.mark.slow
def test_tensors_equal_those_that_transformers_reads(embedded: Path) -> None:
    import transformers

    file = gguf_file()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    ours = load_file(embedded / "model.safetensors")
    theirs = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_tokenizer_equals_the_one_that_transformers_makes(embedded: Path) -> None:
    import transformers
    from gguf import GGUFReader

    file = gguf_file()
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    ours = read_tokenizer(embedded)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ours.encode(text)) == text
    recorded = GGUFReader(str(file)).fields["tokenizer.ggml.eos_token_id"].contents()
    assert (ours.eos_id, ours.bos_id) == (recorded, None)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "demo"])
def test_missing_package_is_one_message_with_the_command(verb: str, tmp_path: Path) -> None:
    """A real interpreter whose path holds the source but not the package."""
    code = (
        "import importlib.metadata as m\n"
        "real = m.distribution\n"
        f"def hidden(n):\n    if n == {PACKAGE!r}: raise m.PackageNotFoundError(n)\n"
        "    return real(n)\n"
        "m.distribution = hidden\n"
        "from suri.cli.main import main\n"
        f"main([{verb!r}, '--output_dir', {str(tmp_path / 'run')!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert INSTALL in done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
