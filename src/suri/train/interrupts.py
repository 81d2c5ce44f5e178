"""Requests to stop, as signals bring them."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]
"""Ctrl-C, what a system sends before it stops, and what SLURM sends before time is up."""


@contextmanager
def stop_requests(*, insistent: bool = True) -> Iterator[threading.Event]:
    """One of SIGNALS sets the event once; a second one stops at once, where it is `insistent`."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: Any) -> None:  # noqa: ARG001 (the signal module's form)
        if stop.is_set() and insistent:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, request) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
