"""What a merge must hold, computed again in fp64 from the adapter's file, apart from other code."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from suri.export.checks import Wide, wide
from suri.model.adapter_file import CONFIG_FILE, WEIGHTS_FILE

UNIT = 2.0**-24
"""The largest relative error of one rounding to fp32."""


class AdapterFile:
    """An adapter folder as it lies on the disk, whatever was made of it since."""

    def __init__(self, folder: Path) -> None:
        text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
        self.config: dict[str, Any] = json.loads(text)
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            keys = [key for key in file.keys() if key.endswith(".lora_A.weight")]  # noqa: SIM118
        self.modules = [
            key.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for key in keys
        ]
        self._weights = folder / WEIGHTS_FILE

    @property
    def formula(self) -> str:
        """What the adapter makes of a weight W."""
        return "m (W + BA) / |W + BA|" if self.config.get("use_dora") else "W + BA"

    def rows(self, module: str, weight: Wide, rows: npt.NDArray[np.int64]) -> tuple[Wide, Wide]:
        """The merged rows of a module whose base rows are `weight`, and what fp32 may lose there.

        A sum of r products loses at most r + 4 roundings of its absolute terms. DoRA
        (arXiv:2402.09353) divides each row by its length, whose own error is the row's as a
        whole and that of a sum of squares, and multiplies it with the magnitude.
        """
        parts = self._parts(module)
        a, b = parts["lora_A.weight"], parts["lora_B.weight"][rows]
        scaling = self._scaling(module, len(a))
        exact = weight + scaling * (b @ a)
        lost = (len(a) + 4) * UNIT * (np.abs(weight) + scaling * (np.abs(b) @ np.abs(a)))
        if not self.config.get("use_dora"):
            return exact, lost
        length = np.sqrt((exact**2).sum(1, keepdims=True))
        factor = parts["lora_magnitude_vector"][rows, None] / length
        of_length = np.sqrt((lost**2).sum(1, keepdims=True)) / length
        of_length += (math.sqrt(weight.shape[1]) + 4) * UNIT
        return factor * exact, np.abs(factor) * (lost + of_length * np.abs(exact))

    def _scaling(self, module: str, r: int) -> float:
        patterns = self.config.get("alpha_pattern") or {}
        own = [alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module)]
        alpha: float = own[0] if own else self.config["lora_alpha"]
        return alpha / (math.sqrt(r) if self.config.get("use_rslora") else r)

    def _parts(self, module: str) -> dict[str, Wide]:
        prefix = f"base_model.model.{module}."
        with safe_open(self._weights, framework="pt") as file:
            keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
            return {key.removeprefix(prefix): wide(file.get_tensor(key)) for key in keys}
