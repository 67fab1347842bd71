"""A place of its own for every fuzz test."""

import pytest


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(autouse=True)
def elsewhere(place, monkeypatch):
    """What a call writes by its own defaults stays there."""
    monkeypatch.chdir(place)
