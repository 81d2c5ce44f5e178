"""The few rules of Modelfiles and of Go's templates that Ollama's files here need, by the book.

Sources: github.com/ollama/ollama, docs/modelfile.md and docs/template.md; pkg.go.dev/text/template;
go.dev/ref/spec, String literals. What is not covered raises an error.
"""

import re
from typing import Any

ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"'}


def modelfile_of(text: str) -> list[tuple[str, str]]:
    """Instructions in lower case with their values; a PARAMETER counts under its own name."""
    found = []
    while text := text.lstrip("\n"):
        if text.startswith("#"):
            text = text.partition("\n")[2]
            continue
        name, _, text = text.partition(" ")
        assert name in ("FROM", "TEMPLATE", "PARAMETER"), name
        if name == "PARAMETER":
            name, _, text = text.partition(" ")
        if text.startswith('"""'):
            value, _, text = text[3:].partition('"""')
            # Ollama leaves out what it takes for unprintable, line breaks alone excepted.
            assert all(letter == "\n" or " " <= letter <= "~" for letter in value)
        else:
            value, _, text = text.partition("\n")
            if value.startswith('"'):
                assert value.endswith('"')
                value = value[1:-1]
        found.append((name.lower(), value))
    return found


def go_rendered(template: str, messages: list[dict[str, str]]) -> str:
    """The text of a template that uses range .Messages, if, eq, variables and string constants."""
    nodes, rest = _block(_tokens(template))
    assert not rest
    return _run(nodes, {"dot": None, "Messages": messages})


def _tokens(text: str) -> list[tuple[str, str]]:
    """Text and actions in turn; an action ends at the first }} outside its string constants."""
    tokens = []
    while text:
        before, opening, text = text.partition("{{")
        trims = text.startswith("- ")
        tokens.append(("text", before.rstrip() if trims else before))
        if not opening:
            break
        action = re.match(r'(?:[^"}]|"(?:[^"\\\n]|\\.)*")*', text)
        assert action is not None
        inside, text = action[0], text[action.end() :]
        assert text.startswith("}}"), text[:40]
        text = text[2:]
        if inside.endswith(" -"):
            text, inside = text.lstrip(), inside[:-2]
        tokens.append(("action", inside.removeprefix("- ").strip()))
    return tokens


def _block(tokens: list[tuple[str, str]]) -> tuple[list[Any], list[tuple[str, str]]]:
    """Nodes up to the end of this block, and the tokens from its `else` or `end` on."""
    nodes: list[Any] = []
    while tokens:
        kind, content = tokens[0]
        word = content.split(" ")[0] if kind == "action" else ""
        if word in ("else", "end"):
            break
        tokens = tokens[1:]
        if word in ("range", "if"):
            body, tokens = _block(tokens)
            other: list[Any] = []
            if tokens[0][1].startswith("else if "):
                nested = [("action", tokens[0][1].removeprefix("else ")), *tokens[1:]]
                # `else if` is an if inside the else that shares its end.
                other, tokens = _first(nested)
            else:
                if tokens[0][1] == "else":
                    other, tokens = _block(tokens[1:])
                assert tokens[0] == ("action", "end")
                tokens = tokens[1:]
            nodes.append((word, content.partition(" ")[2], body, other))
        else:
            nodes.append((kind, content))
    return nodes, tokens


def _first(tokens: list[tuple[str, str]]) -> tuple[list[Any], list[tuple[str, str]]]:
    depth = 0
    for number, (kind, content) in enumerate(tokens):
        word = content.split(" ")[0] if kind == "action" else ""
        depth += word in ("range", "if")
        depth -= word == "end"
        if number and not depth:
            nodes, rest = _block(tokens[: number + 1])
            assert not rest
            return nodes, tokens[number + 1 :]
    raise AssertionError("no end")


def _run(nodes: list[Any], scope: dict[str, Any]) -> str:
    text = ""
    for kind, content, *blocks in nodes:
        if kind == "text":
            text += content
        elif kind == "range":
            for each in _value(content, scope):
                scope["dot"] = each
                text += _run(blocks[0], scope)
        elif kind == "if":
            text += _run(blocks[0] if _value(content, scope) else blocks[1], scope)
        elif found := re.fullmatch(r"(\$\w+) :?= (.+)", content, flags=re.DOTALL):
            scope[found[1]] = _value(found[2], scope)
        else:
            text += _value(content, scope)
    return text


def _value(text: str, scope: dict[str, Any]) -> Any:
    if text.startswith("eq "):
        left, right = text[3:].split(" ")
        return _value(left, scope) == _value(right, scope)
    if text in ("true", "false"):
        return text == "true"
    if text.startswith("$"):
        return scope[text]
    if text == ".Messages":
        return scope["Messages"]
    if text.startswith("."):
        return scope["dot"][text[1:].lower()]
    return _constant(text)


def _constant(text: str) -> str:
    """An interpreted string literal."""
    assert text.startswith('"')
    assert text.endswith('"')
    letters, text = "", text[1:-1]
    while text:
        if text[0] != "\\":
            assert text[0] not in '"\n'
            letters, text = letters + text[0], text[1:]
        elif text[1] in "uU":
            size = 4 if text[1] == "u" else 8
            number = int(text[2 : 2 + size], 16)
            assert not 0xD800 <= number < 0xE000
            letters, text = letters + chr(number), text[2 + size :]
        else:
            letters, text = letters + ESCAPES[text[1]], text[2:]
    return letters
