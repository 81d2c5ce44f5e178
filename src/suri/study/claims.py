"""A trial's folder, held by one process of a cluster: by file alone, as locks do not reach far."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from suri.errors import SuriError
from suri.files import LOCK, write_json
from suri.locks import boot
from suri.reading import read_object

CLAIM = "claim.json"
BEAT_SECONDS = 2.0
SILENT_SECONDS = 60.0
"""A claim of another machine that has not changed for so long belongs to nobody."""


@contextmanager
def claimed(
    place: Path,
    beat: Callable[[bool], None],
    *,
    every: float = BEAT_SECONDS,
    silent: float = SILENT_SECONDS,
) -> Iterator[None]:
    """Hold `place`, waiting until nobody else does; who holds it stands in claim.json.

    A claim is free when its process on this machine has ended, or when it has been silent for
    `silent` seconds. While it is held, `beat(is_ours)` is called every `every` seconds; `is_ours`
    is False once somebody took it over, as after a machine that stood still.
    """
    place.mkdir(parents=True, exist_ok=True)
    me = {"host": socket.gethostname(), "boot": boot(), "pid": os.getpid()}
    me["key"] = uuid.uuid4().hex
    _take(place / CLAIM, me, every, silent)
    done = threading.Event()

    def keep() -> None:
        count = 0
        while not done.wait(every):
            is_ours = holder(place).get("key") == me["key"]
            if is_ours:
                count += 1
                with suppress(OSError):  # a full disk, say, for a while
                    write_json(place / CLAIM, me | {"beat": count})
            beat(is_ours)

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        if holder(place).get("key") == me["key"]:
            (place / CLAIM).unlink(missing_ok=True)


def holder(place: Path) -> dict[str, Any]:
    """Who holds the folder: machine, process and beat; nothing where nobody does."""
    try:
        return read_object(place / CLAIM)
    except (SuriError, OSError):
        return {}


def forget_lock(run: Path) -> None:
    """Remove the lock file that another machine's run left; only for who holds the trial."""
    try:
        host = read_object(run / LOCK).get("host")
    except (SuriError, OSError):
        return  # none, or an empty one: its run ended by itself
    if host != socket.gethostname():
        (run / LOCK).unlink(missing_ok=True)


def _take(claim: Path, me: dict[str, Any], every: float, silent: float) -> None:
    """Make the claim ours; a hard link to it fails where it exists, also on network disks."""
    seen, since = holder(claim.parent), time.monotonic()
    own = claim.with_name(f".{CLAIM}.{me['key']}")
    write_json(own, me)
    try:
        while True:
            with suppress(FileExistsError):
                os.link(own, claim)
                return
            now = holder(claim.parent)
            if now != seen:
                seen, since = now, time.monotonic()
            if _has_ended(now) or time.monotonic() - since > silent:
                _put_aside(claim, now, own.with_suffix(".old"))
            else:
                time.sleep(min(every, 0.5))
    finally:
        own.unlink(missing_ok=True)


def _put_aside(claim: Path, judged: dict[str, Any], aside: Path) -> None:
    """Remove the claim that was judged, and no newer one of somebody who was quicker."""
    with suppress(FileNotFoundError):
        claim.rename(aside)
        if read_object(aside) != judged:
            with suppress(FileExistsError):
                os.link(aside, claim)
        aside.unlink()


def _has_ended(who: dict[str, Any]) -> bool:
    """Whether a claim's process ran on this machine and runs no more."""
    if who.get("host") != socket.gethostname():
        return False
    if who.get("boot") != boot():
        return True
    try:
        os.kill(int(who["pid"]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, KeyError, TypeError, ValueError):
        return False
    return False
