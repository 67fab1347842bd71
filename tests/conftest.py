"""Shapes and types of the numerical parts are checked at run time in every test."""

import os
import tempfile

os.environ.setdefault("ANYPOLICY_HOME", tempfile.mkdtemp(prefix="anypolicy-tests-"))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # also of the processes that tests start

from jaxtyping import install_import_hook

install_import_hook("anypolicy.parts", "beartype.beartype")

import pytest
import torch
from hypothesis import settings

settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def f64():
    return lambda *rows: torch.tensor(rows[0] if len(rows) == 1 else rows, dtype=torch.float64)
