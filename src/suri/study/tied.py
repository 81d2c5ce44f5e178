"""Run a module as a program that ends with the process that started it: `tied PID MODULE ...`."""

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h: the signal that a process gets when the one that started it ends."""


def main(parent: int, module: str) -> None:
    """Be killed when `parent` ends, then run the module; other systems than Linux do not tie."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("whoever started this has ended")
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    asked_parent, asked_module = int(sys.argv[1]), sys.argv[2]
    del sys.argv[1:3]
    main(asked_parent, asked_module)
