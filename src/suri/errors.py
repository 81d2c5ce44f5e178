"""What a user can get wrong: one message with the cause and the remedy, and one exit code each."""


class SuriError(Exception):
    """A mistake or a limit that a user can act on; the command line prints it without a traceback.

    `what` says what is wrong and where, `found` what was there instead, `do` what to do next.
    """

    exit_code = 2
    remedy = ""
    """What to do next where the message names nothing better."""
    told = False
    """Whether another process of the same run has said it."""

    def __init__(self, what: str, *, found: str = "", do: str = "") -> None:
        self.what, self.found, self.do = what, found, do or self.remedy
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """The message as the lines that a terminal shows."""
        lines = [self.what]
        if self.found:
            lines.append(f"  found: {self.found}")
        if self.do:
            lines.append(f"  do:    {self.do}")
        return lines

    @property
    def in_one_line(self) -> str:
        """The message where there is room for one line."""
        return " ".join(line.strip() for line in self.lines())


class UsageError(SuriError):
    """A flag, path or combination of settings that cannot work (exit 2)."""


class DataError(SuriError):
    """Rows that cannot be trained on; the message names file and record (exit 3)."""

    exit_code = 3


class DoesNotFit(SuriError):
    """Memory or disk is too small for what was asked (exit 4)."""

    exit_code = 4


class Diverged(SuriError):
    """The loss or a gradient stopped being a number; the weights were not touched (exit 5)."""

    exit_code = 5


class Corrupt(SuriError):
    """A file that is not what its format, name or checksum promises (exit 6)."""

    exit_code = 6
    remedy = "fetch it again from where it came, or make it again"


class Preempted(SuriError):
    """The run was stopped from outside after its state was saved; it can be resumed (exit 75)."""

    exit_code = 75


class Lost(SuriError):
    """Another process of the same run ended or does not answer (exit 1)."""

    exit_code = 1
