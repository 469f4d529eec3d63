"""docs/replay.md is what its script writes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch


def test_the_page_is_current() -> None:
    spec = importlib.util.spec_from_file_location("replay_table", Path(__file__).with_name("replay_table.py"))
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text()
    if f"PyTorch {torch.__version__.split('+')[0]} has" not in page:
        pytest.skip("the page is of another version of PyTorch, which has other operations")
    assert page == script.page(), "python tests/jacobian/replay_table.py"
