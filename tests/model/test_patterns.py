"""Ranks and alphas of single modules: matched as peft matches them, and never for long."""

import time

import pytest
from peft.utils.other import get_pattern_key

from suri.errors import Corrupt, UsageError
from suri.model.patterns import by_module

MODULES = [
    f"model.layers.{number}.{part}"
    for number in (0, 1, 2, 10, 11, 21)
    for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj", "mlp.up_proj")
]

PATTERNS = [
    ["q_proj"],
    ["proj"],
    ["down_proj", "mlp.down_proj"],
    ["layers.1.mlp.down_proj", "mlp.down_proj", "q_proj"],
    ["model.layers.10.self_attn.q_proj"],
    ["^model.layers.1.self_attn.k_proj"],
    ["^layers.1.self_attn.k_proj", "k_proj$"],
    [r"model\.layers\.\d+\.mlp\.up_proj", r"layers\.1[01]\..*"],
    ["self.attn.q_proj"],
    [r".*\.(q|k)_proj", ".*"],
    ["q_proj|k_proj"],
    [r"layers\.(?:0|2)\.self_attn\.q_proj", r"layers\.[1-2]?1\.mlp\.(?:up|down)_proj"],
    [r"[0-9]+\.mlp\.up_proj", "1.mlp.up_proj"],
    ["Q_PROJ", "q_pro", "_proj", "up_proj.", "lm_head"],
    [".+_proj", "q_proj"],
]


@pytest.mark.parametrize("patterns", PATTERNS)
def test_modules_get_what_peft_gives_them(patterns):
    table = {pattern: number + 1 for number, pattern in enumerate(patterns)}
    found = by_module(table, MODULES, "rank_pattern")
    for module in MODULES:
        assert found.get(module) == table.get(get_pattern_key(table, module)), module


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(.*.*)*x",
        "(a|aa)+",
        "(l|l)(a|a)(y|y)(e|e)",
        ".*.*.*.*x",
        "(?=q)q_proj",
        r"(q)\1",
        "q_proj{2,9}",
        "a" * 201,
        "[z-a]",
        "(?P<x>q)",
        "(q(_)proj)",
        "",
        "q_proj\n",
    ],
)
def test_what_could_take_long_or_means_more_is_refused(pattern):
    with pytest.raises(UsageError, match="alpha_pattern is not read"):
        by_module({pattern: 4}, MODULES, "alpha_pattern")


def test_what_is_read_is_matched_soon():
    """The worst of what is let in: three choices, as often as they may be given."""
    long = [f"model.layers.{number}.self_attn.q_proj" for number in range(10_000, 10_100)]
    table = {".*" * 3 + f"x{number}": 4 for number in range(32)}
    start = time.process_time()
    assert by_module(table, long, "rank_pattern") == {}
    assert time.process_time() - start < 20


@pytest.mark.parametrize("table", [{".*x": 1}, {"x": 1}])
def test_their_number_is_bounded(table):
    (pattern,) = table
    many = {f"{pattern}{number}": 1 for number in range(5000)}
    with pytest.raises(UsageError, match="more than is read"):
        by_module(many, MODULES, "rank_pattern")


@pytest.mark.parametrize(
    "table", [["q_proj"], {"q_proj": 0}, {"q_proj": "4"}, {"q_proj": True}, {"q_proj": -2}, 7]
)
def test_what_is_no_table_of_numbers_is_corrupt(table):
    with pytest.raises(Corrupt, match="no table of numbers"):
        by_module(table, MODULES, "rank_pattern")


@pytest.mark.parametrize("table", [None, {}])
def test_without_patterns_no_module_has_its_own(table):
    assert by_module(table, MODULES, "rank_pattern") == {}
