"""Fifty clients at once for a minute: who is answered, how fast, whether rightly, in what memory.

python benchmarks/serving.py [OUT.json]     (default: benchmarks/results/serving.json)

Clients ask one after the other question, greedy and sampled, streamed and not; some leave in the
middle; the line has fewer places than there are clients, so some are told to wait.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import openai

from suri.train.machine import environment

RESULTS = Path(__file__).parent / "results" / "serving.json"
CLIENTS, SECONDS, PLACES, TOKENS = 50, 60.0, 40, 32
QUESTIONS = [
    f"Name {n} things that are {c}." for n in range(2, 7) for c in ("red", "cold", "round")
]
LEAVES = 7
"""Each so many-th question of a client is left after its first piece."""


def ask(client: openai.OpenAI, number: int, *, stream: bool, leave: bool = False) -> str | None:
    """One question: the even ones greedy, the odd ones sampled; None where the client left."""
    settings: dict[str, Any] = {"temperature": 0} if number % 2 == 0 else {"temperature": 0.8}
    asked: dict[str, Any] = {
        "model": "embedded",
        "messages": [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}],
        "max_tokens": TOKENS,
        "seed": number % len(QUESTIONS),
    } | settings
    if not stream:
        return client.chat.completions.create(**asked).choices[0].message.content
    text = ""
    with client.chat.completions.create(**asked, stream=True) as pieces:
        for piece in pieces:
            text += piece.choices[0].delta.content or ""
            if leave and text:
                return None
    return text


class Client:
    """Asks until time is up, and notes what came of each question."""

    def __init__(self, address: str, number: int, right: list[str]) -> None:
        self.number, self.right = number, right
        self.api = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        self.outcomes: Counter[str] = Counter()
        self.seconds: list[float] = []

    def run(self, until: float) -> None:
        """Ask one question after the other."""
        asked = 0
        while time.monotonic() < until:
            asked += 1
            self._one(self.number * 7 + asked, leave=asked % LEAVES == 0)

    def _one(self, number: int, *, leave: bool) -> None:
        started = time.monotonic()
        try:
            text = ask(self.api, number, stream=number % 3 == 0 or leave, leave=leave)
        except openai.RateLimitError as refusal:
            self.outcomes["429"] += 1
            time.sleep(float(refusal.response.headers["Retry-After"]))
        except openai.OpenAIError as problem:
            self.outcomes[type(problem).__name__] += 1
        else:
            if text is None:
                self.outcomes["left"] += 1
                return
            own = self.right[number % len(self.right)]
            self.outcomes["right" if text == own else "wrong"] += 1
            self.seconds.append(time.monotonic() - started)


def resident(pid: int) -> int:
    """Bytes of memory that the server holds."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]


def load(address: str, pid: int) -> dict[str, Any]:
    """What a minute of many clients gives."""
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        count = 2 * len(QUESTIONS)  # each question greedy and sampled
        right = [str(ask(client, number, stream=False)) for number in range(count)]
    memory: list[int] = []
    until = time.monotonic() + SECONDS
    clients = [Client(address, number, right) for number in range(CLIENTS)]

    def watch() -> None:
        while time.monotonic() < until:
            memory.append(resident(pid))
            time.sleep(1)

    watcher = Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda each: each.run(until), clients))
    watcher.join()
    took = sorted(second for client in clients for second in client.seconds)
    total: Counter[str] = sum((client.outcomes for client in clients), Counter())
    third = len(memory) // 3
    return {
        "outcomes": dict(total),
        "clients_never_answered": sum(not client.seconds for client in clients),
        "seconds_median": statistics.median(took),
        "seconds_95th": took[int(0.95 * len(took))],
        "answers_per_second": len(took) / SECONDS,
        "memory_bytes": {
            "second_third": statistics.median(memory[third : 2 * third]),
            "last_third": statistics.median(memory[2 * third :]),
            "most": max(memory),
        },
    }


def main() -> None:
    """Start a server, load it, and write what was found."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    words = ["-m", "suri", "serve", "--port", "0", "--queue", str(PLACES)]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen([sys.executable, *words], stdout=log, stderr=subprocess.STDOUT)
        try:
            address = _address(server, log)
            found = load(address, server.pid)
            assert server.poll() is None
        finally:
            server.terminate()
            server.wait()
    asked = {"clients": CLIENTS, "seconds": SECONDS, "places": PLACES, "tokens": TOKENS}
    result = {"command": "python benchmarks/serving.py", **asked, **found}
    result["environment"] = environment("cpu")
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def _address(server: "subprocess.Popen[bytes]", log: Any) -> str:
    while server.poll() is None:
        log.seek(0)
        if found := re.search(r"answers at (http://\S+)", log.read()):
            return found[1]
        time.sleep(0.2)
    raise SystemExit("the server did not start")


if __name__ == "__main__":
    main()
