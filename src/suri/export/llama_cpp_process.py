"""llama.cpp in a process of its own: what it aborts or prints reaches nobody else.

This file is a program that imports nothing of Suri: it reads one request from stdin as JSON and
writes the reply, JSON too, to the file that the request names: stdout belongs to the C++ code.

llama.cpp comes out of the package xllamacpp, whose library exports the functions of llama.h. Their
settings are passed on as llama.cpp gives them, bytes that nobody here takes apart, so that a later
version with further fields changes nothing; llama_batch alone has a layout here, and `_check` looks
whether it holds.
"""

import ctypes
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Pointer = ctypes.c_void_p
Integer = ctypes.c_int32
Numbers = ctypes.POINTER(Integer)


class _Settings(ctypes.Structure):
    """Room for llama_model_params or llama_context_params, wider than either."""

    _fields_ = [("content", ctypes.c_uint64 * 64)]


class _Batch(ctypes.Structure):
    """llama_batch, with room behind it."""

    _fields_ = [
        ("count", Integer),
        ("tokens", Numbers),
        ("embeddings", Pointer),
        ("positions", Numbers),
        ("sequence_counts", Numbers),
        ("sequences", ctypes.POINTER(Numbers)),
        ("wanted", ctypes.POINTER(ctypes.c_int8)),
        ("more", ctypes.c_uint64 * 16),
    ]


class Problem(Exception):
    """Why llama.cpp did not do what was asked."""


class Library:
    """The functions of llama.h that are needed, found and tried before any file is opened."""

    def __init__(self) -> None:
        import xllamacpp
        from xllamacpp import xllamacpp as extension

        self.name = f"llama.cpp of xllamacpp {xllamacpp.__version__}"
        self._library = ctypes.CDLL(extension.__file__)
        self.load = self._function(
            "model_load_from_file", Pointer, ctypes.c_char_p, _Settings)  # fmt: skip
        self.start = self._function("init_from_model", Pointer, Pointer, _Settings)
        self.threads = self._function("set_n_threads", None, Pointer, Integer, Integer)
        self.vocabulary = self._function("model_get_vocab", Pointer, Pointer)
        self.size = self._function("vocab_n_tokens", Integer, Pointer)
        self.memory = self._function("get_memory", Pointer, Pointer)
        self.clear = self._function("memory_clear", None, Pointer, ctypes.c_bool)
        self.batch = self._function("batch_init", _Batch, Integer, Integer, Integer)
        self.free_batch = self._function("batch_free", None, _Batch)
        self.decode = self._function("decode", Integer, Pointer, _Batch)
        self.logits = self._function(
            "get_logits_ith", ctypes.POINTER(ctypes.c_float), Pointer, Integer)  # fmt: skip
        self.tokenize = self._function(
            "tokenize", Integer, Pointer, ctypes.c_char_p, Integer, Numbers, Integer,
            ctypes.c_bool, ctypes.c_bool)  # fmt: skip
        self.model_settings = self._function("model_default_params", _Settings)
        self.context_settings = self._function("context_default_params", _Settings)
        self._function("backend_init", None)()
        self._check()

    def _function(self, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        found = getattr(self._library, f"llama_{name}")
        found.restype, found.argtypes = result, arguments
        return found  # type: ignore[no-any-return]

    def _check(self) -> None:
        """Raise Problem where a fresh batch of this version does not look as _Batch says."""
        batch = self.batch(4, 0, 1)
        lists = (batch.tokens, batch.positions, batch.sequence_counts, batch.sequences)
        if batch.count or batch.embeddings or not all(lists) or not batch.wanted:
            raise Problem("its llama_batch has another layout")
        self.free_batch(batch)


class Model:
    """One GGUF file in llama.cpp, with one sequence in its memory at a time."""

    def __init__(self, library: Library, file: str, threads: int) -> None:
        self.library = library
        model = library.load(file.encode(), library.model_settings())
        if not model:
            raise Problem("it does not load the file")
        self.context = library.start(model, library.context_settings())
        if not self.context:
            raise Problem("it cannot compute with the file")
        library.threads(self.context, threads, threads)
        self.vocabulary = library.vocabulary(model)
        self.size = library.size(self.vocabulary)

    def forget(self) -> None:
        """Begin a new sequence."""
        self.library.clear(self.library.memory(self.context), True)

    def read(self, ids: Sequence[int], start: int = 0) -> npt.NDArray[np.float32]:
        """Logits [len(ids), vocab] of tokens from the position `start` on."""
        batch = self.library.batch(len(ids), 0, 1)
        try:
            batch.count = len(ids)
            for place, i in enumerate(ids):
                batch.tokens[place], batch.positions[place] = i, start + place
                batch.sequence_counts[place], batch.sequences[place][0] = 1, 0
                batch.wanted[place] = 1
            if code := self.library.decode(self.context, batch):
                raise Problem(f"llama_decode gives {code}")
            rows = (self.library.logits(self.context, place) for place in range(len(ids)))
            return np.stack([np.ctypeslib.as_array(row, (self.size,)).copy() for row in rows])
        finally:
            self.library.free_batch(batch)

    def tokens(self, text: str) -> list[int]:
        """The text's ids, without BOS; what looks like a special token is text."""
        content = text.encode()
        found = (Integer * (len(content) + 8))()
        count = self.library.tokenize(
            self.vocabulary, content, len(content), found, len(found), False, False
        )
        if count < 0:
            raise Problem("llama_tokenize gives more tokens than there are bytes")
        return list(found[:count])

    def answer(self, ids: Sequence[int], most: int, stop: int) -> Iterator[tuple[int, float]]:
        """Greedy continuation up to `stop`: each id with its lead over the second best logit."""
        self.forget()
        logits, start = self.read(ids)[-1], len(ids)
        for _ in range(most):
            second, first = np.argsort(logits)[-2:]
            yield int(first), float(logits[first] - logits[second])
            if first == stop:
                return
            logits, start = self.read([int(first)], start)[-1], start + 1


def main() -> None:
    """Answer the one request on stdin; the reply is there as soon as the library is."""
    request = json.load(sys.stdin)
    reply: dict[str, Any] = {}
    try:
        library = Library()
        reply["reader"] = library.name
        _put(request, reply)
        reply |= _done(library, request)
    except Exception as problem:  # told to the parent, whatever it is
        reply["problem"] = f"{problem}" if isinstance(problem, Problem) else repr(problem)
    _put(request, reply)


def _done(library: Library, request: dict[str, Any]) -> dict[str, Any]:
    model = Model(library, request["file"], request["threads"])
    rows = []
    for ids in request["ids"]:
        model.forget()
        rows.append(model.read(ids))
    if rows:
        np.save(request["logits"], np.concatenate(rows))
    answers = [
        list(model.answer(ids, request["most"], request["stop"])) for ids in request["prompts"]
    ]
    return {"tokens": [model.tokens(text) for text in request["texts"]], "answers": answers}


def _put(request: dict[str, Any], reply: dict[str, Any]) -> None:
    Path(request["reply"]).write_text(json.dumps(reply), encoding="utf-8")


if __name__ == "__main__":
    main()
