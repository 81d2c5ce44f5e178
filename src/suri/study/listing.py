"""The functions that a report shows: taken by name from the source as it is installed."""

import ast
import importlib.util
from pathlib import Path

from suri.study.blocks import Code
from suri.study.language import tr

LOOKUP = {
    "compare": {
        "suri.model.lora:low_rank": (
            "The low-rank delta, scaling · B A. Training, use and merging all call this one "
            "function, so that they cannot differ in the formula."
        ),
        "suri.export.fold:add_delta": (
            "The merge: W + scaling · B A for one weight. The sum is made in fp32 and cast once; "
            "block by block, so that one block of rows at most is held in fp32."
        ),
        "suri.model.tensor_names:unpermute": (
            "The order of rotary rows. Hugging Face turns the two halves of a head against each "
            "other, Meta neighbouring rows: q and k are reordered head by head, k by its own "
            "number of heads. Forgetting this gives a model that talks nonsense without an error."
        ),
        "suri.export.certify:check_targets": (
            "The proof of a merge, in numpy and fp64, sharing no code with the fold: rows of every "
            "weight are computed again from the adapter's file and held against what was written."
        ),
        "suri.study.measure:time_decoding": (
            "How speed is measured: the same prompts and equally many tokens for every way, after "
            "a warm-up that is not counted, each way in a process of its own."
        ),
    },
    "study": {
        "suri.model.linear:_Product.backward": (
            "The backward pass of a frozen linear with its low-rank pairs. Nothing but the input "
            "was kept; the frozen weight gets no gradient, A and B do."
        ),
        "suri.model.storage:quantize_nf4": (
            "QLoRA's storage: blocks of 64 weights share a scale and take one of 16 values of the "
            "normal distribution (NF4); the scales are stored in 8 bits (double quantisation)."
        ),
        "suri.model.storage:Int8.product": (
            "The 8-bit product: each token and each row of the weight has its scale, products of "
            "8-bit integers are summed exactly; inputs with outliers are multiplied as they are."
        ),
        "suri.study.plan:trials_of": (
            "The trials of a study: methods of one size and seed differ in how the base is stored "
            "and in nothing else, and run one after the other."
        ),
        "suri.study.intervals:mean_interval": (
            "Every interval of this report: rows are resampled in pairs, seeds enter by Student's "
            "t, and what does not leave zero out is no difference."
        ),
    },
}
"""By kind of result: the function, as module:name, and what it does."""


def listing(kind: str) -> list[Code]:
    """The functions of one kind of report, with their lines."""
    return [_code(name, tr(text)) for name, text in LOOKUP[kind].items()]


def _code(name: str, explanation: str) -> Code:
    """Raises LookupError where the function is not there any more."""
    module, _, path = name.partition(":")
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise LookupError(name)
    text = Path(found.origin).read_text(encoding="utf-8")
    node: ast.AST = ast.parse(text)
    for part in path.split("."):
        node = _child(node, part)
    lines = text.splitlines()[node.lineno - 1 : node.end_lineno]  # type: ignore[attr-defined]
    place = "/".join([*module.split(".")[:-1], Path(found.origin).name])
    return Code(path, place, node.lineno, _without_indent(lines), explanation)  # type: ignore[attr-defined]


def _child(node: ast.AST, name: str) -> ast.AST:
    for child in ast.iter_child_nodes(node):
        if getattr(child, "name", None) == name:
            return child
    raise LookupError(name)


def _without_indent(lines: list[str]) -> str:
    least = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "\n".join(line[least:] for line in lines)
