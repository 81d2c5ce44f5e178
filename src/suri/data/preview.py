"""What a model sees of a row: its tokens as text, and which of them are learned."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from suri.data.examples import NOT_LEARNED, Example
from suri.data.tokenizer import Tokenizer
from suri.files import write_text

PAGE = Path(__file__).with_name("templates") / "preview.html"
HALF_A_CHARACTER = "\ufffd"


@dataclass(frozen=True)
class Piece:
    """One token as text; several where only together they are whole characters."""

    text: str
    learned: bool
    tokens: int
    special: bool = False


def pieces_of(example: Example, tokenizer: Tokenizer) -> list[Piece]:
    """The tokens of an example in order."""
    names = {number: name for name, number in tokenizer.special_tokens.items()}
    pieces: list[Piece] = []
    waiting: list[int] = []
    before: list[int] = []
    for token, label in zip(example.ids.tolist(), example.labels.tolist(), strict=True):
        learned = label != NOT_LEARNED
        if token in names:
            pieces.append(Piece(names[token], learned, 1, special=True))
            before = []
            continue
        waiting.append(token)
        # Some tokenizers drop the blank before a first word: decode after what stands before it.
        text = tokenizer.decode(before + waiting)[len(tokenizer.decode(before)) :]
        if not text.endswith(HALF_A_CHARACTER):
            pieces.append(Piece(text, learned, len(waiting)))
            before, waiting = waiting, []
    if waiting:
        pieces.append(Piece(HALF_A_CHARACTER, learned, len(waiting)))
    return pieces


def write_page(path: Path, title: str, rows: Sequence[tuple[int, Sequence[Piece]]]) -> None:
    """Write a page that needs no other file: rows with their tokens, the learned ones coloured."""
    page = Template(PAGE.read_text(encoding="utf-8"))
    shown = "\n".join(_row(number, pieces) for number, pieces in rows)
    write_text(path, page.substitute(title=html.escape(title), rows=shown))


def _row(number: int, pieces: Sequence[Piece]) -> str:
    return f"<h2>Row {number}</h2><p>{learned_part(pieces)}</p><pre>{marked(pieces)}</pre>"


def learned_part(pieces: Sequence[Piece]) -> str:
    """How many of the tokens are learned, as a sentence."""
    learned = sum(piece.tokens for piece in pieces if piece.learned)
    return f"{learned} of {sum(piece.tokens for piece in pieces)} tokens are learned"


def marked(pieces: Sequence[Piece]) -> str:
    """Tokens as HTML, each with the classes `learned` and `special` where it is."""
    return "".join(_mark(piece) for piece in pieces)


def _mark(piece: Piece) -> str:
    kinds = ["learned"] * piece.learned + ["special"] * piece.special
    # A line break would hide where its token ends.
    text = html.escape(piece.text).replace("\n", "⏎\n")
    return f'<span class="{" ".join(kinds)}">{text}</span>'
