"""Both backends wherever they are installed; CI has both, so none is left out there."""

import os
import shutil

import pytest

from anypolicy.sandbox.backends import BACKENDS


@pytest.fixture(params=[b for b in BACKENDS if shutil.which(b) or "CI" in os.environ])
def backend(request):
    return request.param
