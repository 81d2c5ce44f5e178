"""A look at rows before a run learns them: what is wrong with them, and what is learned of them."""

from itertools import islice

from suri.data.check import Report, check_rows
from suri.data.encode import Rules, encode_records
from suri.data.findings import Findings
from suri.data.preview import Piece, pieces_of
from suri.data.prompt import find_prompt
from suri.data.records import stream_records
from suri.data.split import load_rows
from suri.model.tokenizer import read_tokenizer
from suri.model.weights import find_base
from suri.recipe import BUNDLED, Recipe


def look_at(recipe: Recipe, count: int) -> tuple[Report | None, list[list[Piece]]]:
    """What was found in a recipe's file, None for bundled rows, and the first rows' tokens."""
    tokenizer = read_tokenizer(find_base(recipe.base_model))
    prompt = find_prompt(recipe.prompt_template_name, tokenizer)
    if recipe.data_path.startswith(f"{BUNDLED}:"):
        report, first = None, [record for _, record in islice(load_rows(recipe).train, count)]
    else:
        report = check_rows(recipe.data_path, tokenizer=tokenizer, prompt=prompt)
        rows = stream_records(recipe.data_path, Findings())
        first = [record for _, record in islice(rows, count)]
    rules = Rules(recipe.cutoff_len, recipe.train_on_inputs, recipe.overlong)
    examples = encode_records(first, tokenizer, prompt, rules).examples
    return report, [pieces_of(example, tokenizer) for example in examples]
