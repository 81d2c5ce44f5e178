"""`suri fit`: the sum of its parts, what fits and what does not, here and elsewhere."""

import re
from pathlib import Path

import pytest
from test_main import call

SEVEN_B = str(Path(__file__).parents[2] / "recipes" / "shapes" / "llama-7b")


def gigabytes(text: str, name: str) -> float:
    size, unit = re.search(rf"{name}\s+([\d.]+) (GB|MB)", text).groups()
    return float(size) * (1 if unit == "GB" else 0.001)


def test_a_7b_on_24_gb_needs_qlora_only_for_longer_streams() -> None:
    plain = call("fit", "--base_model", SEVEN_B, "--memory", "24GB", "--lora_r", "16")
    assert plain.returncode == 0, plain.stderr
    parts = ("base", "adapter", "optimizer", "activations", "working")
    total = gigabytes(plain.stdout, "in all")
    assert sum(gigabytes(plain.stdout, part) for part in parts) == pytest.approx(total, abs=0.2)
    assert gigabytes(plain.stdout, "base") == pytest.approx(13.5, abs=0.1)
    quantized = call("fit", "--base_model", SEVEN_B, "--memory", "24GB", "--quantize", "nf4")
    assert gigabytes(quantized.stdout, "base") == pytest.approx(3.9, abs=0.2)


def test_what_does_not_fit_ends_with_4_and_names_what_does() -> None:
    found = call("fit", "--base_model", SEVEN_B, "--memory", "12GB")
    assert found.returncode == 4
    assert "--quantize nf4" in found.stderr
    assert "Traceback" not in found.stderr
    assert call("fit", "--base_model", SEVEN_B, "--memory", "12 gigs").returncode == 2


@pytest.mark.slow
def test_on_this_machine_the_time_is_told(tiny: Path, tmp_path: Path) -> None:
    found = call("fit", "--base_model", str(tiny), "--data_path", "bundled:40", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert re.search(r"time: about \d+ seconds of training for [\d,]+ tokens", found.stdout)
    assert "of up to 512 tokens" in found.stdout
    assert not list(tmp_path.iterdir())


def test_a_recipe_of_a_file_is_asked_about_and_flags_go_over_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(f"base_model = '{SEVEN_B}'\nquantize = 'nf4'\n")
    words = ["fit", "--recipe", str(tmp_path / "recipe.toml"), "--memory", "24GB"]
    quantized, plain = call(*words), call(*words, "--quantize", "none")
    assert gigabytes(quantized.stdout, "base") == pytest.approx(3.9, abs=0.2)
    assert gigabytes(plain.stdout, "base") == pytest.approx(13.5, abs=0.1)
    bare = call("fit", "--recipe", "--memory", "24GB")
    assert bare.returncode == 2
    assert "--recipe: expected one argument" in bare.stderr
