"""A real server process of `suri serve`, on loopback."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

PATIENCE_SECONDS = 120
OPENING = {
    "UVICORN_HOST": "0.0.0.0",
    "UVICORN_PORT": "1",
    "HOST": "0.0.0.0",
    "WEB_CONCURRENCY": "3",
    "FORWARDED_ALLOW_IPS": "*",
}
"""Variables by which servers like this one are opened to others."""


@contextmanager
def api_server(folder: Path, *words: str, page: bool = False, end: int = signal.SIGTERM):
    """A server as a user starts it: its address, its process and what it printed."""
    log = folder / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "suri", "serve", "--page", str(page), *words, "--port", "0"],
            env=os.environ | OPENING,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := re.search(r"answers at (http://\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)
        yield SimpleNamespace(address=found[1], process=process, log=log)
    finally:
        process.send_signal(end)
        process.wait()
    assert "Traceback" not in log.read_text()
