"""What every test stands on: one thread, fixed seeds, and the folders that tests read."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch and BLAS when they are first imported
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import random
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a shell: what tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("normfold", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("normfold")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Global generators start equal in every test (numpy's is not used, lint sees to it); torch's only where it was imported."""
    random.seed(0)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The folder of small trained models."""
    return ROOT / "models"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Read-only material beside the checkout (`zoo/`, `families/`); the test is skipped where it is not."""
    folder = ROOT.parent / "shared"
    if not (folder / "zoo").is_dir():
        pytest.skip("../shared is not here: no zoo and families to read")
    return folder
