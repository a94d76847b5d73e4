"""Shapes and types are checked at run time in every test, and none sees features of other runs."""

import os
import tempfile

import torch
from jaxtyping import install_import_hook

install_import_hook("latentwire", "beartype.beartype")
# Tiny matrices gain nothing from a second thread, and all lose much where cores are shared: threads
# of two workers on two cores wait for each other.
torch.set_num_threads(1)
os.environ["LATENTWIRE_FEATURES"] = tempfile.mkdtemp(prefix="latentwire-features-")
