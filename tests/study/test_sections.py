"""What stands in the tables and sentences of a report's sections."""

import pytest

from results import make_comparison
from suri.recipe import Recipe, settings_of
from suri.study.blocks import Table, Text
from suri.study.compare_sections import compare_part
from suri.study.language import LANGUAGES, speaking
from suri.study.sections import settings_section


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
