"""Which rows each step learns, in which batches, and when a run is evaluated and saved."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from suri.data.batch import Batch, Lengths, epoch_order, micro_batches
from suri.data.examples import Example
from suri.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """Which examples each step learns: a function of the recipe and the examples' lengths."""

    recipe: Recipe
    lengths: Lengths

    @property
    def count(self) -> int:
        """Number of examples."""
        return len(self.lengths)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in a whole epoch; the last one may be smaller, no example is dropped."""
        return math.ceil(self.count / self.recipe.batch_size)

    @property
    def steps(self) -> int:
        """All steps of the run."""
        steps = math.ceil(self.recipe.num_epochs * self.steps_per_epoch)
        return min(steps, self.recipe.max_steps) if self.recipe.max_steps else steps

    @property
    def eval_steps(self) -> int:
        """Steps between evaluations."""
        return self.recipe.eval_steps or max(1, math.ceil(self.steps / 4))

    @property
    def save_steps(self) -> int:
        """Steps between saved states."""
        return self.recipe.save_steps or self.eval_steps

    def examples(self, step: int) -> list[int]:
        """Indices of the examples of step 1, 2, ..."""
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        size = self.recipe.batch_size
        order = epoch_order(
            self.recipe.seed,
            epoch,
            self.lengths,
            batch_size=size,
            group_by_length=self.recipe.group_by_length,
        )
        return [int(i) for i in order[place * size : (place + 1) * size]]


def batches_of(recipe: Recipe, examples: Sequence[Example], token_budget: int = 0) -> list[Batch]:
    """Examples as micro-batches of up to `token_budget` tokens (0: the recipe's).

    Our own engine reads what prompts begin with in common once; not with dropout, which differs
    between the copies of a token.
    """
    return micro_batches(
        examples,
        max_rows=recipe.micro_batch_size,
        token_budget=token_budget or recipe.token_budget,
        share_prefix=recipe.engine == "suri" and recipe.lora_dropout == 0,
    )
