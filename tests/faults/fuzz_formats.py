"""One small real example of every format that Suri reads back or is given, and its reader."""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import tomli_w
import torch
from children import recipe, rows, run
from test_decoder import packed_logits

from conftest import make_model, write_tokenizer
from results import write_comparison, write_study
from suri.cli.runs import _row
from suri.data.prompt import find_prompt, read_prompt
from suri.errors import UsageError
from suri.export.certify import verify
from suri.export.hf import write_hf
from suri.export.meta import write_meta
from suri.files import read_json, write_json
from suri.model.adapter import read_adapter
from suri.model.config import read_config
from suri.model.gguf_base import convert
from suri.model.load import load_decoder
from suri.model.tokenizer import read_tokenizer
from suri.model.weights import recorded_base
from suri.recipe import recipe_from_toml, settings_of
from suri.study.forms import is_merge_of
from suri.study.plan import read_plan
from suri.study.report import build
from suri.study.runs import differing, read_run
from suri.study.trials import collect
from suri.train.checkpoint import find_checkpoint, load_checkpoint
from suri.train.optimizer import make_optimizer
