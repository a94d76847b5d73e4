"""Training of a code wire, stage by stage; each leaves a file in the run folder that a resumed run
begins from.

1. fit: the code and every reader's linear decoder in closed form, and the scorer that says which
   slots stay at a ratio.
2. attention: the wide layers of each reader that is not the source itself, from recordings.
3. answers: each reader's decoder through the frozen reader.

The code is trained in stage 2 with the first reader alone, and is fixed from then on, so that more
readers can be added later (`add_code_reader`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save
from torch import Tensor

from latentwire.files import write_whole
from latentwire.lm import FrozenLM
from latentwire.recipes.codes.answers import answer_losses
from latentwire.recipes.codes.attention import attention_losses
from latentwire.recipes.codes.config import CodeRecipe
from latentwire.recipes.codes.fitting import (
    Fit,
    Sensitivity,
    Sums,
    fit_code,
    fit_decoder,
    pairs,
    reader_cache,
)
