"""Who holds a trial's folder on a shared disk, also when machines die or stand still."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from suri.locks import boot
from suri.study.claims import CLAIM, claimed, forget_lock, holder

QUICK = {"every": 0.05, "silent": 0.5}


def claim(place, **changes):
    """A claim as somebody else's process left it."""
    place.mkdir(exist_ok=True)
    who = {"host": socket.gethostname(), "boot": boot(), "pid": os.getpid(), "key": "theirs"}
    (place / CLAIM).write_text(json.dumps(who | changes))


def take(place, log, beat=lambda is_ours: None, hold=0.0):
    """Hold the folder for a while, noting when."""
    with claimed(place, beat, **QUICK):
        log.append(("begins", holder(place)["key"]))
        time.sleep(hold)
        log.append(("ends", holder(place).get("key")))


def test_who_holds_it_stands_there_while_it_is_held(tmp_path):
    log, beats = [], []
    take(tmp_path / "trial", log, beats.append, hold=0.4)
    assert log[0][1] == log[1][1]
    assert beats
    assert all(beats)
    assert not list((tmp_path / "trial").iterdir())


def test_two_never_hold_it_at_once(tmp_path):
    log = []
    threads = [
        threading.Thread(target=take, args=(tmp_path / "trial", log), kwargs={"hold": 0.15})
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [what for what, _ in log] == ["begins", "ends"] * 5
    assert len({key for _, key in log}) == 5


def test_a_killed_processs_claim_is_taken_at_once_and_a_living_ones_is_not(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    claim(tmp_path, pid=ended.pid)
    with claimed(tmp_path, lambda _: None, every=0.05, silent=1e9):
        pass
    claim(tmp_path, boot="another one")
    with claimed(tmp_path, lambda _: None, every=0.05, silent=1e9):
        pass
    claim(tmp_path)
    waiting = threading.Thread(target=take, args=(tmp_path, []), daemon=True)
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    (tmp_path / CLAIM).unlink()
    waiting.join(10)
    assert not waiting.is_alive()


def test_another_machines_claim_is_taken_when_it_is_silent_and_not_before(tmp_path):
    claim(tmp_path, host="elsewhere", beat=0)
    log = []
    waiting = threading.Thread(target=take, args=(tmp_path, log))
    waiting.start()
    for beat in range(1, 16):  # more than twice as long as silence may last
        time.sleep(0.08)
        claim(tmp_path, host="elsewhere", beat=beat)
    assert not log
    waiting.join(10)
    assert [what for what, _ in log] == ["begins", "ends"]


def test_who_stood_still_and_lost_its_claim_is_told_and_leaves_the_others_alone(tmp_path):
    beats = []
    with claimed(tmp_path, beats.append, **QUICK):
        claim(tmp_path, host="elsewhere")
        until = time.monotonic() + 10
        while False not in beats and time.monotonic() < until:
            time.sleep(0.02)
    assert beats[-1] is False
    assert holder(tmp_path)["host"] == "elsewhere"


@pytest.mark.parametrize(
    ("host", "stays"), [("elsewhere", False), (socket.gethostname(), True), ("", True)]
)
def test_only_another_machines_lock_is_forgotten(tmp_path, host, stays):
    (tmp_path / ".lock").write_text(json.dumps({"host": host}) if host else "")
    forget_lock(tmp_path)
    assert (tmp_path / ".lock").exists() == stays
