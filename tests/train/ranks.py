"""Processes of one run, forked from the loaded test process: real ones, over real sockets."""

import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable

import torch

from suri.errors import SuriError


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start_ranks(count: int, work: Callable[[int], object]) -> list[int]:
    """The pids of `count` processes that do `work(rank)` and exit as the command line would."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    pids = []
    for rank in range(count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside other threads
            pid = os.fork()
        if not pid:
            os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
            os.environ["LOCAL_WORLD_SIZE"] = str(count)
            _work(rank, work)
        pids.append(pid)
    return pids


def _work(rank: int, work: Callable[[int], object]) -> None:
    code = 1
    try:
        warnings.simplefilter("default")
        torch.set_num_threads(1)
        work(rank)
        code = 0
    except SuriError as problem:
        if not problem.told:
            print("error:", "\n".join(problem.lines()), flush=True)
        code = problem.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def codes(pids: list[int]) -> list[int]:
    """Exit codes, or minus the signals that ended them."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def run_ranks(count: int, work: Callable[[int], object]) -> list[int]:
    return codes(start_ranks(count, work))
