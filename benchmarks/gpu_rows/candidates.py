"""The candidates: the same result as the plain path, then the time of a whole step."""

import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpu_rows import nf4
from gpu_rows.bench import Bench, NotHere
from gpu_rows.model import CHECKED_LAYERS, batches, make_decoder, stored_as
from gpu_rows.rates import random, shapes, tokens_of
from gpu_rows.swaps import Elementwise, compare, swapped
from gpu_rows.training import Trainer, budgets, timed_step
from suri.data.batch import Batch
from suri.model.fp8 import CAPABILITY, Fp8
from suri.model.storage import Dense

SAME_BOUND = 0.1
"""Gradients of the same maths, rounded to bf16 in other places, through all checked layers."""


def _case(bench: Bench) -> tuple[Trainer, Trainer, list[Batch]]:
    """The model, a shallow one to compare, and one micro-batch; both ways take turns on them."""
    shallow = Trainer(make_decoder(bench, layers=CHECKED_LAYERS))
    return Trainer(make_decoder(bench)), shallow, batches(bench, budgets(bench)[0])


Outcome = tuple[Tensor, Tensor]


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


def _against_plain(bench: Bench, name: str, plain: float, trainer: Trainer, cut: Any) -> None:
    """Time of the first step, which compiles what is left to compile, and of the later ones."""
    began = time.perf_counter()
    trainer.step(cut)
    bench.wait()
    bench.figure(f"{name}: first step", [time.perf_counter() - began], "s")
    seconds = timed_step(bench, trainer, cut, name)
    bench.figure(f"{name}: speed of the plain step", [plain / seconds], "x")


def _elementwise(bench: Bench, name: str, way: Elementwise) -> None:
    trainer, shallow, cut = _case(bench)
    config = trainer.decoder.config
    heads = config.num_heads + config.num_kv_heads
    began = time.perf_counter()
    compare(
        bench, name, way, (config.hidden_size, config.intermediate_size, heads, config.head_dim)
    )
    bench.figure(f"{name}: checks and compilation", [time.perf_counter() - began], "s")
    plain = timed_step(bench, trainer, cut, f"plain, beside {name}")
    wanted = _outcome(shallow, cut[0])
    with swapped(way):
        _same(bench, name, _outcome(shallow, cut[0]), wanted)
        _against_plain(bench, name, plain, trainer, cut)


def triton_elementwise(bench: Bench) -> None:
    """Norm, SwiGLU and rotary as Triton kernels; nf4 unpacked by one."""
    if importlib.util.find_spec("triton") is None:
        raise NotHere("triton is not installed")
    if not _triton_runs(bench):
        raise NotHere("Triton's kernels need a CUDA device, or TRITON_INTERPRET=1")
    from candidates import triton_kernels as kernels

    looked = nf4.Looked([random(bench, *shapes(bench)["gate_up"])])
    unpacked = kernels.unpack_nf4(
        looked.packed, looked.scale, looked.levels, looked.shape, looked.dtype
    )
    bench.check("Triton: nf4 unpacked", unpacked, looked.dense(), 1e-2)
    way = Elementwise(
        kernels.norm, kernels.norm_pullback, kernels.swiglu, kernels.swiglu_pullback, kernels.turn
    )
    _elementwise(bench, "Triton", way)


def _triton_runs(bench: Bench) -> bool:
    found = importlib.util.find_spec("triton") is not None
    return found and (bench.cuda or os.environ.get("TRITON_INTERPRET") == "1")


def compiled_elementwise(bench: Bench) -> None:
    """The same functions in plain torch, each compiled; eager where there is no CUDA device."""
    from candidates import compiled

    way = Elementwise(*compiled.elementwise("inductor" if bench.cuda else "eager"))
    _elementwise(bench, "compiled elementwise", way)


def compiled_layer(bench: Bench) -> None:
    """One function for a whole layer, compiled once and used by all of them."""
    from candidates import compiled

    trainer, shallow, cut = _case(bench)
    plain = timed_step(bench, trainer, cut, "plain, beside compiled layer")
    function = compiled.layer_function("inductor" if bench.cuda else "eager")

    class Compiled(Trainer):
        def loss(self, batch: Batch) -> Any:
            return compiled.summed_loss(self.decoder, batch, function)

    other = Compiled(trainer.decoder)
    began = time.perf_counter()
    _outcome(other, cut[0])
    bench.wait()
    bench.figure("compiled layer: compilation", [time.perf_counter() - began], "s",
                 "until the first gradients")  # fmt: skip
    found = _outcome(Compiled(shallow.decoder), cut[0])
    _same(bench, "compiled layer", found, _outcome(shallow, cut[0]))
    _against_plain(bench, "compiled layer", plain, other, cut)
    other_cut = batches(bench, budgets(bench)[0], 2)[1:]
    began = time.perf_counter()
    _outcome(other, other_cut[0])
    bench.wait()
    bench.figure("compiled layer: a batch of another size", [time.perf_counter() - began], "s")


def fp8(bench: Bench) -> None:
    """The frozen products in fp8, forward and pullback."""
    if bench.cuda and torch.cuda.get_device_capability() < CAPABILITY:
        raise NotHere("products in fp8 need compute capability 8.9")
    note = "" if bench.cuda else "fp8 numbers multiplied in fp32 as stand-in"
    _storage(bench, "fp8", Fp8, 6e-2, note)


def int8(bench: Bench) -> None:
    """The frozen products in int8, forward and pullback."""
    from candidates.int8 import Int8Torch, Int8Triton

    _storage(bench, "int8, scaled by torch", Int8Torch, 3e-2, "")
    if not _triton_runs(bench):
        bench.note("int8, scaled by Triton", "needs triton and a CUDA device")
        return
    bench.free()
    _storage(bench, "int8, scaled by Triton", Int8Triton, 3e-2, "")


def _storage(bench: Bench, name: str, make: Callable, bound: float, note: str) -> None:
    """`bound`: of one product."""
    trainer, shallow, cut = _case(bench)
    for kind, (out, into) in shapes(bench).items():
        weight = 0.02 * random(bench, out, into)
        tokens = tokens_of(bench) // 2
        x, g = random(bench, tokens, into), random(bench, tokens, out)
        found, plain = make([weight]), Dense([weight])
        bench.check(f"{name}: {kind}", found.product(x), plain.product(x), bound, note)
        bench.check(f"{name}: {kind}, pullback", found.pullback(g), plain.pullback(g), bound)
    plain_seconds = timed_step(bench, trainer, cut, f"plain, beside {name}")
    wanted = _outcome(shallow, cut[0])
    with stored_as(shallow.decoder, make):
        _same(bench, name, _outcome(shallow, cut[0]), wanted, None)
    began = time.perf_counter()
    with stored_as(trainer.decoder, make):
        bench.wait()
        bench.figure(f"{name}: quantising the weights", [time.perf_counter() - began], "s")
        _against_plain(bench, name, plain_seconds, trainer, cut)
