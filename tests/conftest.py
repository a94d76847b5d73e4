"""Shapes and types are checked at run time in every test, and none sees features of other runs."""

import gc
import os
import tempfile

# Tiny matrices gain nothing from a second thread, and all lose much where cores are shared: threads
# of two workers on two cores wait for each other. Processes that a test forks or starts take their
# number of threads from here, and torch its own where it is first imported.
os.environ["OMP_NUM_THREADS"] = "1"

from jaxtyping import install_import_hook

# A whole number is a float where one is expected, as typing has it (PEP 484) and JSON writes it.
install_import_hook(
    "latentwire", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)
os.environ["LATENTWIRE_FEATURES"] = tempfile.mkdtemp(prefix="latentwire-features-")

LONGEST = (
    "test_device",
    "test_shared",
    "test_lens_recipes",
    "test_parallel",
    "test_real",
    "test_real_lens",
    "test_real_shared",
    "test_examples",
    "test_sweep",
    "test_kill",
    "test_agreement",
    "test_families",
)
"""Files that take longest: begun first, so that no worker has one left when the others are done."""


def pytest_collection_modifyitems(items):
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish():
    gc.freeze()  # what was imported stays: no collection walks through it, and no fork copies it
