"""From tokens, as they come, to text that can be shown: whole characters, nothing after a stop."""

from collections.abc import Sequence

from suri.data.tokenizer import Tokenizer

HALF_A_CHARACTER = "\ufffd"
"""What decoding gives for bytes that are no whole character, yet."""


class Pieces:
    """The text of one answer, piece by piece; joined they are the answer's text.

    A piece is empty while a character of several tokens is incomplete, or while what was written
    may be the start of a stop string. Neither the first stop string nor what follows it is shown.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self.ids: list[int] = []
        self.text = ""
        """All that was shown."""
        self.stopped = False
        """A stop string was found."""

    def take(self, token: int) -> str:
        """The text that one more token makes certain."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        return "" if text.endswith(HALF_A_CHARACTER) else self._show(text, certain=False)

    def rest(self) -> str:
        """What was held back; the answer has ended."""
        return self._show(self.tokenizer.decode(self.ids), certain=True)

    def _show(self, text: str, *, certain: bool) -> str:
        if self.stopped:
            return ""
        # A stop string cannot begin in what was shown: its start would have been held back.
        places = [place for stop in self.stops if (place := text.find(stop, len(self.text))) >= 0]
        self.stopped = bool(places)
        end = min(places) if places else len(text) - (0 if certain else self._held_back(text))
        piece = text[len(self.text) : end]
        self.text += piece
        return piece

    def _held_back(self, text: str) -> int:
        """How many of the last characters may be the start of a stop string."""
        longest = max(map(len, self.stops), default=1) - 1
        return next(
            (
                count
                for count in range(min(longest, len(text) - len(self.text)), 0, -1)
                if any(stop.startswith(text[-count:]) for stop in self.stops)
            ),
            0,
        )
