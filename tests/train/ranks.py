"""Processes of one run, forked from the loaded test process: real ones, over real sockets."""

import os
import socket
from collections.abc import Callable
from functools import partial

from forked import start_child, wait


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def places(count: int) -> list[dict[str, str]]:
    """What a launcher tells each of `count` processes in its environment."""
    all_of_them = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    all_of_them |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count))
    return [all_of_them | dict.fromkeys(("RANK", "LOCAL_RANK"), str(k)) for k in range(count)]


def start_ranks(count: int, work: Callable[[int], object]) -> list[int]:
    """The pids of `count` processes that do `work(rank)` and exit as the command line would."""

    def as_rank(rank: int, place: dict[str, str]) -> None:
        os.environ.update(place)
        work(rank)

    return [start_child(partial(as_rank, k, place)) for k, place in enumerate(places(count))]


def codes(pids: list[int]) -> list[int]:
    """Exit codes, or minus the signals that ended them."""
    return [wait(pid) for pid in pids]


def run_ranks(count: int, work: Callable[[int], object]) -> list[int]:
    return codes(start_ranks(count, work))
