"""What a set of rows holds as a whole: doubles, questions that are also held out, a hash."""

import hashlib
import json
from array import array
from collections.abc import Iterable

from suri.data.findings import Findings
from suri.data.records import Record, as_row


class Survey:
    """Sees every row of a source once, in order; keeps a few bytes of each.

    rows: number of records. digest: a hash of their content, the same for every file format.
    """

    def __init__(self) -> None:
        self.findings = Findings()
        self.rows = 0
        self._content = hashlib.sha256()
        self._questions = array("q")  # Python's hashes: of 10^6 texts two agree with p = 3e-8
        self._asked: set[int] = set()
        self._seen: set[int] = set()

    @property
    def digest(self) -> str:
        """In hexadecimal."""
        return self._content.hexdigest()

    def add(self, place: str, record: Record) -> bool:
        """Take in one record; False when an earlier one is the same."""
        self.rows += 1
        self._content.update(json.dumps(as_row(record)).encode())
        question = hash(record.question)
        whole = hash((question, record.output))
        is_new = whole not in self._seen
        if not is_new:
            self.findings.add("duplicate", place)
        elif question in self._asked:
            self.findings.add("asked-again", place)
        self._questions.append(question)
        self._asked.add(question)
        self._seen.add(whole)
        return is_new

    def note_overlap(self, held_out: Iterable[int]) -> None:
        """Count the rows that are held out, by index, and asked among the other rows too."""
        chosen = sorted(held_out)
        out = frozenset(chosen)
        trained = {asked for i, asked in enumerate(self._questions) if i not in out}
        for i in chosen:
            if self._questions[i] in trained:
                self.findings.add("held-out-trains", f"row {i + 1}")

    def note_overlap_with(self, held_out: "Survey") -> None:
        """Count the rows of a held-out set that are asked here too."""
        for i, question in enumerate(held_out._questions):
            if question in self._asked:
                self.findings.add("held-out-trains", f"held-out row {i + 1}")
