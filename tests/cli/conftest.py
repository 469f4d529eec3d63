"""A file of models, and a way to run the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from isometry.cli.entry import run

MODELS = '''
import torch
from torch import nn

print("a model file that prints")

def cnn():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, 5))

def scaled():
    """J is 3 times the identity."""
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(3 * torch.eye(4))
    return layer

def batch_norm():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

def dropout():
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))

class Coupled(nn.Module):
    def forward(self, x):
        return x - x.mean(0)

class Several(nn.Module):
    def forward(self, x):
        return {"first": x, "second": 2 * x}

class Infinite(nn.Module):
    def forward(self, x):
        return x / 0

class Raises(nn.Module):
    def forward(self, x):
        print("about to raise")
        raise ValueError("my own trouble")

class Talks(nn.Module):
    def forward(self, x):
        print("forward")
        return 2 * x

class OneInput(nn.Module):
    """Takes a vector, without batch axis."""
    def forward(self, x):
        return torch.stack([x[0], x[1] + x[2]])

def with_arguments(width):
    return nn.Linear(width, width)

def returns_number():
    return 7

def fails():
    raise RuntimeError("no such thing")

instance = nn.Linear(4, 3)
number = 7
'''


@pytest.fixture
def models(tmp_path: Path) -> str:
    """Path of a Python file that defines models."""
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return str(path)


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


@pytest.fixture
def isometry(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run `isometry ARGUMENTS` in this process."""

    def call(*arguments: object) -> Done:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Done(code, captured.out, captured.err)

    return call
