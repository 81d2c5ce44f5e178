"""`suri train`, and alpaca-lora's finetune.py: settings in, progress out."""

import sys
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.prompt import Confirm

from suri.cli.curve import loss_curve, room_of
from suri.cli.flags import parse_recipe
from suri.data.findings import shortened
from suri.recipe import ALPACA_LORA, GREEDY, Recipe, with_settings
from suri.wording import counted, readable_bytes

NOT_USED = ("--wandb_watch", "--wandb_log_model")


def run(argv: list[str]) -> None:
    """Parse `suri train` and train."""
    _train(parse_recipe(Recipe, argv, "suri train"), ["train", *argv])


def run_finetune(argv: list[str]) -> None:
    """Parse alpaca-lora's command, with its defaults, and train."""
    start = with_settings(Recipe(), ALPACA_LORA, "alpaca-lora's defaults")
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word.startswith(NOT_USED):
            next(words, None)
            print(f"note: {word} is not used; wandb gets the figures alone")
        else:
            kept.append(word)
    _train(parse_recipe(Recipe, kept, "finetune.py", start), ["finetune", *kept])


def _train(recipe: Recipe, words: list[str]) -> None:
    """Train here, or in several processes that are given the same `words`."""
    if recipe.wandb_project and not recipe.report_to:
        recipe = replace(recipe, report_to=("wandb",))
    from suri.infer.engine import DecoderEngine
    from suri.train.distributed import is_first, is_rank
    from suri.train.run import train
    from suri.train.run_folder import can_go_on, goes_on, run_folder_of

    decided = goes_on(recipe) or recipe.overwrite
    asks = not decided and not is_rank() and sys.stdin.isatty()
    if asks and can_go_on(folder := run_folder_of(recipe)):
        ask = f"{folder} holds a run that was stopped. Go on with it?"
        recipe = replace(recipe, resume=Confirm.ask(escape(ask), default=True))
        words = [*words, "--resume", str(recipe.resume)]
    if recipe.gpus > 1 and not is_rank():
        from suri.train.launch import launch

        launch(recipe, words)
        return

    def answer(decoder: Any, prompts: list[Any], eos_id: int, tokens: int) -> list[list[int]]:
        decoding = replace(GREEDY, max_new_tokens=tokens)
        engine = DecoderEngine(decoder)
        return [answer.ids for answer in engine.generate(prompts, eos_id, decoding)]

    if not is_first():
        train(recipe, lambda *_: None, answer)
        return
    screen = Screen()
    with screen.progress:
        result = train(recipe, screen.listen, answer)
    screen.finish(run_folder_of(recipe), result)


class Screen:
    """What a person sees while a model trains: a bar on a terminal, lines in a file."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self.live = self.console.is_terminal
        self.progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self.live,
        )
        self.steps = 1
        self.task: TaskID
        """From the event `start` on, which comes before all that move the bar."""
        self.losses: deque[float] = deque(maxlen=10)
        self.held_out = ""

    def listen(self, event: str, numbers: dict[str, Any]) -> None:
        """Show one event of the loop."""
        getattr(self, f"_{event}")(numbers)

    def _note(self, numbers: dict[str, Any]) -> None:
        self.console.print(escape(numbers["text"]))

    def _start(self, numbers: dict[str, Any]) -> None:
        self.steps = numbers["steps"]
        self.task = self.progress.add_task(
            "", total=self.steps, completed=numbers["step"], figures="first figures follow"
        )

    def _batch(self, numbers: dict[str, Any]) -> None:
        done = numbers["step"] - 1 + numbers["part"] / numbers["parts"]
        self.progress.update(self.task, completed=done)

    def _step(self, numbers: dict[str, Any]) -> None:
        self.losses.append(numbers["train/loss"])
        figures = (
            f"loss {numbers['train/loss']:.3f} (mean {sum(self.losses) / len(self.losses):.3f})"
            f"{self.held_out}  lr {numbers['train/learning_rate']:.1e}"
            f"  grad {numbers['train/grad_norm']:.2f}"
            f"  {numbers['train/tokens_per_second']:.0f} tok/s"
            f"  {readable_bytes(numbers['memory/peak_bytes'])}"
        )
        self.progress.update(self.task, completed=numbers["step"], figures=figures)
        if not self.live and numbers["step"] % max(1, self.steps // 20) == 0:
            left = numbers["seconds"] / numbers["step"] * (self.steps - numbers["step"])
            line = f"step {numbers['step']}/{self.steps}  {figures}  {left:.0f} s left"
            print(line, flush=True)

    def _evaluation(self, numbers: dict[str, Any]) -> None:
        self.held_out = f"  held-out {numbers['eval/loss']:.3f}"
        where = f"after step {numbers['step']}" if numbers["step"] else "before training"
        self.console.print(
            f"[bold]{where}[/]: held-out loss {numbers['eval/loss']:.4f}, "
            f"perplexity {numbers['eval/perplexity']:.2f}"
        )
        for sample in numbers["eval/samples"]:
            asked = " / ".join(part for part in (sample["instruction"], sample["input"]) if part)
            self.console.print(f"  [dim]{_short(asked, 72)}[/]")
            self.console.print(
                f"    [cyan]{_short(sample['answer'], 60)}[/]"
                f"   [dim]expected: {_short(sample['expected'], 40)}[/]"
            )

    def finish(self, folder: Path, result: dict[str, Any]) -> None:
        """Say what came out and what to do with it."""
        self._show_curve(folder)
        name = escape(str(folder))
        loss = ""
        if result["held_out_loss"] is not None:
            loss = f"  held-out loss {result['base_loss']:.4f} -> {result['held_out_loss']:.4f}"
        self.console.print(
            f"[bold green]done[/] in {result['total_seconds']:.0f} s: "
            f"{counted(result['steps'], 'step|steps')}, "
            f"{result['tokens_per_second']:.0f} tok/s, "
            f"peak memory {readable_bytes(result['peak_memory_bytes'])}\n{loss}\n"
            f"  adapter: {name}  ({result['weights']})"
        )
        merge = f"suri merge {name} --to hf --output_dir {name}-hf"
        if result["lora_variant"] == "dora":
            self.console.print(f"  merge:   {merge}\n  chat:    suri chat {name}-hf, once merged")
            return
        self.console.print(f"  chat:    suri chat {name}\n  merge:   {merge}")

    def _show_curve(self, folder: Path) -> None:
        from suri.reading import read_json_lines
        from suri.train.run_folder import METRICS

        for line in loss_curve(read_json_lines(folder / METRICS), **room_of(self.console)):
            self.console.print(line, markup=False, no_wrap=True)


def _short(text: str, width: int) -> str:
    """One line of at most `width` characters, safe to print whatever a model wrote."""
    return escape(shortened(" ".join(text.split()), width))
