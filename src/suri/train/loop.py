"""The training loop: one step after the other, evaluated, saved and recorded as it goes."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from suri.data.batch import Batch, learned_in
from suri.data.examples import Example
from suri.errors import Diverged, DoesNotFit, Preempted, SuriError
from suri.files import append_json_line
from suri.model.adapter import Adapter
from suri.model.adapter_file import write_adapter
from suri.train.checkpoint import Progress, find_checkpoint, load_checkpoint, save_checkpoint
from suri.train.distributed import ALONE, Ranks, is_rank
from suri.train.engine import Engine
from suri.train.interrupts import stop_requests
from suri.train.machine import peak_memory_bytes
from suri.train.optimizer import (
    clip_gradients,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)
from suri.train.passes import Work, as_many, attempt, is_asked
from suri.train.plan import batches_of
from suri.train.prepare import Prepared
from suri.train.run_folder import METRICS, forget_after, goes_on
from suri.train.spikes import Spikes

MOST_SKIPPED = 10
"""Steps left out in a run, with on_divergence skip; the next one stops it."""
SMALLEST_RATE = 1 / 64
"""What the learning rate is halved down to, with on_divergence back."""
Listener = Callable[[str, dict[str, Any]], None]
"""Told what happens: `note`, `start`, `batch`, `step`, `evaluation`, with the numbers of each."""


@dataclass
class Run:
    """One training in progress."""

    made: Prepared
    folder: Path
    engine: Engine
    sample: Callable[[], list[dict[str, str]]]
    listen: Listener
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        self.recipe, self.plan = self.made.recipe, self.made.plan
        self.train, self.held_out = self.made.encoded.examples, self.made.held_out.examples
        self.optimizer = make_optimizer(
            self.recipe, self.engine.parameters, self.engine.b_parameters
        )
        self.progress = Progress()
        self.spikes = Spikes()
        self.began = time.perf_counter()
        self.earlier_seconds = 0.0  # that processes before this one trained

    def train_all(self) -> Progress:
        """Run every step that is left; returns where the run stands at its end."""
        self._restore()
        self.listen("start", {"steps": self.plan.steps, "step": self.progress.step})
        # A launcher may pass on what the system sends to all, so that it comes twice.
        with stop_requests(insistent=not is_rank()) as stop:
            self.earlier_seconds = self.progress.seconds
            self.began = time.perf_counter() - self.earlier_seconds
            self._evaluate_if_due(stop)
            while self.progress.step < self.plan.steps and not self._has_stalled():
                step = self.progress.step + 1
                metrics = self._step(step, stop)
                if metrics is None:
                    continue
                self._record(metrics)
                if "train/loss" in metrics:
                    self.listen("step", metrics)
                self._evaluate_if_due(stop)
                if step % self.plan.save_steps == 0 or step == self.plan.steps:
                    self._save()
        return self.progress

    def _step(self, step: int, stop: threading.Event) -> dict[str, Any] | None:
        """One optimizer step over `batch_size` rows, however many micro-batches that takes.

        None where its loss or gradient was no number and the run went back to an earlier state.
        """
        started = time.perf_counter()
        examples = [self.train[i] for i in self.plan.examples(step)]
        learned = learned_in(examples)  # weigh tokens, not batches
        loss, parts = self._together(
            examples, lambda batches: self._add_up_gradients(step, batches, learned, stop)
        )
        self.ranks.add_up(self.engine.parameters)
        norm = clip_gradients(self.engine.parameters, self.recipe.max_grad_norm)
        is_number = math.isfinite(loss) and math.isfinite(norm)
        if not is_number and self._meet_no_number(step, loss, norm):
            return None
        rate = learning_rate(self.recipe, step, self.plan.steps) * self.progress.rate_scale
        set_learning_rate(self.optimizer, rate)
        if is_number:
            if spike := self.spikes.seen(step, loss):
                self._note(spike)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        tokens = sum(len(example.ids) for example in examples)
        now = time.perf_counter()
        progress = self.progress
        progress.step, progress.seconds = step, now - self.began
        progress.step_seconds += now - started
        progress.tokens += tokens
        progress.learned_tokens += learned
        progress.micro_batches += parts
        moment = {"step": step, "seconds": round(progress.seconds, 3)}
        if not is_number:
            return moment | {"train/skipped": 1}
        return moment | {
            "train/loss": loss,
            "train/learning_rate": rate,
            "train/grad_norm": norm,
            "train/learned_tokens": learned,
            "train/tokens_per_second": tokens / (now - started),
            "memory/peak_bytes": peak_memory_bytes(self.made.device),
        }

    def _add_up_gradients(
        self, step: int, batches: list[Batch], learned: int, stop: threading.Event
    ) -> float | None:
        """The batches' part of the step's loss; its gradient is left in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for number, batch in enumerate(batches, start=1):
            if is_asked(self.ranks, self.engine, stop):
                return None
            part = self.engine.loss(batch, step) / learned
            part.backward()
            losses.append(part.detach())
            self.listen("batch", {"step": step, "part": number, "parts": len(batches)})
        return sum(float(part) for part in losses)  # only now: reading one waits for the GPU

    def _together(self, examples: Sequence[Example], work: Work) -> tuple[float, int]:
        """What `work` gives for the examples' micro-batches in all processes, and their number.

        Where memory runs out, all of them are done again in smaller ones: the same result.
        """
        mine = self.ranks.share(examples)
        while True:
            batches = batches_of(self.recipe, mine, self.progress.token_budget)
            if self.engine.sharded:
                batches = as_many(self.ranks, batches, self.train)
            try:
                outcome = attempt(self.ranks, self.engine, batches, work)
            except DoesNotFit as problem:
                self._save_and_raise(problem)
            if outcome.left:
                step = f"stopped after step {self.progress.step} of {self.plan.steps}"
                do = f"suri train --resume --output_dir {self.folder}"
                self._save_and_raise(Preempted(f"{step}; the state is saved", do=do))
            if not outcome.smaller:
                return outcome.total, outcome.parts
            self._shrink(outcome.smaller)

    def _shrink(self, budget: int) -> None:
        """Smaller micro-batches from now on."""
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.token_budget = budget
        if self.made.device != "cpu":
            torch.cuda.empty_cache()
        text = f"memory ran out: micro-batches of up to {budget} tokens from now on"
        self._note(f"{text}, the same rows in every step")

    def _evaluate_if_due(self, stop: threading.Event) -> None:
        """Evaluate before the first step, every eval_steps and after the last, each once."""
        step = self.progress.step
        due = step % self.plan.eval_steps == 0 or step == self.plan.steps
        if due and self.held_out and self.progress.evaluated_step != step:
            self._evaluate(stop)

    def _has_stalled(self) -> bool:
        """Whether the evaluations since the best one are as many as the user's patience."""
        patience, progress = self.recipe.early_stopping_patience, self.progress
        since = (progress.evaluated_step - progress.best_step) // self.plan.eval_steps
        if not patience or progress.best_loss is None or since < patience:
            return False
        text = f"stopped after step {progress.step} of {self.plan.steps}: {since} evaluations since"
        self._note(f"{text} the lowest held-out loss, of step {progress.best_step}")
        return True

    def _evaluate(self, stop: threading.Event) -> None:
        """Held-out loss and a few answers to look at; the best trained adapter is kept."""

        def total_loss(batches: list[Batch]) -> float | None:
            losses = []
            for batch in batches:
                if is_asked(self.ranks, self.engine, stop):
                    return None
                with torch.no_grad():
                    losses.append(float(self.engine.loss(batch, None)))
            return sum(losses)

        total, _ = self._together(self.held_out, total_loss)
        loss = total / learned_in(self.held_out)
        progress, step = self.progress, self.progress.step
        progress.evaluated_step = step
        if step == 0:
            progress.base_loss = loss
        elif progress.best_loss is None or loss < progress.best_loss:
            progress.best_loss, progress.best_step = loss, step
            if self.ranks.first:
                (self.folder / "best").mkdir(exist_ok=True)
                write_adapter(self.folder / "best", self.engine.adapter())
        metrics = {
            "step": step,
            "seconds": round(time.perf_counter() - self.began, 3),
            "eval/loss": loss,
            "eval/perplexity": math.exp(min(loss, 700.0)),
            # Layers of a base that is cut are whole only where all processes meet in them.
            "eval/samples": self.sample() if self.ranks.first or self.engine.sharded else [],
        }
        self._record(metrics)
        self.listen("evaluation", metrics)

    def _record(self, metrics: dict[str, Any]) -> None:
        if self.ranks.first:
            append_json_line(self.folder / METRICS, metrics)

    def _note(self, text: str) -> None:
        self.listen("note", {"text": text})

    def _save(self) -> None:
        self.progress.seconds = time.perf_counter() - self.began
        state = self.folder, self.progress, self.engine.adapter(), self.optimizer
        self.ranks.from_first(lambda: save_checkpoint(*state))

    def _restore(self) -> None:
        """Go on from the newest whole checkpoint where that was asked for."""
        if goes_on(self.recipe):
            self._load(Path(self.recipe.resume_from_checkpoint or self.folder))
            self._note(f"going on after step {self.progress.step}")

    def _load(self, place: Path) -> None:
        """Take over a saved state: of a checkpoint, or of a run folder its newest."""

        def read() -> tuple[Progress, Adapter, dict[str, Any]]:
            checkpoint, passed_over = find_checkpoint(place)
            for text in passed_over:
                self._note(text)
            progress, adapter = load_checkpoint(checkpoint, self.optimizer)
            forget_after(self.folder / METRICS, progress.step)
            return progress, adapter, self.optimizer.state_dict()

        self.progress, adapter, moments = self.ranks.from_first(read)
        if not self.ranks.first:
            self.optimizer.load_state_dict(moments)
        self.engine.load(adapter)

    def _save_and_raise(self, problem: SuriError) -> NoReturn:
        """End the run in all processes, with what was learned so far saved."""
        self.optimizer.zero_grad(set_to_none=True)
        self._save()
        raise self.ranks.alike(problem)

    def _meet_no_number(self, step: int, loss: float, norm: float) -> bool:
        """A loss or gradient that is no number, met before the weights are touched.

        As `on_divergence` says: True after going back to the last saved state at half the rate,
        False where the step is left out; else, and where that happened too often, Diverged.
        """
        found = f"loss {loss}, gradient norm {norm}"
        rows = ", ".join(str(self.train[i].row + 1) for i in self.plan.examples(step))
        policy, saved = self.recipe.on_divergence, self.folder / "checkpoints"
        self.optimizer.zero_grad(set_to_none=True)
        if policy == "skip" and self.progress.skipped < MOST_SKIPPED:
            self.progress.skipped += 1
            text = f"step {step} left out ({found}; rows {rows})"
            self._note(f"{text}: {self.progress.skipped} so far")
            return False
        halved = self.progress.rate_scale / 2
        has_saved = self.ranks.from_first(lambda: any(saved.glob("step-*")))
        if policy == "back" and halved > SMALLEST_RATE and has_saved:
            self._load(self.folder)
            self.progress.rate_scale = halved
            text = f"step {step} was no number ({found}; rows {rows}): back to step"
            self._note(f"{text} {self.progress.step}, learning rate halved")
            return True
        problem = Diverged(
            f"the loss stopped being a number in step {step}; the adapter is as after step "
            f"{self.progress.step}",
            found=found,
            do=f"lower --learning_rate, or --on_divergence skip; and look at these rows: {rows}",
        )
        self._save_and_raise(problem)
