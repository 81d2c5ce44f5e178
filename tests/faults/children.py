"""Children forked from the loaded test process, on one thread: real processes, real kills."""

import os
import signal
import time
import warnings
from collections.abc import Callable

import torch

from suri.errors import SuriError
from suri.train.run import train


def start(work: Callable[[], object], fault: str = "") -> int:
    """The pid of a child that does the work and exits as the command line would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside other threads
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ["SURI_FAULT"] = fault
        torch.set_num_threads(1)
        work()
        code = 0
    except SuriError as problem:
        code = problem.exit_code
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """The exit code, or minus the number of the signal that ended the child."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def run(recipe, fault: str = "", listen: Callable = lambda *_: None) -> int:
    """Train in a child; its exit code or minus its signal."""
    return wait(start(lambda: train(recipe, listen, lambda *_: []), fault))


def kill_after(pid: int, seconds: float) -> int:
    """Kill a child after a time, unless it has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return wait(pid)
