"""Children forked from the loaded test process: real processes that start at once."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable

import torch

from suri.errors import SuriError


def start_child(work: Callable[[], object]) -> int:
    """The pid of a child that does the work on one thread and exits as the command line would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside other threads
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    except SuriError as problem:
        if not problem.told:
            print("error:", "\n".join(problem.lines()))
        code = problem.exit_code
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """The exit code, or minus the number of the signal that ended the child."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)
