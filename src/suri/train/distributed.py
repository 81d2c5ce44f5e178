"""One run over several processes: who takes which rows, and what they tell one another."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from suri.data.batch import rank_share
from suri.data.examples import Example
from suri.errors import Lost, SuriError, UsageError
from suri.model.decoder import Layer
from suri.model.load import choose_device

PATIENCE = timedelta(minutes=20)
"""How long a process waits for the others: the first may have a million rows to encode meanwhile.
One that has ended is noticed at once; this is for one that hangs."""
RESTARTS = "TORCHELASTIC_RESTART_COUNT"
Made = TypeVar("Made")


class Ranks:
    """The processes of one run and this one's place among them; one alone tells nobody anything.

    Every method that exchanges something is called by all of them, in the same order.
    """

    def __init__(self, rank: int = 0, count: int = 1, on_this_machine: int = 1) -> None:
        self.rank, self.count, self.on_this_machine = rank, count, on_this_machine

    @property
    def first(self) -> bool:
        """Whether this is the one that writes, prints and samples."""
        return self.rank == 0

    def sentence(self, *, sharded: bool) -> str:
        """What a person should know of them."""
        how = "each holding a share of the base" if sharded else "each holding the whole base"
        return f"{self.count} processes share the rows of every step, {how}"

    def share(self, examples: Sequence[Example]) -> list[Example]:
        """The part of some examples that is this process's; about as many tokens as anyone's."""
        places = rank_share([len(e.ids) for e in examples], self.rank, self.count)
        return [examples[place] for place in places]

    def sum(self, *numbers: float) -> list[float]:
        """The sum of each number over all processes."""
        return self._joined(numbers, "SUM")

    def most(self, *numbers: float) -> list[float]:
        """The largest of each number."""
        return self._joined(numbers, "MAX")

    def _joined(self, numbers: Sequence[float], how: str) -> list[float]:
        if self.count == 1:
            return list(numbers)
        told = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(told, getattr(torch.distributed.ReduceOp, how))
        return cast(list[float], told.tolist())

    def add_up(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum every parameter's gradient over all processes, in one exchange of all of them."""
        if self.count == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        torch.distributed.all_reduce(flat)
        parts = flat.split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def from_first(self, work: Callable[[], Made]) -> Made:
        """What `work` gives the first process, on all of them; or the error that it met there."""
        if self.count == 1:
            return work()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = work()
            except (SuriError, OSError) as problem:
                told[1] = problem
        torch.distributed.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise self.alike(told[1])
        return cast(Made, told[0])

    def in_turn(self, work: Callable[[], Made]) -> Made:
        """`work` done by each, by the first before the others: they find what it left on disk."""
        made: list[Made] = []
        self.from_first(lambda: made.append(work()))
        return made[0] if made else work()

    def alike(self, problem: Exception) -> Exception:
        """An error that all of them raise; the first one says it."""
        if isinstance(problem, SuriError):
            problem.told = not self.first
            return problem
        if self.first:
            return problem
        lost = Lost(str(problem))
        lost.told = True
        return lost


ALONE = Ranks()


def is_rank() -> bool:
    """Whether a launcher (ours, torchrun, SLURM's with its variables) started this process."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))


def is_first() -> bool:
    """Whether this process is the one of its run that speaks."""
    return not is_rank() or int(os.environ["RANK"]) == 0


def was_restarted() -> bool:
    """Whether the launcher has started its processes again after one of them failed."""
    return int(os.environ.get(RESTARTS, "0")) > 0


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Meet the other processes of the run; `device` as in a recipe. Alone where there are none.

    Raises Lost where one of them ends in the middle, which its own message explains.
    """
    if not is_rank() or (count := int(os.environ["WORLD_SIZE"])) == 1:
        yield ALONE
        return
    rank, place = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    backend = "gloo"
    if choose_device(device) == "cuda":
        if place >= torch.cuda.device_count():
            raise UsageError(
                f"process {place + 1} of this machine has no GPU",
                found=f"{torch.cuda.device_count()} GPUs",
                do="start as many as there are GPUs",
            )
        torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl"
    try:
        torch.distributed.init_process_group(
            backend, timeout=PATIENCE, store=_store(), rank=rank, world_size=count
        )
        yield Ranks(rank, count, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        torch.distributed.destroy_process_group()
    except BaseException as problem:
        # The launcher ends all as soon as one has ended; this one still has something to say.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if isinstance(problem, SuriError):
            # All of them end now; gloo's threads, left as they are, may abort at the very end.
            torch.distributed.destroy_process_group()
        if not _is_of_the_others(problem):
            raise
        lost = Lost(f"process {rank} has lost the others", found=str(problem).splitlines()[0])
        lost.told = True
        raise lost from problem


def _store() -> Any:
    """Where the processes find one another's addresses.

    torch's launcher keeps one store while it starts the processes of a machine again, and takes
    the addresses of the dead for those of the living (pytorch/pytorch#135712); so every start has
    names of its own. Launchers of several machines each count for themselves: they are told to
    open a new store every time, see docs/scaling.md.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return PrefixStore(os.environ.get(RESTARTS, "0"), store) if alone else store


def _is_of_the_others(problem: BaseException) -> bool:
    """Whether an error comes from the connection; gloo's have no type of their own."""
    if isinstance(problem, torch.distributed.DistError):
        return True
    return type(problem) is RuntimeError and "gloo" in str(problem)


def sharder(device: str) -> Callable[[Layer], None]:
    """What cuts the frozen weights of a layer over all processes, by FSDP2.

    A layer's weights are whole only while it computes, forward and backward. Scales, norms and
    the low-rank pairs, which are put in later, stay whole everywhere.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))

    def shard(layer: Layer) -> None:
        for linear in (layer.qkv, layer.o, layer.gate_up, layer.down):
            storage = cast(nn.Module, linear.base)
            for name, weight in list(storage.named_buffers(recurse=False)):
                if name.startswith("weight"):  # FSDP2 knows parameters alone
                    _as_parameter(storage, name, weight)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)

    return shard


def _as_parameter(storage: nn.Module, name: str, weight: Tensor) -> None:
    delattr(storage, name)
    storage.register_parameter(name, nn.Parameter(weight, requires_grad=False))
