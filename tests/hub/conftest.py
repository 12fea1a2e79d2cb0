"""
Tests that talk to a Hub are in `client_*.py`. pytest doesn't collect these by itself: `test_hub.py` runs all of them
in one process of their own, where a [`HubServer`] is up before the first Hugging Face import. Such a file holds plain
tests, with the server as the fixture `hub`:

    def test_upload(hub, tmp_path):
        ...
        assert set(hub.files("tester/model")) >= {"model_index.json"}

Alone: TEST_HUB_HOME=$(mktemp -d) python -m pytest tests/hub/client_load.py
"""

import os
from pathlib import Path

import pytest
from server import HubServer

HUB = None
if "TEST_HUB_HOME" in os.environ:
    HUB = HubServer()
    os.environ.update(HUB.environment(Path(os.environ["TEST_HUB_HOME"])))


@pytest.fixture
def hub(monkeypatch):
    """An empty [`HubServer`] for every test. The client doesn't wait before it tries again."""
    if HUB is None:
        pytest.fail("This file is run by test_hub.py, or with TEST_HUB_HOME set to a new folder.")
    HUB.repos.clear()
    HUB.uploads.clear()
    HUB.log.clear()
    HUB.faults.clear()
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return HUB


@pytest.fixture
def cache(hub, tmp_path, monkeypatch):
    """The client's cache, new for every test."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"
