"""Inputs of the command line: further ones by --arg, token numbers, images; and models of transformers by hf:."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from isometry.errors import LoadError, SpecError
from isometry.loading import ImageOptions, LoadedModel, load_call, load_model
from isometry.loading.images import MOST_PIXELS, load_images

MODELS = """
import torch
from torch import nn

class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.time, self.context = nn.Linear(4, 4), nn.Embedding(20, 4), nn.Linear(3, 4)

    def forward(self, sample, timestep, context=None):
        hidden = self.inner(sample) + self.time(torch.as_tensor(timestep))
        return {"out": [torch.tanh(hidden + self.context(context).mean(1))]}

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.inner = nn.Embedding(7, 3), nn.Linear(3, 3)

    def forward(self, input_ids, mask=None):
        hidden = self.inner(self.embed(input_ids))
        return torch.tanh(hidden if mask is None else hidden * mask[..., None])
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "inputs_of_models.py").write_text(MODELS)
    return str(tmp_path / "inputs_of_models.py")


def test_further_inputs_and_what_j_is_taken_with_respect_to(isometry, file: str) -> None:
    call = ("measure", f"{file}:Denoiser", "--input", "4", "--arg", "timestep=10", "--arg", "context=5x3")
    one = isometry(*call, "--output", "out.0", "--json").json
    assert one["shape"] == [4, 4]
    assert "shares" not in one
    both = isometry(*call, "--output", "out.0", "--wrt", "sample", "--wrt", "context", "--json").json
    assert both["shape"] == [4, 19]
    assert [share["path"] for share in both["shares"]] == ["sample", "context"]
    assert sum(share["share"] for share in both["shares"]) == pytest.approx(1.0)
    shown = isometry(*call, "--output", "out.0", "--wrt", "0", "--wrt", "context")
    assert "shares of mean s²: sample" in shown.out
    by_place = ("measure", f"{file}:Denoiser", "--input", "4", "--arg", "1=10", "--arg", "2=5x3")
    assert isometry(*by_place, "--output", "out.0", "--wrt", "2", "--json").json["shape"] == [4, 15]
    blocks = isometry(*by_place, "--output", "out.0", "--per-block", "--json").json
    assert blocks["profile"]["blocks"]


def test_token_numbers(isometry, file: str, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("1, 2 6\n0 0 3\n")
    spec = ("measure", f"{file}:Tokens", "--source", "inner", "--json")
    assert isometry(*spec, "--input-ids", "5").json["shape"] == [15, 15]
    two = isometry(*spec, "--input-ids", str(ids), "--inputs", "2").json
    assert (two["shape"], two["inputs"]) == ([9, 9], 2)
    masked = isometry(*spec, "--input-ids", str(ids), "--inputs", "2", "--arg", "mask=3x1").err
    assert "fails on the inputs" in masked
    assert "--source NAME" in isometry("measure", f"{file}:Tokens", "--input-ids", "5").err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--arg", "timestep"), 2, "write NAME=VALUE"),
        (("--arg", "0=3"), 2, "PLACE=VALUE from 1"),
        (("--arg", "2=3"), 2, "behind the input 1, which is not given"),
        (("--arg", "a=1", "--arg", "a=2"), 2, "given twice"),
        (("--arg", "context=absent.npy"), 2, "there is no input file"),
        (("--arg", "timestep=3", "--wrt", "context"), 1, "wrt='context' is not among the inputs"),
        (("--arg", "timestep=3", "--arg", "masc=2"), 1, "--arg NAME=VALUE"),
        (("--input-ids", "0"), 2, "at least 1"),
        (("--input-ids", "absent.txt"), 2, "neither a number of tokens nor a file"),
        (("--input-ids", "5"), 2, "both the first input"),
        (("--image-size", "0"), 2, "no size"),
        (("--image-mean", "a,b"), 2, "no list of numbers"),
    ],
)
def test_bad_inputs_are_told(isometry, file: str, options: tuple[str, ...], code: int, words: str) -> None:
    done = isometry("measure", f"{file}:Denoiser", "--input", "4", *options, "--json")
    assert done.code == code, done.err
    assert words in done.err


def test_files_of_token_numbers_are_checked(tmp_path: Path) -> None:
    model = LoadedModel(nn.Embedding(5, 2), "x", "x")
    for name, values in {"large": [1, 5], "negative": [-1], "floats": [0.5]}.items():
        np.save(tmp_path / f"{name}.npy", np.array(values))
        with pytest.raises(LoadError, match="token numbers"):
            load_call(None, model, ids=str(tmp_path / f"{name}.npy"), count=None, seed=0)
    (tmp_path / "ragged.txt").write_text("1 2\n3\n")
    with pytest.raises(LoadError, match="rows of one length"):
        load_call(None, model, ids=str(tmp_path / "ragged.txt"), count=None, seed=0)
    with pytest.raises(SpecError, match=r"neither config.vocab_size nor an Embedding"):
        load_call(None, LoadedModel(nn.Linear(2, 2), "x", "x"), ids="3", count=None, seed=0)


# ---- images ------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image", reason="Pillow is an extra: images are not tested here")
    folder = tmp_path / "pictures"
    folder.mkdir()
    ramp = np.arange(6 * 8 * 3).reshape(6, 8, 3).astype(np.uint8)
    for number in range(3):
        image.fromarray(ramp + number).save(folder / f"{number}.png")
    image.fromarray(np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000).save(tmp_path / "deep.png")
    image.new("1", (2**14, 2**13)).save(tmp_path / "bomb.png")
    image.fromarray(ramp[..., 0].astype(np.float32)).save(tmp_path / "floats.tif")
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    return tmp_path


def test_images_are_scaled_resized_and_normalised(pictures: Path) -> None:
    ramp = torch.arange(6 * 8 * 3).reshape(6, 8, 3).permute(2, 0, 1).float()
    options = ImageOptions(mean=(0.5, 0.25, 0.0), std=(0.5,))
    found = load_images(pictures / "pictures", 2, options)
    expected = ((ramp + 1) / 255 - torch.tensor([0.5, 0.25, 0.0])[:, None, None]) / 0.5
    torch.testing.assert_close(found[1], expected)
    assert load_images(pictures / "pictures", 3, ImageOptions(size=(3, 5))).shape == (3, 3, 3, 5)
    assert load_images(pictures / "pictures", 1, ImageOptions(size=4, channels=1)).shape == (1, 1, 4, 4)
    # The shorter side has six pixels already: the middle is cut out.
    torch.testing.assert_close(
        load_images(pictures / "pictures", 1, ImageOptions(size=6))[0], ramp[..., 1:7] / 255
    )
    # 16 bits are not cut at 255.
    deep = load_images(pictures / "deep.png", 1, ImageOptions(channels=1))
    assert float(deep.max()) == pytest.approx(47_000 / 65_535)


def test_hostile_and_damaged_images_are_refused(pictures: Path, monkeypatch) -> None:
    assert (pictures / "bomb.png").stat().st_size < 100_000 < MOST_PIXELS
    cases = {
        "bomb.png": "pixels",
        "script.png": "cannot be read as an image",
        "floats.tif": "no range from 0 to 1",
    }
    for name, words in cases.items():
        with pytest.raises(LoadError, match=words):
            load_images(pictures / name, 1, ImageOptions())
    whole = (pictures / "pictures" / "0.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LoadError, match="cannot be read as an image"):
        load_images(pictures / "cut.png", 1, ImageOptions())
    for path, count, options, words in (
        (pictures / "pictures", 4, ImageOptions(), "holds 3 images"),
        (pictures / "absent.png", 1, ImageOptions(), "there is no image"),
        (pictures / "deep.png", 2, ImageOptions(), "is one image"),
        (pictures / "deep.png", 1, ImageOptions(mean=(0.0, 0.0)), "2 numbers for 3 channels"),
        (pictures / "deep.png", 1, ImageOptions(std=(0.0,)), "is not 0"),
        (pictures / "deep.png", 1, ImageOptions(size=99_999), "would become one of"),
    ):
        with pytest.raises(SpecError, match=words):
            load_images(path, count, options)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(LoadError, match=r"isometry\[images\]"):
        load_images(pictures / "deep.png", 1, ImageOptions())


def test_an_image_is_measured(isometry, models, pictures: Path) -> None:
    folder = str(pictures / "pictures")
    done = isometry(
        "measure", f"{models}:cnn", "--input", folder, "--inputs", "2", "--image-size", "6", "--json"
    )
    assert (done.json["shape"], done.json["inputs"]) == ([5, 108], 2)


# ---- models of transformers --------------------------------------------------------------------------------

CONFIGS = {
    "no directory": (None, "there is no directory"),
    "no config": ({}, "no config.json"),
    "no JSON": ({"config.json": "{"}, "is not JSON"),
    "a list": ({"config.json": "[]"}, "holds a list"),
    "code of its own": ({"config.json": '{"auto_map": {"AutoModel": "evil.Model"}}'}, "is not run"),
    "many layers": ({"config.json": '{"text": {"num_hidden_layers": 1000000000}}'}, "1000000000 layers"),
    "a kernel": ({"config.json": '{"text": {"_attn_implementation": "hub/kernel"}}'}, "kernel from a hub"),
    "quantised": ({"config.json": '{"quantization_config": {"quant_method": "x"}}'}, "quantised"),
    "pickled": ({"config.json": "{}", "pytorch_model.bin": "x"}, "pickled weights alone"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_directories_that_cannot_be_loaded_are_told_before_anything_is_made(
    case: str, tmp_path: Path
) -> None:
    files, words = CONFIGS[case]
    folder = tmp_path / "model"
    if files is not None:
        folder.mkdir()
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
    with pytest.raises((SpecError, LoadError), match=words):
        load_model(f"hf:{folder}")


def test_a_library_that_another_breaks_is_told_with_the_true_cause(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Fine"], "model_type": "fine"}')

    def broken(name: str) -> object:
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as error:
            raise ModuleNotFoundError(f"Could not import {name}: failed for reasons") from error

    library = types.ModuleType("transformers")
    library.__getattr__ = broken  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "transformers", library)
    with pytest.raises(
        LoadError, match=r"torchvision::nms does not exist\): the torchvision here does not fit"
    ):
        load_model(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (
            "RuntimeError('operator torchvision::nms does not exist')",
            "because of RuntimeError: operator torchvision::nms",
        ),
        ("ModuleNotFoundError(\"No module named 'torchvision'\")", ""),
    ],
)
def test_a_file_whose_import_another_library_breaks_is_told_with_the_true_cause(
    tmp_path: Path, raised: str, said: str
) -> None:
    (tmp_path / "model.py").write_text(
        f"try:\n    raise {raised}\nexcept Exception as e:\n    raise ImportError('cannot import GPT2Model') from e\n"
    )
    with pytest.raises(LoadError, match="raised ImportError: cannot import GPT2Model") as told:
        load_model(f"{tmp_path / 'model.py'}:make")
    assert said in str(told.value)
    assert ("does not fit this torch: install the torchvision of this torch" in str(told.value)) == bool(said)


@pytest.mark.slow
def test_a_directory_of_transformers(tmp_path: Path, isometry) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is a dev extra: hf: is not tested here"
    )
    config = transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=10, n_positions=8)
    torch.manual_seed(0)
    original = transformers.GPT2LMHeadModel(config).eval()
    original.save_pretrained(tmp_path / "gpt2")
    loaded = load_model(f"hf:{tmp_path / 'gpt2'}")
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(loaded.module(ids).logits, original(ids).logits)
    found = isometry(
        "measure", f"hf:{tmp_path / 'gpt2'}", "--input-ids", "3", "--source", "transformer.drop", "--output", "logits",
        "--json",
    )  # fmt: skip
    assert found.json["shape"] == [30, 24]

    config_file = tmp_path / "gpt2" / "config.json"
    said = json.loads(config_file.read_text())
    for change, words in (
        ({"n_embd": 200_000, "n_head": 1}, "and the weights are"),
        ({"n_layer": 3}, "missing keys"),
        ({"architectures": ["Trainer"]}, "does not have"),
        ({"architectures": ["os.system"]}, "does not have"),
    ):
        config_file.write_text(json.dumps(said | change))
        with pytest.raises(LoadError, match=words):
            load_model(f"hf:{tmp_path / 'gpt2'}")
    (tmp_path / "gpt2" / "model.safetensors").unlink()
    config_file.write_text(json.dumps(said))
    assert load_model(f"hf:{tmp_path / 'gpt2'}").module.config.n_layer == 2
    config_file.write_text(json.dumps(said | {"n_embd": 200_000, "n_head": 1}))
    with pytest.raises(LoadError, match="random parameters"):
        load_model(f"hf:{tmp_path / 'gpt2'}")
