"""Files of spectra from the command line: list, show, report, validate, and what measure stores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from isometry.errors import StoreError
from isometry.spectrum import Spectrum
from isometry.store import open_store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with a spectrum of twos and halves, "mixed", and one of fours, "large"."""
    path = tmp_path / "spectra.h5"
    store = open_store(path, "a")
    mixed = Spectrum.from_singular_values([2.0, 2.0, 0.5, 0.25], shape=(4, 6), name="mixed")
    store.add(replace(mixed, provenance={"seed": 3, "dtype": "float64", "options": {"top": 2}}))
    store.add(Spectrum.from_singular_values([4.0] * 5, name="large"))
    return path


# ---- reading -----------------------------------------------------------------------------------------------


def test_list(isometry, file) -> None:
    done = isometry("list", file)
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0][0] == "name"
    assert {line[0] for line in lines[1:]} == {"mixed", "large"}
    rows = {row["name"]: row for row in isometry("list", file, "--json").json["spectra"]}
    assert rows["mixed"]["shape"] == [4, 6]
    assert rows["large"]["s_max"] == pytest.approx(4.0)
    assert rows["mixed"]["isometry"]["fraction"] == pytest.approx(0.75)


def test_show(isometry, file) -> None:
    found = isometry("show", file, "mixed", "--json").json
    # E s^2 = (4 + 4 + 1/4 + 1/16) / 4.
    assert found["mean_square"] == pytest.approx(8.3125 / 4, rel=1e-14)
    assert found["null_dimension"] == 2
    assert found["provenance"]["options"] == {"top": 2}
    text = isometry("show", file, "mixed").out
    for words in ("mixed", "4 x 6", "null dimension", "options.top", "float64"):
        assert words in text


def test_report_of_all_of_some_and_in_the_order_asked(isometry, file) -> None:
    assert [s["name"] for s in isometry("report", file, "large", "mixed", "--json").json["spectra"]] == [
        "large",
        "mixed",
    ]
    assert {s["name"] for s in isometry("report", file, "--json").json["spectra"]} == {"large", "mixed"}
    text = isometry("report", file).out
    for words in ("mixed", "large", "log10 s", "75 %", "signals grow"):
        assert words in text


def test_report_draws(isometry, file, tmp_path) -> None:
    png, svg, html = (tmp_path / name for name in ("a.png", "b.svg", "c.html"))
    done = isometry("report", file, "--png", png, "--svg", svg, "--html", html, "--json")
    assert done.code == 0
    assert len(done.json["spectra"]) == 2
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "<svg" in svg.read_text()
    assert html.read_text().startswith("<!DOCTYPE html>")
    assert str(png) in done.err
    assert isometry("report", file, "--png", tmp_path / "absent" / "a.png").code == 1


@pytest.mark.parametrize(("names", "code"), [(("mixed",), 0), (("mixed", "large"), 3)])
def test_a_threshold_on_stored_spectra(isometry, file, names: tuple[str, ...], code: int) -> None:
    done = isometry("report", file, *names, "--require-isometry", "0.75")
    assert done.code == code
    assert ("'large'" in done.err) is (code == 3)


def test_validate(isometry, file) -> None:
    found = isometry("validate", file, "--json").json
    assert (found["valid"], found["problems"], found["spectra"]) == (True, [], 2)
    with h5py.File(file, "r+") as handle:
        weights = handle["spectra/mixed/weights"]
        weights[...] = np.asarray(weights) * 2
    done = isometry("validate", file)
    assert done.code == 4
    assert "mixed" in done.out


def test_series_are_listed_and_shown(isometry, file) -> None:
    open_store(file, "a").add_series(
        "loss", {"step": np.arange(30), "loss": 1 / (1 + np.arange(30.0))}, {"seed": 7}
    )
    assert isometry("list", file, "--json").json["series"] == ["loss"]
    assert "series: loss" in isometry("list", file).out
    found = isometry("show", file, "loss", "--json").json
    assert found["columns"]["loss"][3] == 0.25
    assert found["provenance"]["seed"] == 7
    text = isometry("show", file, "loss").out
    assert "30 rows" in text
    # The ends of a long table are shown, its middle is not.
    assert [word in text.split() for word in ("0.0333333", "0.0666667")] == [True, False]


@pytest.mark.parametrize("command", ["show", "report"])
def test_an_unknown_name_is_named_with_its_neighbours(isometry, file, command: str) -> None:
    done = isometry(command, file, "mixd")
    assert done.code == 2
    assert "did you mean mixed?" in done.err
    assert done.out == ""


# ---- files that cannot be read -----------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    if how == "absent":
        path.unlink()
    elif how == "text":
        path.write_text("name,s\n")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "foreign":
        with h5py.File(path, "w") as handle:
            handle["temperature"] = np.arange(3)
    elif how == "newer":
        with h5py.File(path, "r+") as handle:
            handle.attrs["schema_version"] = 10**6
    elif how == "folder":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("how", ["absent", "text", "empty", "truncated", "foreign", "newer", "folder"])
@pytest.mark.parametrize("command", [("list",), ("show", "mixed"), ("report",), ("validate",)])
def test_an_unreadable_file_is_code_4_with_its_name(
    isometry, file, how: str, command: tuple[str, ...]
) -> None:
    damage(file, how)
    done = isometry(command[0], file, *command[1:], "--json")
    assert done.code == 4
    assert "spectra.h5" in done.err
    assert done.out == ""


# ---- writing -----------------------------------------------------------------------------------------------


def test_what_is_stored_is_what_was_printed(isometry, models, tmp_path) -> None:
    path = tmp_path / "new.h5"
    printed = isometry(
        "measure", f"{models}:cnn", "--input", "3x6x6", "-o", path, "--name", "net", "--json"
    ).json
    stored = isometry("show", path, "net", "--json").json
    provenance = stored.pop("provenance")
    assert stored == printed
    assert provenance["model_spec"].endswith(":cnn")
    assert provenance["input_spec"] == "standard normal 3x6x6, seed 0"


def test_the_command_is_recorded_as_a_shell_takes_it(isometry, tmp_path) -> None:
    import shlex

    path = tmp_path / "a folder" / "new.h5"
    path.parent.mkdir()
    typed = ["measure", "mlp:depth=2,width=6", "-o", str(path), "--name", "it's; $HOME"]
    assert isometry(*typed).code == 0
    command = isometry("show", path, "it's; $HOME", "--json").json["provenance"]["command"]
    assert shlex.split(command) == ["isometry", *typed]
    again = isometry(*shlex.split(command)[1:], "--overwrite", "--json")
    assert again.code == 0
    law = ["predict", "--activation", "relu", "--depth", "2", "-o", str(path)]
    assert isometry(*law).code == 0
    stored = isometry("show", path, "relu, gaussian, depth 2", "--json").json["provenance"]["command"]
    assert shlex.split(stored) == ["isometry", *law]


def test_the_variance_of_the_first_layer_is_recorded_with_the_ensemble(isometry, tmp_path) -> None:
    path, spec = tmp_path / "new.h5", "mlp:depth=2,width=400,activation=tanh,sigma_w=1.2,sigma_b=0.1"
    options = ("--method", "lanczos", "--probes", "1", "--steps", "2", "-o", path, "--name")
    isometry("measure", spec, *options, "own")
    own = isometry("show", path, "own", "--json").json["provenance"]
    # Its own input keeps the variance that the network has from layer to layer.
    assert own["ensemble"]["q0"] is None
    assert own["input_spec"].startswith("normal of variance")
    isometry("measure", spec, "--input", "400", *options, "normal")
    normal = isometry("show", path, "normal", "--json").json["provenance"]["ensemble"]
    # sigma_w^2 times a mean square of 1 +- sqrt(2/400), plus sigma_b^2; four standard deviations.
    assert normal["q0"] == pytest.approx(1.44 + 0.01, abs=1.44 * 4 * (2 / 400) ** 0.5)
    isometry("measure", f"{spec},num_classes=3", *options, "head")
    assert "ensemble" not in isometry("show", path, "head", "--json").json["provenance"]


def test_the_input_of_a_built_in_is_stationary() -> None:
    import torch

    from isometry.loading import load_input, load_model

    model = load_model("mlp:depth=3,width=2000,activation=tanh,init=gaussian,sigma_w=1.3,sigma_b=0.2")
    x = load_input(None, model, count=1, seed=0).tensor
    variances = []
    with torch.no_grad():
        for layer in model.module.trunk:
            variances.append(float(torch.nn.functional.linear(x, layer.weight, layer.bias).square().mean()))
            x = layer(x)
    # Each mean over 2000 units is within four of its standard deviations sqrt(2/2000); twice that, as layers add up.
    assert variances == pytest.approx([model.module.q_star] * 3, rel=2 * 4 * (2 / 2000) ** 0.5)


def test_the_ensemble_of_a_reference_network_is_recorded_unless_weights_were_loaded(
    isometry, tmp_path
) -> None:
    import torch

    from isometry.loading.models import load_model

    path, spec = tmp_path / "new.h5", "mlp:depth=2,width=6,activation=tanh,init=orthogonal,sigma_w=1.1"
    isometry("measure", spec, "-o", path)
    ensemble = isometry("show", path, "mlp", "--json").json["provenance"]["ensemble"]
    assert (ensemble["activation"], ensemble["depth"], ensemble["sigma_w"]) == ("tanh", 2, 1.1)
    torch.save(load_model(spec).module.state_dict(), tmp_path / "w.pt")
    isometry("measure", spec, "-o", path, "--name", "loaded", "--weights", tmp_path / "w.pt")
    assert "ensemble" not in isometry("show", path, "loaded", "--json").json["provenance"]


@pytest.fixture
def counting(tmp_path) -> tuple[str, Path]:
    """A model that leaves a mark when it runs, and where."""
    mark = tmp_path / "it_ran"
    path = tmp_path / "counting.py"
    path.write_text(
        "import pathlib\nfrom torch import nn\nclass Net(nn.Module):\n    def forward(self, x):\n"
        f"        pathlib.Path({str(mark)!r}).touch()\n        return 2 * x\n"
    )
    return f"{path}:Net", mark


def test_a_taken_name_is_refused_before_the_work_and_replaced_when_asked(isometry, file, counting) -> None:
    model, mark = counting
    arguments = ("measure", model, "--input", "4", "-o", file, "--name", "mixed")
    done = isometry(*arguments)
    assert done.code == 1
    assert "--overwrite" in done.err
    assert not mark.exists()
    assert isometry("show", file, "mixed", "--json").json["shape"] == [4, 6]
    assert isometry(*arguments, "--overwrite").code == 0
    assert isometry("show", file, "mixed", "--json").json["shape"] == [4, 4]
    assert isometry("show", file, "large", "--json").json["s_max"] == pytest.approx(4.0)


@pytest.mark.parametrize("how", ["text", "truncated", "foreign", "newer", "folder"])
def test_a_file_that_is_not_ours_is_refused_before_the_work_and_left_alone(
    isometry, file, counting, how: str
) -> None:
    model, mark = counting
    damage(file, how)
    before = file.read_bytes() if file.is_file() else None
    done = isometry("measure", model, "--input", "4", "-o", file)
    assert done.code == 4
    assert not mark.exists()
    assert (file.read_bytes() if file.is_file() else None) == before


def test_an_absent_folder_is_refused_before_the_work(isometry, counting, tmp_path) -> None:
    model, mark = counting
    done = isometry("measure", model, "--input", "4", "-o", tmp_path / "absent" / "a.h5")
    assert done.code == 2
    assert not mark.exists()


@pytest.mark.parametrize("name", ["a/b", ".hidden", "", "x" * 300])
def test_an_impossible_name_is_refused_before_the_work(isometry, counting, tmp_path, name: str) -> None:
    model, mark = counting
    done = isometry("measure", model, "--input", "4", "-o", tmp_path / "a.h5", "--name", name)
    # An empty name is no name: the model's own is taken.
    assert done.code == (2 if name else 0)
    assert mark.exists() is (not name)


def test_one_damaged_spectrum_hides_no_other(isometry, file) -> None:
    with h5py.File(file, "r+") as handle:
        summary = handle["spectra/mixed"].attrs["summary"]
        handle["spectra/mixed"].attrs["summary"] = summary * 2
    done = isometry("list", file, "--json")
    assert done.code == 4
    assert [row["name"] for row in done.json["spectra"]] == ["large"]
    assert "mixed" in done.err


def test_a_result_that_cannot_be_stored_is_printed_before_it_is_lost(
    isometry, models, tmp_path, monkeypatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreError(28, "no space left on device; nothing was stored")

    monkeypatch.setattr("isometry.store.Store.add", full)
    done = isometry("measure", f"{models}:scaled", "--input", "4", "-o", tmp_path / "a.h5", "--json")
    assert done.code == 1
    assert done.json["s_max"] == pytest.approx(3.0)
    assert "no space left" in done.err


def test_a_result_that_has_not_converged_is_stored(isometry, tmp_path) -> None:
    path = tmp_path / "a.h5"
    spec = "vanilla-cnn:depth=3,channels=4,size=4,init=gaussian,sigma_w=1.1"
    options = ("--method", "lanczos", "--probes", "2", "--steps", "3", "--tol", "1e-12", "--name", "rough")
    assert isometry("measure", spec, *options, "-o", path).code == 5
    assert isometry("show", path, "rough", "--json").json["method"] == "lanczos"


# ---- parts of interrupted measurements -----------------------------------------------------------------------


def part_of(spectrum: Spectrum) -> Spectrum:
    stopped = {"reason": "interrupted", "inputs": "1 of 1"}
    return replace(spectrum, provenance={**spectrum.provenance, "stopped": stopped})


@pytest.fixture
def interrupted_measure(monkeypatch):
    """`measure` as it returns after Ctrl-C."""
    from isometry import measurement

    whole = measurement.measure
    monkeypatch.setattr(measurement, "measure", lambda *a, **k: part_of(whole(*a, **k)))


def test_a_part_is_marked_in_its_name_and_gives_way_to_the_whole(isometry, tmp_path, monkeypatch) -> None:
    from isometry import measurement

    file = tmp_path / "a.h5"
    call = ("measure", "mlp:depth=1,width=4", "-o", file, "--name", "x")
    with monkeypatch.context() as patch:
        whole = measurement.measure
        patch.setattr(measurement, "measure", lambda *a, **k: part_of(whole(*a, **k)))
        for _ in range(2):  # a second part takes the place of the first
            assert isometry(*call).code == 130
            assert list(open_store(file)) == ["x (partial)"]
    row = isometry("list", file).out.splitlines()[1]
    assert row.startswith("x (partial)")
    assert [one["partial"] for one in isometry("list", file, "--json").json["spectra"]] == [True]
    assert "interrupted, partial" in isometry("show", file, "x (partial)").out
    assert isometry(*call).code == 0
    assert list(open_store(file)) == ["x"]
    assert not open_store(file)["x"].partial


def test_an_interrupt_keeps_the_whole_one_that_was_to_be_replaced(
    isometry, tmp_path, interrupted_measure
) -> None:
    file = tmp_path / "a.h5"
    open_store(file, "a").add(Spectrum.from_singular_values([7.0], name="x"))
    isometry("measure", "mlp:depth=1,width=4", "-o", file, "--name", "x", "--overwrite")
    assert sorted(open_store(file)) == ["x", "x (partial)"]
    assert open_store(file)["x"].s_max == pytest.approx(7.0)


def test_a_part_under_a_plain_name_is_listed_as_one_and_replaced(isometry, file) -> None:
    """As earlier versions and programs store it."""
    open_store(file, "a").add(part_of(Spectrum.from_singular_values([3.0], name="old")))
    assert any(line.startswith("old (partial)") for line in isometry("list", file).out.splitlines())
    call = ("measure", "mlp:depth=1,width=4", "-o", file, "--name", "old")
    assert isometry(*call).code == 0
    assert not open_store(file)["old"].partial
    assert isometry(*call).code == 1


def test_a_name_of_200_bytes_has_a_part_too_and_a_whole_one_called_so_is_kept(
    isometry, tmp_path, interrupted_measure
) -> None:
    file = tmp_path / "a.h5"
    isometry("measure", "mlp:depth=1,width=4", "-o", file, "--name", "é" * 100)
    (name,) = open_store(file)
    assert name == "é" * 95 + " (partial)"
    open_store(file, "a").add(Spectrum.from_singular_values([7.0], name="y (partial)"))
    done = isometry("measure", "mlp:depth=1,width=4", "-o", file, "--name", "y")
    assert done.code == 1
    assert "could not be stored" in done.err
    assert open_store(file)["y (partial)"].s_max == pytest.approx(7.0)
