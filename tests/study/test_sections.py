"""What stands in the tables and sentences of a report's sections."""

import pytest

from results import make_comparison
from suri.recipe import Recipe, settings_of
from suri.study.blocks import Table, Text
from suri.study.compare_sections import compare_part, title_of
from suri.study.language import LANGUAGES, speaking
from suri.study.measures import MEASURES, method_label, way_label
from suri.study.sections import settings_section
from suri.study.study_sections import title_of as study_title


def blocks_of(section, kind):
    return [block for block in section.everything() if isinstance(block, kind)]


def test_what_a_run_settles_by_itself_is_not_told_as_changed():
    recipe = settings_of(Recipe(token_budget=512, lora_r=4))
    section = settings_section(recipe, {})
    (changed,) = blocks_of(section, Table)
    assert [row[0] for row in changed.rows] == ["lora_r"]
    left, settled = (text.text for text in blocks_of(section, Text))
    assert "token_budget" not in left
    assert settled == (
        "Reckoned from the free memory where not given, and without influence on the results: "
        "token_budget 512."
    )
    assert len(blocks_of(settings_section(settings_of(Recipe()), {}), Text)) == 1


@pytest.mark.parametrize(
    ("compared", "english", "chinese"),
    [
        (("base", "adapter", "hf", "meta"), "base, adapter and merged models",
         "基座模型、适配器与合并模型"),
        (("base", "adapter", "int8"), "base and adapter", "基座模型与适配器"),
        (("adapter", "gguf"), "adapter and merged model", "适配器与合并模型"),
        (("hf", "meta"), "merged models", "合并模型"),
    ],
)  # fmt: skip
def test_the_title_names_what_was_compared_and_no_more(compared, english, chinese):
    summary = {"ways": {name: {"form": name, "is_main": True} for name in compared}}
    assert title_of(summary) == f"Task 1: {english}"
    with speaking("zh"):
        assert title_of(summary) == f"任务一：{chinese}的对比"


def test_the_title_of_a_study_names_its_methods():
    plan = {"quantize": ["none", "int8", "nf4"], "rows": [64, 256]}
    assert study_title(plan) == "Task 2: LoRA, LoRA in int8 and QLoRA over data sizes"
    assert study_title({"quantize": ["none", "nf4"], "rows": [64]}) == "Task 2: LoRA and QLoRA"


def test_details_stand_in_brackets_in_chinese():
    way = {"form": "adapter", "is_main": False, "engine": "suri", "dtype": "float16"}
    trial = {"quantize": "nf4", "settings": {"lora_r": 4}}

    def labels():
        return way_label(way), method_label(trial), MEASURES["loss"].head

    assert labels() == ("adapter, suri, float16", "QLoRA, lora_r 4", "Response loss, nats/token")
    with speaking("zh"):
        assert labels() == ("适配器（suri，float16）", "QLoRA（lora_r 4）", "回答损失（nats/词元）")


@pytest.mark.slow
@pytest.mark.parametrize("spoken", LANGUAGES)
def test_no_name_of_the_code_reaches_a_reader_but_those_of_settings(tmp_path, spoken):
    summary = make_comparison()
    summary["result"] |= {
        "memory_estimate": {"parts": {"base": 537919488}, "total": 1717961713},
        "facts": {"rows_seen": "22d7de37a2a59d3b", "adapter_dtype": "float32"},
        "best_step": 21,
        "stopped_early": False,
    }
    summary["environment"] |= {"memory_bytes": 25276510208, "gpu": None}
    with speaking(spoken):
        part = compare_part(tmp_path, summary, [], [])
    names = {row[0] for table in blocks_of(part, Table) if not table.head for row in table.rows}
    settings = {*settings_of(Recipe()), *summary["settings"]}
    assert [name for name in names - settings if "_" in name or "." in name] == []
    values = [cell for table in blocks_of(part, Table) for row in table.rows for cell in row[1:]]
    assert {"1,718 MB", "25.3 GB"} <= set(values)
    assert not {"22d7de37a2a59d3b", "25276510208"} & set(values)
