"""Reading a written GGUF file back with libraries that did not write it.

Names and types are those of the gguf package, the order of rotary rows is worked out row by row,
the logits are those of transformers.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from suri.errors import Corrupt
from suri.export.checks import Wide
from suri.model.config import ModelConfig

GGUF_FILE = "model.gguf"


@contextlib.contextmanager
def plainly_mapped() -> Iterator[None]:
    """In here the gguf package maps a file as a plain array.

    It takes several slices for every word of a vocabulary, each of which is three times as slow
    of numpy's memmap as of the same bytes as an array.
    """
    from gguf import gguf_reader

    def mapped(*where: Any, **how: Any) -> npt.NDArray[Any]:
        return np.memmap(*where, **how).view(np.ndarray)

    with patch.object(gguf_reader, "np", SimpleNamespace(**vars(np) | {"memmap": mapped})):
        yield


class GgufTensors(Mapping[str, Tensor]):
    """The tensors of model.gguf by HF name, as they are stored; `names` are those to look for.

    What the file holds beside them keeps its GGUF name. Raises Corrupt for a file that the gguf
    package cannot read.
    """

    def __init__(self, folder: Path, config: ModelConfig, names: Sequence[str]) -> None:
        from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map

        try:
            with plainly_mapped():
                reader = GGUFReader(str(folder / GGUF_FILE))
            arch = str(reader.fields["general.architecture"].contents())
        except (ValueError, KeyError, IndexError) as problem:
            raise Corrupt(f"{folder / GGUF_FILE} is not read back", found=str(problem)) from None
        kind = next(a for a in MODEL_ARCH if MODEL_ARCH_NAMES[a] == arch)
        table = get_tensor_name_map(kind, config.num_layers)
        expected = {
            f"{table.get_name(name.rpartition('.')[0])}.{name.rpartition('.')[2]}": name
            for name in names
        }
        self._heads = {}
        if arch == "llama":
            self._heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
        # Rotary factors show in the logits alone: no HF tensor corresponds to them.
        self._tensors = {
            expected.get(tensor.name, tensor.name): tensor
            for tensor in reader.tensors
            if tensor.name != "rope_freqs.weight"
        }

    def __getitem__(self, name: str) -> Tensor:
        from gguf.quants import dequantize

        kind = self.kind(name)
        content = self._rows(name)
        if kind in ("F32", "F16"):
            return torch.from_numpy(content)
        if kind == "BF16":
            return torch.from_numpy(content).view(torch.bfloat16)
        return torch.from_numpy(dequantize(content, self._tensors[name].tensor_type))

    def kind(self, name: str) -> str:
        """GGML's type of a tensor, as Q8_0."""
        return str(self._tensors[name].tensor_type.name)

    def blocks(self, name: str, rows: npt.NDArray[np.int64]) -> tuple[Wide, Wide]:
        """Scales [n, blocks] and integers [n, blocks, 32] of rows of a Q8_0 tensor, in fp64.

        A block is its scale in fp16, then 32 integers of 8 bits (ggml-common.h, block_q8_0).
        """
        content = self._rows(name)[rows].reshape(len(rows), -1, 34)
        scales = np.ascontiguousarray(content[..., :2]).view(np.float16)[..., 0]
        integers = np.ascontiguousarray(content[..., 2:]).view(np.int8)
        return scales.astype(np.float64), integers.astype(np.float64)

    def _rows(self, name: str) -> npt.NDArray[Any]:
        """The tensor's rows as stored, in HF's order."""
        found = self._tensors[name]
        content = np.array(found.data)
        part = found.name.split(".")[-2]
        if part in self._heads:
            content = content[rows_of_halves(len(content), self._heads[part]).numpy()]
        return content

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def rows_of_halves(count: int, heads: int) -> Tensor:
    """Where each of HF's rows lies in llama.cpp's order, int64 [count].

    Row i of the first half of a head is the first of pair i, row i of the second half its second.
    """
    width = count // heads
    rows = torch.arange(count)
    head, within = rows // width, rows % width
    return head * width + within % (width // 2) * 2 + within // (width // 2)


@torch.no_grad()
def transformers_gguf(folder: Path) -> Any:
    """The model that transformers makes of model.gguf, in fp32.

    It leaves out the width of heads in qwen's files and all rotary scaling: both are set here as
    llama.cpp takes them from the file.
    """
    import transformers
    from gguf import GGUFReader

    given: dict[str, Any] = {"gguf_file": GGUF_FILE, "local_files_only": True}
    # Its bar over the tensors of a GGUF file cannot be switched off; it is drawn for nobody.
    with plainly_mapped(), contextlib.redirect_stderr(io.StringIO()):
        reader = GGUFReader(str(folder / GGUF_FILE))
        arch = reader.fields["general.architecture"].contents()
        config = transformers.AutoConfig.from_pretrained(folder, **given)
        config.head_dim = int(reader.fields[f"{arch}.attention.key_length"].contents())
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, **given
        )
    frequencies = model.model.rotary_emb.inv_freq
    if scale := reader.get_field(f"{arch}.rope.scaling.factor"):
        frequencies /= float(scale.contents())
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            frequencies /= torch.from_numpy(np.array(tensor.data))
    return model
