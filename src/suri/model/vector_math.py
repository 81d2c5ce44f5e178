"""Calls each of MKL's vector functions once on one thread, before many threads call it at once."""

import functools

import torch

FUNCTIONS = (torch.cos, torch.sin, torch.exp, torch.log, torch.sqrt, torch.tanh)


@functools.cache
def settle() -> None:
    """Make the elementwise functions of torch on a CPU exact from their first call on.

    MKL chooses a function's kernel in its first call; where several threads make that call at
    the same time, one may get a kernel of low precision, and its part of that one result is off
    by thousands of roundings. A call on one number is made by one thread.
    Source: github.com/pytorch/pytorch/issues/188792.
    """
    for function in FUNCTIONS:
        for dtype in (torch.float32, torch.float64):
            function(torch.ones(1, dtype=dtype))
