"""The Triton kernels and the products in fp8: as the plain way, then the time of a whole step."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gpu_rows.bench import Bench, NotHere
from gpu_rows.model import CHECKED_LAYERS, batches, make_decoder, stored_as
from gpu_rows.rates import random, shapes, tokens_of
from gpu_rows.training import Trainer, budgets, timed_step
from suri.data.batch import Batch
from suri.model import elementwise as functions
from suri.model.elementwise import Norm, SwiGLU, rotate
from suri.model.fp8 import CAPABILITY, Fp8
from suri.model.storage import Dense

SAME_BOUND = 0.1
"""Gradients of the same maths, rounded to bf16 in other places, through all checked layers."""

Outcome = tuple[Tensor, Tensor]


@contextmanager
def plain() -> Iterator[None]:
    """Let the decoder compute in plain torch for a while."""
    before, functions.on_gpu = functions.on_gpu, lambda _: None
    try:
        yield
    finally:
        functions.on_gpu = before


def elementwise(bench: Bench) -> None:
    """Norm, SwiGLU and rotation by the kernels, and by plain torch."""
    if not functions.on_gpu(random(bench, 1, 16)):
        raise NotHere("the kernels need a CUDA device, Triton and a C compiler")
    for what, work in _functions(bench).items():
        found = work(torch.bfloat16)
        with plain():
            bench.check(f"kernel: {what}", found, work(torch.float32), 1e-2)
            seconds = bench.times(lambda work=work: [work(torch.bfloat16) for _ in range(10)])
            bench.figure(f"plain: {what}", [1e5 * t for t in seconds], "us")
        seconds = bench.times(lambda work=work: [work(torch.bfloat16) for _ in range(10)])
        bench.figure(f"kernel: {what}", [1e5 * t for t in seconds], "us")
    trainer, shallow, cut = _case(bench)
    found = _outcome(shallow, cut[0])
    with plain():
        _same(bench, "kernels", found, _outcome(shallow, cut[0]))
        slow = timed_step(bench, trainer, cut, "own LoRA, elementwise in plain torch")
    fast = timed_step(bench, trainer, cut, "own LoRA, elementwise by the kernels")
    bench.figure("kernels: speed of the plain step", [slow / fast], "x")


def _functions(bench: Bench) -> dict[str, Callable[[torch.dtype], Tensor]]:
    """Each as a function of the dtype that it computes in, on the same bf16 numbers."""
    config = batches_config(bench)
    tokens, hidden, inner = tokens_of(bench), config.hidden_size, config.intermediate_size
    x, g, weight = (random(bench, *shape) for shape in ((tokens, hidden),) * 2 + ((hidden,),))
    wide, narrow = random(bench, tokens, 2 * inner), random(bench, tokens, inner)
    heads, size = config.num_heads, config.head_dim
    turning = random(bench, tokens, 3 * heads * size)
    angles = torch.rand(tokens, 1, size // 2, device=bench.device) * 6

    def turned(dtype: torch.dtype) -> Tensor:
        # In place: again and again in bf16, once in fp32.
        given = turning if dtype == turning.dtype else start.to(dtype)
        return rotate(given, (angles.cos().to(dtype), angles.sin().to(dtype)), 2 * heads)

    start = turning.clone()
    return {
        "norm": lambda d: Norm(weight.to(d), 1e-5).value(x.to(d)),
        "norm, gradient": lambda d: Norm(weight.to(d), 1e-5).pullback(x.to(d), g.to(d)),
        "SwiGLU": lambda d: SwiGLU().value(wide.to(d)),
        "SwiGLU, gradient": lambda d: SwiGLU().pullback(wide.to(d), narrow.to(d)),
        "rotation": turned,
    }


def batches_config(bench: Bench) -> Any:
    """The configuration of the model that is measured."""
    return bench.keep("config", lambda: make_decoder(bench, layers=1).config)


def fp8(bench: Bench) -> None:
    """The frozen products in fp8, forward and pullback."""
    if bench.cuda and torch.cuda.get_device_capability() < CAPABILITY:
        raise NotHere("products in fp8 need compute capability 8.9")
    note = "" if bench.cuda else "fp8 numbers multiplied in fp32 as stand-in"
    trainer, shallow, cut = _case(bench)
    for kind, (out, into) in shapes(bench).items():
        weight = 0.02 * random(bench, out, into)
        tokens = tokens_of(bench) // 2
        x, g = random(bench, tokens, into), random(bench, tokens, out)
        found, exact = Fp8([weight]), Dense([weight])
        bench.check(f"fp8: {kind}", found.product(x), exact.product(x), 6e-2, note)
        bench.check(f"fp8: {kind}, pullback", found.pullback(g), exact.pullback(g), 6e-2)
    slow = timed_step(bench, trainer, cut, "own LoRA, beside fp8")
    wanted = _outcome(shallow, cut[0])
    with stored_as(shallow.decoder, Fp8):
        _same(bench, "fp8", _outcome(shallow, cut[0]), wanted, None)
    began = time.perf_counter()
    with stored_as(trainer.decoder, Fp8):
        bench.wait()
        bench.figure("fp8: quantising the weights", [time.perf_counter() - began], "s")
        fast = timed_step(bench, trainer, cut, "own LoRA in fp8")
    bench.figure("fp8: speed of the bf16 step", [slow / fast], "x")


def _case(bench: Bench) -> tuple[Trainer, Trainer, list[Batch]]:
    """The model, a shallow one to compare, and one micro-batch; both ways take turns on them."""
    shallow = Trainer(make_decoder(bench, layers=CHECKED_LAYERS))
    return Trainer(make_decoder(bench)), shallow, batches(bench, budgets(bench)[0])


def _outcome(trainer: Trainer, batch: Batch) -> Outcome:
    """The loss [1] and all gradients [n] of a micro-batch."""
    loss = trainer.loss(batch) / batch.learned_tokens
    found = torch.autograd.grad(loss, trainer.parameters)
    return loss.detach()[None], torch.cat([gradient.flatten() for gradient in found])


def _same(
    bench: Bench, name: str, found: Outcome, wanted: Outcome, bound: float | None = SAME_BOUND
) -> None:
    """Without a bound of the gradients, for coarser numbers, the loss has a wider one."""
    what = f"of {CHECKED_LAYERS} layers"
    bench.check(f"{name}: loss {what}", found[0], wanted[0], 1e-2 if bound else 3e-2)
    if bound:
        bench.check(f"{name}: gradients {what}", found[1], wanted[1], bound)
        return
    difference = (found[1] - wanted[1]).norm() / wanted[1].norm()
    bench.figure(f"{name}: difference of the gradients {what}", [100 * float(difference)], "%",
                 "random weights: says nothing of real ones")  # fmt: skip
