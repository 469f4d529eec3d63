"""MODEL specs."""

from __future__ import annotations

import sys
import types

import pytest
from torch import nn

from isometry.errors import InputError, SpecError
from isometry.loading.models import load_model


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("resnet50", "is not a MODEL"),
        ("vanilla-cnn:wings=2", "no setting 'wings'. Its keys: depth, channels"),
        ("vanilla-cnn:depth", "write key=value"),
        ("vanilla-cnn:depth=deep", "depth is a whole number; got 'deep'"),
        ("mlp:sigma_w=wide", "sigma_w is a number"),
        ("mlp:depth=2,depth=3", "given twice"),
        ("vanilla-cnn:size=0", "size is at least 1"),
        ("vanilla-cnn:depth=0", "depth"),
        ("mlp:depth=2,init=magic", "magic"),
        ("mlp:depth=2,activation=magic", "magic"),
        ("absent.py:model", "there is no file"),
        ("absent_package.models:model", "there is no module"),
        ("math:absent", "math has no 'absent'"),
    ],
)
def test_a_bad_spec_is_a_usage_error_that_names_the_cure(spec: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_model(spec)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "shape", "depth"),
    [
        ("vanilla-cnn", (16, 8, 8), 32),
        ("vanilla-cnn:depth=5,channels=4,size=6,init=gaussian,sigma_w=1.02,sigma_b=0.0045", (4, 6, 6), 5),
        ("vanilla-cnn:depth=2,channels=4,size=8,in_channels=1,num_classes=10", (1, 8, 8), 2),
        ("mlp:depth=3,width=7,activation=leaky_relu(0.2),sigma_w=1.4", (7,), 3),
        ("resnet:depth=3,channels=4,size=4", (4, 4, 4), 3),
    ],
)  # fmt: skip
def test_built_ins(spec: str, shape: tuple[int, ...], depth: int) -> None:
    loaded = load_model(spec)
    assert loaded.input_shape == shape
    assert loaded.module.depth == depth


def test_a_seed_of_a_built_in_repeats_its_weights() -> None:
    weights = [
        load_model(f"mlp:depth=1,width=4,sigma_w=1,seed={seed}").module.trunk[0].weight for seed in (1, 1, 2)
    ]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


def test_the_seed_of_the_command_repeats_the_weights_of_a_file(models: str) -> None:
    built = [load_model(f"{models}:cnn", seed=seed).module[0].weight for seed in (1, 1, 2)]
    assert built[0].equal(built[1])
    assert not built[0].equal(built[2])


def test_a_file_may_import_what_lies_beside_it_and_hold_dataclasses(tmp_path) -> None:
    (tmp_path / "beside_it.py").write_text("WIDTH = 3\n")
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import beside_it\nfrom torch import nn\n"
        "@dataclass\nclass Settings:\n    width: int = beside_it.WIDTH\n"
        "class Models:\n    net = nn.Linear(Settings().width, 2)\n"
    )
    loaded = load_model(f"{tmp_path / 'mine.py'}:Models.net")
    assert loaded.module.in_features == 3


def test_a_module_of_the_working_directory(tmp_path, monkeypatch) -> None:
    (tmp_path / "package_here").mkdir()
    (tmp_path / "package_here" / "__init__.py").write_text("")
    (tmp_path / "package_here" / "nets.py").write_text(
        "from torch import nn\ndef net(): return nn.Linear(2, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert isinstance(load_model("package_here.nets:net").module, nn.Linear)


def test_a_module_that_fails_while_it_is_imported_says_so(tmp_path, monkeypatch) -> None:
    (tmp_path / "broken_nets.py").write_text("import sys\nsys.exit('stop')\n")
    (tmp_path / "needs_nets.py").write_text("import a_package_that_is_absent\n")
    with pytest.raises(InputError, match="SystemExit: stop"):
        load_model(f"{tmp_path / 'broken_nets.py'}:net")
    with pytest.raises(InputError, match="a_package_that_is_absent"):
        load_model(f"{tmp_path / 'needs_nets.py'}:net")


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_libraries_that_are_absent_or_lack_the_model_are_named(library: str) -> None:
    with pytest.raises(InputError, match=library):
        load_model(f"{library}:no_such_model_anywhere")


@pytest.mark.parametrize(
    ("spec", "package", "maker"),
    [("torchvision:small", "torchvision.models", "get_model"), ("timm:hub/small", "timm", "create_model")],
)
def test_libraries_are_asked_for_their_models(spec: str, package: str, maker: str, monkeypatch) -> None:
    # Neither library is needed to test ours: a stand-in with the one function that is called.
    stand_in = types.ModuleType(package)
    made = nn.Linear(2, 2)
    asked = []
    setattr(stand_in, maker, lambda name, **options: asked.append((name, options)) or made)
    monkeypatch.setitem(sys.modules, package.partition(".")[0], stand_in)
    monkeypatch.setitem(sys.modules, package, stand_in)
    loaded = load_model(spec)
    assert loaded.module is made
    assert asked[0][0] == spec.partition(":")[2]
    # Random weights: nothing is downloaded.
    assert not asked[0][1].get("weights")
    assert not asked[0][1].get("pretrained")
    assert "/" not in loaded.name


def test_evaluation_mode_is_the_users_choice(models: str) -> None:
    assert load_model(f"{models}:dropout").module.training
    assert not load_model(f"{models}:dropout", evaluation=True).module.training
