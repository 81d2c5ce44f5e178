"""What the API counts, as Prometheus reads it."""

from collections import Counter
from threading import Lock

KINDS = {
    "suri_requests_total": ("counter", "Requests answered, by status."),
    "suri_request_seconds_sum": ("counter", "Seconds from each request to the end of its answer."),
    "suri_request_seconds_count": ("counter", "Requests that those seconds are of."),
    "suri_clients_left_total": ("counter", "Clients that took none of their answer for a minute."),
    "suri_prompt_tokens_total": ("counter", "Tokens of prompts that were read."),
    "suri_completion_tokens_total": ("counter", "Tokens written."),
    "suri_generation_seconds_total": ("counter", "Seconds in which the model was at work."),
    "suri_passes_total": ("counter", "Passes through the model; all who are answered share each."),
    "suri_queue_length": ("gauge", "Requests that wait for the model."),
    "suri_running": ("gauge", "Requests that the model is answering."),
}


class Metrics:
    """Numbers by name and label; any thread may add to them."""

    def __init__(self) -> None:
        self.numbers: Counter[tuple[str, str]] = Counter({(name, ""): 0 for name in KINDS})
        del self.numbers["suri_requests_total", ""]
        self.lock = Lock()

    def add(self, name: str, amount: float = 1, label: str = "") -> None:
        """Add to a counter; the label is written as Prometheus does, status="200" say."""
        with self.lock:
            self.numbers[name, label] += amount  # type: ignore[assignment]

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        with self.lock:
            self.numbers[name, ""] = value  # type: ignore[assignment]

    def text(self) -> str:
        """All numbers in Prometheus' text format."""
        with self.lock:
            numbers = dict(self.numbers)
        lines = []
        for kind, (form, what) in KINDS.items():
            lines += [f"# HELP {kind} {what}", f"# TYPE {kind} {form}"]
            lines += [
                f"{name}{{{label}}} {value:.15g}" if label else f"{name} {value:.15g}"
                for (name, label), value in sorted(numbers.items())
                if name == kind
            ]
        return "\n".join(lines) + "\n"
