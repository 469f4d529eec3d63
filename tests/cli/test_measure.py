"""`isometry measure`: numbers against closed forms, clean streams, and a clear word for every bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

REQUIRED = {
    "name", "method", "shape", "null_dimension", "s_max", "s_max_residual", "s_min", "mean_square",
    "mean_square_stderr", "quantiles", "isometry", "products", "seconds", "seed", "dtype", "device",
}  # fmt: skip


def test_json_holds_the_numbers_of_a_known_matrix(isometry, models) -> None:
    done = isometry("measure", f"{models}:scaled", "--input", "4", "--json", "--dtype", "float64")
    assert done.code == 0
    found = done.json
    assert set(found) >= REQUIRED
    assert found["shape"] == [4, 4]
    assert found["s_max"] == pytest.approx(3.0, abs=1e-12)
    assert found["s_min"] == pytest.approx(3.0, abs=1e-12)
    assert found["mean_square"] == pytest.approx(9.0, abs=1e-12)
    assert set(found["quantiles"]) == {"0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99"}
    assert found["isometry"] == {
        "low": 0.5, "high": 2.0, "fraction": 0.0, "fraction_at_most": 0.0, "stderr": 0.0, "limits95": [0.0, 0.0],
    }  # fmt: skip
    assert (found["name"], found["seed"], found["dtype"], found["device"]) == ("scaled", 0, "float64", "cpu")
    # What the model's file prints is not data.
    assert "a model file that prints" in done.err


def test_a_built_in_is_measured_at_its_own_shape(isometry) -> None:
    spec = "vanilla-cnn:depth=3,channels=2,size=4,activation=linear,init=delta_orthogonal,sigma_w=1.5,sigma_b=0,seed=1"
    found = isometry("measure", spec, "--json").json
    assert found["shape"] == [32, 32]
    # A product of three orthogonal convolutions scaled by 1.5; float32 rounding.
    assert found["s_max"] == pytest.approx(1.5**3, rel=1e-5)
    assert found["s_min"] == pytest.approx(1.5**3, rel=1e-5)


def test_all_options_reach_the_measurement(isometry, models, tmp_path) -> None:
    found = isometry(
        "measure", f"{models}:cnn", "--input", "3x6x6", "--inputs", "2", "--method", "lanczos", "--probes", "3",
        "--steps", "4", "--top", "2", "--seed", "5", "--source", "1", "--target", "3", "--memory-limit", "100MB",
        "--name", "part", "--json",
    ).json  # fmt: skip
    # From what enters the tanh (4 x 4 x 4) to what leaves the last layer.
    assert found["shape"] == [5, 64]
    assert found["null_dimension"] == 59
    assert (found["inputs"], found["probes"], found["seed"], found["name"]) == (2, 3, 5, "part")
    assert found["products"] == pytest.approx(2 * 3 * 2 * 4, abs=20)


def test_tf32_changes_nothing_on_a_processor(isometry, models) -> None:
    plain, rounded = (
        isometry("measure", f"{models}:cnn", "--input", "3x6x6", "--json", *more).json
        for more in ((), ("--tf32",))
    )
    assert plain["s_max"] == rounded["s_max"]
    refused = isometry("measure", f"{models}:cnn", "--input", "3x6x6", "--per-block", "--tf32")
    assert refused.code == 2
    assert "leave --tf32 out" in refused.err


def test_seeds_repeat_bit_for_bit(isometry, models) -> None:
    def once(seed: int) -> dict:
        arguments = ("measure", f"{models}:cnn", "--input", "3x6x6", "--method", "lanczos", "--probes", "2")
        found = isometry(*arguments, "--seed", seed, "--json").json
        return {key: value for key, value in found.items() if key != "seconds"}

    assert once(3) == once(3)
    assert once(3)["s_max"] != once(4)["s_max"]


def test_the_report_is_on_standard_output_alone(isometry, models) -> None:
    done = isometry("measure", f"{models}:Talks", "--input", "4")
    assert done.code == 0
    assert "forward" not in done.out
    assert "4 x 4" in done.out
    assert "isometric" in done.out
    assert "forward" in done.err


@pytest.mark.parametrize(("threshold", "code"), [("0.99", 3), ("0", 0)])
def test_a_stated_threshold(isometry, models, threshold: str, code: int) -> None:
    done = isometry("measure", f"{models}:scaled", "--input", "4", "--require-isometry", threshold)
    assert done.code == code
    assert ("threshold missed: 0 %" in done.err) is (code == 3)
    assert "s_max" in done.out


def test_a_threshold_that_too_few_steps_cannot_decide(isometry, tmp_path) -> None:
    """Three steps resolve s down to s_max / 3 = 0.5; the same network measured exactly meets the threshold."""
    arguments = ("measure", "mlp:depth=2,width=64", "--require-isometry", "0.7")
    done = isometry(*arguments, "--method", "lanczos", "--steps", "3", "-o", tmp_path / "runs.h5")
    assert done.code == 3
    assert " to 100 %" in isometry("list", tmp_path / "runs.h5").out
    assert "does not resolve: take more --steps, or --method exact" in done.err
    assert "not resolved" in done.out
    # 48 of its 64 singular values lie inside.
    assert isometry(*arguments).code == 0
    assert isometry(*arguments[:-1], "0.75").code == 0
    assert isometry(*arguments[:-1], "0.76").code == 3


def test_nan_is_no_threshold(isometry) -> None:
    assert isometry("measure", "mlp:depth=1,width=4", "--require-isometry", "nan").code == 2


def test_a_tolerance_that_is_not_met_is_code_5_with_the_result_printed(isometry) -> None:
    spec = "vanilla-cnn:depth=4,channels=4,size=8,init=gaussian,sigma_w=1.1"
    arguments = ("measure", spec, "--method", "lanczos", "--probes", "1", "--steps", "3", "--json")
    done = isometry(*arguments, "--tol", "1e-12")
    assert done.code == 5
    assert "not converged" in done.err
    assert done.json["s_max"] > 0
    assert isometry(*arguments, "--tol", "1e9").code == 0


NETWORK = "vanilla-cnn:depth=2,channels=4,size=8,init=gaussian,sigma_w=1.1"


def test_a_relative_error_is_reached_or_code_5(isometry, tmp_path) -> None:
    arguments = ("measure", NETWORK, "--method", "lanczos", "--steps", "4", "--rtol")
    done = isometry(*arguments, "0.2", "--json")
    assert done.code == 0
    assert done.json["stopped"]["reason"] == "rtol"
    assert done.json["stopped"]["error"] <= 0.2
    assert "at the peak: first bases of 8 probes of 4 steps" in done.err
    done = isometry(*arguments, "0.0001", "--budget", "400", "-o", tmp_path / "a.h5", "--name", "a")
    assert done.code == 5
    assert "mean_square is known to" in done.err
    assert "the budget ended first" in done.err
    assert "budget of 400 products spent; mean square known to" in done.out
    assert "budget of 400 products spent" in isometry("show", tmp_path / "a.h5", "a").out


@pytest.mark.parametrize(
    ("options", "quantity"),
    [
        ("--rtol 0.01 --quantity s_max --budget 60s", "s_max"),
        ("--budget 600 --quantity cdf --probe orthogonal", "cdf"),
        ("--rtol 0.3 --probe rademacher", "mean_square"),
    ],
)
def test_options_of_the_goal_reach_the_measurement(isometry, options: str, quantity: str) -> None:
    done = isometry("measure", NETWORK, "--method", "lanczos", *options.split(), "--json")
    assert done.code == 0
    assert done.json["stopped"]["quantity"] == quantity


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("--budget 0", 2, "neither a number of products"),
        ("--budget soon", 2, "neither a number of products"),
        ("--rtol 0", 2, "rtol"),
        ("--rtol 0.1 --quantity median", 2, "median"),
        ("--quantity cdf", 1, "give one of them"),
        ("--rtol 0.1 --method randomized", 1, "for 'randomized' there is tol"),
    ],
)
def test_goals_that_make_no_sense(isometry, options: str, code: int, words: str) -> None:
    done = isometry("measure", NETWORK, *options.split())
    assert (done.code, done.out) == (code, "")
    assert words in done.err


# ---- inputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["npy", "npz", "pt"])
def test_inputs_from_files(isometry, models, tmp_path, ending: str) -> None:
    x = np.random.default_rng(0).standard_normal((5, 3, 6, 6)).astype(np.float32)
    path = tmp_path / f"x.{ending}"
    if ending == "npy":
        np.save(path, x)
    elif ending == "npz":
        np.savez(path, x=x)
    else:
        torch.save(torch.from_numpy(x), path)
    assert (
        isometry("measure", f"{models}:cnn", "--input", path, "--inputs", "2", "--json").json["inputs"] == 2
    )
    # Without --inputs the array is one input as the model takes it: one Jacobian of all five samples.
    assert isometry("measure", f"{models}:cnn", "--input", path, "--json").json["shape"] == [25, 540]


def test_digits_are_repeated_over_the_channels_of_a_bare_trunk(isometry) -> None:
    pytest.importorskip("sklearn", reason="digits come with scikit-learn")
    spec = "vanilla-cnn:depth=2,channels=3,size=8,sigma_w=1.02"
    found = isometry("measure", spec, "--input", "digits", "--inputs", "2", "--json").json
    assert (found["shape"], found["inputs"]) == ([192, 192], 2)
    spec = "vanilla-cnn:depth=2,channels=3,size=8,sigma_w=1.02,in_channels=1,num_classes=10"
    assert isometry("measure", spec, "--input", "digits", "--json").json["shape"] == [10, 64]
    assert isometry("measure", "mlp:depth=2,width=64,sigma_w=1", "--input", "digits", "--json").json[
        "shape"
    ] == [64, 64]
    done = isometry("measure", "mlp:depth=2,width=65,sigma_w=1", "--input", "digits")
    assert done.code == 2
    assert "width=64" in done.err


def test_a_model_without_batch_axis(isometry, models) -> None:
    done = isometry("measure", f"{models}:OneInput", "--input", "3", "--no-batch-axis", "--json")
    assert done.json["shape"] == [2, 3]
    # J = [[1, 0, 0], [0, 1, 1]]: singular values 1 and sqrt 2, in float32.
    assert done.json["s_max"] == pytest.approx(math.sqrt(2), rel=1e-6)


# ---- weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["pt", "safetensors", "checkpoint"])
def test_weights_are_loaded(isometry, models, tmp_path, ending: str) -> None:
    state = {"weight": 0.25 * torch.eye(4)}
    path = tmp_path / ("weights.pt" if ending == "checkpoint" else f"weights.{ending}")
    if ending == "safetensors":
        pytest.importorskip("safetensors.torch", reason="safetensors is an extra").save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if ending == "checkpoint" else state, path)
    found = isometry("measure", f"{models}:scaled", "--input", "4", "--weights", path, "--json").json
    assert found["s_max"] == pytest.approx(0.25, rel=1e-6)


class Evil:
    """Unpickles into a call; must never run."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_weights_that_hold_more_than_tensors_are_refused_unrun(isometry, models, tmp_path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": Evil()}, path)
    done = isometry("measure", f"{models}:scaled", "--input", "4", "--weights", path)
    assert done.code == 1
    assert "state_dict" in done.err
    np.save(tmp_path / "x.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    assert isometry("measure", f"{models}:scaled", "--input", tmp_path / "x.npy").code == 1


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "missing from the file: weight"),
        ({"weight": torch.eye(4), "bias": torch.ones(4)}, "unknown to the model: bias"),
        ({"weight": torch.eye(3)}, "weight is (3, 3) in the file and (4, 4) in the model"),
        (torch.eye(4), "no state dictionary"),
    ],
)
def test_weights_that_do_not_fit_are_named(isometry, models, tmp_path, state, words: str) -> None:
    torch.save(state, tmp_path / "w.pt")
    done = isometry("measure", f"{models}:scaled", "--input", "4", "--weights", tmp_path / "w.pt")
    assert done.code == 1
    assert words in done.err
    assert done.out == ""


# ---- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((1, 8), np.nan), "the input holds NaN or inf"),
        (np.ones((0, 8)), "the input is empty"),
        (np.ones((1, 8), int), "torch.int64, which cannot be differentiated"),
    ],
)
def test_a_bad_input_of_a_built_in_is_named(isometry, tmp_path, array: np.ndarray, words: str) -> None:
    """Built-ins record the ensemble at the mean square of their input, which here there is none of."""
    np.save(tmp_path / "x.npy", array)
    done = isometry("measure", "mlp:depth=2,width=8", "--input", tmp_path / "x.npy")
    assert (done.code, done.out) == (1, "")
    assert words in done.err


@pytest.mark.parametrize(
    ("model", "options", "code", "words"),
    [
        ("batch_norm", "--input 3x6x6", 1, "add --eval"),
        ("dropout", "--input 4", 1, "add --eval"),
        ("Coupled", "--input 4 --inputs 3", 1, "couples the samples"),
        ("Several", "--input 4", 1, "first (1, 4), second (1, 4)"),
        ("Infinite", "--input 4", 1, "NaN or inf"),
        ("Raises", "--input 4", 1, "ValueError: my own trouble"),
        ("cnn", "--input 3x7x7", 1, "(1, 3, 7, 7)"),
        ("cnn", "--input 0x3", 2, "empty"),
        ("cnn", "--input 3x6x6 --source absent", 1, "isometry layers"),
        ("cnn", "--input 3x6x6 --method magic", 2, "magic"),
        ("cnn", "--input 3x6x6 --probes 0", 2, "probes"),
        ("cnn", "--input 3x6x6 --memory-limit lots", 2, "2GiB"),
        ("cnn", "--input picture.jpeg", 2, "there is no image"),
        ("cnn", "--input absent.npy", 2, "there is no input file"),
        ("cnn", "--input 3x6x6 --weights absent.pt", 2, "there is no file of weights"),
        ("cnn", "", 2, "give --input"),
        ("absent", "--input 4", 2, "it defines"),
        ("with_arguments", "--input 4", 2, "needs the arguments width"),
        ("returns_number", "--input 4", 2, "returned a int"),
        ("number", "--input 4", 2, "must be an nn.Module"),
        ("fails", "--input 4", 1, "raised RuntimeError: no such thing"),
        ("cnn", "--input 3x6x6 --overwrite", 2, "-o FILE.h5"),
    ],
)
def test_bad_input_is_named(isometry, models, model: str, options: str, code: int, words: str) -> None:
    done = isometry("measure", f"{models}:{model}", *options.split(), "--json")
    assert done.code == code
    assert words in done.err
    assert done.out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_an_absent_device_is_named(isometry, models) -> None:
    done = isometry("measure", f"{models}:instance", "--input", "4", "--device", "cuda")
    assert done.code == 1
    assert "CUDA" in done.err


@pytest.mark.parametrize(("model", "cure"), [("batch_norm", "3x6x6"), ("dropout", "4")])
def test_the_named_cure_works(isometry, models, model: str, cure: str) -> None:
    assert isometry("measure", f"{models}:{model}", "--input", cure, "--eval").code == 0


@pytest.mark.parametrize("choice", ["first", "second"])
def test_an_output_is_chosen(isometry, models, choice: str) -> None:
    found = isometry("measure", f"{models}:Several", "--input", "4", "--output", choice, "--json").json
    assert found["s_max"] == pytest.approx({"first": 1.0, "second": 2.0}[choice])


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "cannot be read"), (b"not numpy at all", "cannot be read"), (b"\x93NUMPY", "cannot")],
)
def test_damaged_input_files_are_named(isometry, models, tmp_path, content: bytes, words: str) -> None:
    for ending in ("npy", "npz", "pt"):
        path = tmp_path / f"x.{ending}"
        path.write_bytes(content)
        done = isometry("measure", f"{models}:instance", "--input", path)
        assert done.code == 1
        assert words in done.err


def test_integers_are_refused_with_a_cure(isometry, models, tmp_path) -> None:
    np.save(tmp_path / "x.npy", np.arange(4))
    done = isometry("measure", f"{models}:instance", "--input", tmp_path / "x.npy")
    assert done.code == 1
    assert "float" in done.err


def test_files_with_several_arrays_or_too_few_inputs_are_named(isometry, models, tmp_path) -> None:
    np.savez(tmp_path / "two.npz", a=np.ones(4), b=np.ones(4))
    done = isometry("measure", f"{models}:instance", "--input", tmp_path / "two.npz")
    assert done.code in (1, 2)
    assert "a, b" in done.err
    np.save(tmp_path / "x.npy", np.ones((2, 4)))
    done = isometry("measure", f"{models}:instance", "--input", tmp_path / "x.npy", "--inputs", "3")
    assert done.code == 2
    assert "(2, 4)" in done.err
