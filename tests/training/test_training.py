"""Training: the update against one written out by hand, resuming bit for bit, divergence, records."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from isometry.errors import InputError, NonFiniteError, StoreError
from isometry.nn.models import VanillaCNN
from isometry.spectrum import Spectrum
from isometry.store import open_store
from isometry.training import checkpoint
from isometry.training.checkpoint import load_checkpoint
from isometry.training.data import Dataset
from isometry.training.loop import _plan, accuracy, train
from isometry.training.options import TrainingOptions, learning_rate
from isometry.training.record import TrainingRecord, curve_names, read_record, record_from, write_record
from isometry.training.updates import make_optimizer, signal_scales


def two_classes(count: int = 96, size: int = 4) -> Dataset:
    """Images whose left or right half is bright: a linear map separates them."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % 2
    images = 0.3 * torch.randn((count, 1, size, size), generator=generator)
    images[labels == 0, ..., : size // 2] += 1.0
    images[labels == 1, ..., size // 2 :] += 1.0
    images = (images - images.mean()) / images.std()
    return Dataset("halves", images[32:], labels[32:], images[:32], labels[:32], 2)


def network(seed: int = 0, depth: int = 6, **options: object) -> VanillaCNN:
    arguments: dict = {"in_channels": 1, "num_classes": 2, "image_size": 4, **options}
    return VanillaCNN(depth, 4, seed=seed, **arguments)


def curves(record: TrainingRecord) -> dict[str, np.ndarray]:
    return {name: getattr(record, name) for name in curve_names() if name != "seconds"}


def test_one_step_of_gradient_descent_is_the_step_written_out_by_hand() -> None:
    dataset = two_classes()
    options = TrainingOptions(
        steps=1, batch=64, learning_rate=0.05, momentum=0.0, clip_norm=None, signal_units=False
    )
    model, reference = network(), network()
    # One batch is the whole training set, so its order does not matter beyond rounding.
    loss = nn.functional.cross_entropy(reference(dataset.train_images), dataset.train_labels)
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in reference.parameters()))
    record = train(model, dataset, options=options, progress=False)
    assert record.loss[0] == pytest.approx(loss.item(), rel=1e-5)
    assert record.gradient_norm[0] == pytest.approx(norm, rel=1e-4)
    for moved, kept in zip(model.parameters(), reference.parameters(), strict=True):
        # 1e-5 of the step's size: the order of summation within the batch differs.
        size = 0.05 * float(kept.grad.norm())
        assert float((moved - (kept - 0.05 * kept.grad)).detach().norm()) <= 1e-4 * size + 1e-6


def test_signal_units_are_plain_descent_in_the_rescaled_parameter() -> None:
    dataset = two_classes()
    model, reference = network(), network()
    unit = math.sqrt(model.q_star)
    scales = signal_scales(model)
    assert set(scales.values()) == {unit}
    assert set(scales) == {"stem.0.weight", "stem.0.bias"} | {f"trunk.{layer}.bias" for layer in range(6)}
    nn.functional.cross_entropy(reference(dataset.train_images), dataset.train_labels).backward()
    options = TrainingOptions(steps=1, batch=64, learning_rate=0.05, momentum=0.9, clip_norm=1e-2)
    record = train(model, dataset, options=options, progress=False)
    gradients = {name: p.grad * scales.get(name, 1.0) for name, p in reference.named_parameters()}
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    assert norm > 1e-2, "the clip must be active for this test to see it"
    assert record.gradient_norm[0] == pytest.approx(norm, rel=1e-4)
    start = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        step = -0.05 * scales.get(name, 1.0) * (1e-2 / norm) * gradients[name]
        # float32 weights of order 1 carry 6e-8 each; the step itself is right to 1e-4.
        bound = 1e-4 * float(step.norm()) + 1e-7 * math.sqrt(step.numel())
        assert float((parameter.detach() - start[name].detach() - step).norm()) <= bound, name


def test_a_deep_orthogonal_network_learns_and_its_record_says_so(tmp_path: Path) -> None:
    dataset = two_classes()
    path = tmp_path / "run.h5"
    options = TrainingOptions(steps=40, batch=32, learning_rate=0.01, evaluate_every=20)
    record = train(network(depth=30), dataset, options=options, record_path=path, progress=False)
    assert record.evaluation_step.tolist() == [0, 20, 40]
    assert record.test_accuracy[-1] == 1.0
    assert record.loss[-1] < 0.5 * record.loss[0]
    again = read_record(path)
    for name in curve_names():
        np.testing.assert_array_equal(getattr(again, name), getattr(record, name))
    assert again.about["options"]["learning_rate"] == 0.01
    assert again.about["ensemble"]["depth"] == 30


class Killed(Exception):
    pass


class KillAt:
    """A callback that ends the run as a signal would: nothing after it is executed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, model: nn.Module, step: int) -> None:
        if step == self.step:
            raise Killed


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("killed_at", [7, 12])
def test_a_run_killed_and_resumed_is_the_same_run_bit_for_bit(
    tmp_path: Path, optimizer: str, killed_at: int
) -> None:
    dataset = two_classes()
    options = TrainingOptions(
        steps=15, batch=24, evaluate_every=4, checkpoint_every=3, optimizer=optimizer, schedule="cosine"
    )
    whole_model = network()
    whole = train(whole_model, dataset, options=options, progress=False)
    path = tmp_path / "run.h5"
    with pytest.raises(Killed):
        train(
            network(),
            dataset,
            options=options,
            record_path=path,
            callbacks=[KillAt(killed_at)],
            progress=False,
        )
    assert read_record(path).steps == 3 * (killed_at // 3)
    resumed_model = network(seed=99)  # Its weights must come from the checkpoint, not from its seed.
    resumed = train(resumed_model, dataset, options=options, record_path=path, resume=True, progress=False)
    for name, values in curves(whole).items():
        np.testing.assert_array_equal(curves(resumed)[name], values, err_msg=name)
    for one, other in zip(whole_model.parameters(), resumed_model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert read_record(path).steps == 15


def test_dropout_masks_go_on_where_they_stopped(tmp_path: Path) -> None:
    dataset = two_classes()

    def model() -> nn.Module:
        torch.manual_seed(5)
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 2))

    options = TrainingOptions(steps=8, batch=16, checkpoint_every=2, learning_rate=0.1)
    whole = train(model(), dataset, options=options, progress=False)
    path = tmp_path / "run.h5"
    with pytest.raises(Killed):
        train(model(), dataset, options=options, record_path=path, callbacks=[KillAt(5)], progress=False)
    resumed = train(model(), dataset, options=options, record_path=path, resume=True, progress=False)
    np.testing.assert_array_equal(resumed.loss, whole.loss)


def test_a_diverging_run_names_the_step_and_keeps_a_good_checkpoint(tmp_path: Path) -> None:
    class Poison:
        def on_step(self, model: nn.Module, step: int) -> None:
            if step == 5:
                with torch.no_grad():
                    model.head.weight.fill_(math.nan)

    path = tmp_path / "run.h5"
    options = TrainingOptions(steps=10, batch=32, checkpoint_every=2)
    with pytest.raises(NonFiniteError, match=r"step 5: loss nan.*after 4 updates.*run\.h5\.checkpoint"):
        train(
            network(), two_classes(), options=options, record_path=path, callbacks=[Poison()], progress=False
        )
    state = torch.load(f"{path}.checkpoint", weights_only=True)
    assert state["step"] == 4
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    record = read_record(path)
    assert record.steps == 6
    assert math.isnan(record.loss[5])
    assert np.isfinite(record.loss[:5]).all()


def test_weights_that_overflow_are_not_kept_as_the_last_good_ones(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    options = TrainingOptions(steps=50, batch=32, checkpoint_every=1, clip_norm=None, learning_rate=1e30)
    with pytest.raises(NonFiniteError):
        train(network(activation="relu"), two_classes(), options=options, record_path=path, progress=False)
    state = Path(f"{path}.checkpoint")
    if state.exists():
        model = network(activation="relu")
        model.load_state_dict(torch.load(state, weights_only=True)["model"])
        assert torch.isfinite(model(two_classes().test_images)).all()


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    dataset, path = two_classes(), tmp_path / "run.h5"
    train(network(), dataset, options=TrainingOptions(steps=2), record_path=path, progress=False)
    other = TrainingOptions(steps=2, learning_rate=0.5)
    with pytest.raises(InputError, match=r"learning_rate was 0\.001 and is 0\.5"):
        train(network(), dataset, options=other, record_path=path, resume=True, progress=False)
    with pytest.raises(InputError, match="ensemble"):
        train(
            network(depth=7),
            dataset,
            options=TrainingOptions(steps=2),
            record_path=path,
            resume=True,
            progress=False,
        )
    # More steps at a constant learning rate are a continuation.
    longer = train(
        network(), dataset, options=TrainingOptions(steps=4), record_path=path, resume=True, progress=False
    )
    straight = train(network(), dataset, options=TrainingOptions(steps=4), progress=False)
    np.testing.assert_array_equal(longer.loss, straight.loss)
    with pytest.raises(InputError, match="4 steps into its run, beyond the 3"):
        train(
            network(),
            dataset,
            options=TrainingOptions(steps=3),
            record_path=path,
            resume=True,
            progress=False,
        )


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    Path(f"{path}.checkpoint").write_bytes(b"nothing of the kind")
    with pytest.raises(StoreError, match="cannot be read as a checkpoint"):
        train(network(), two_classes(), record_path=path, resume=True, progress=False)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A checkpoint after 4 updates, and the one before it, after 2."""
    path = tmp_path_factory.mktemp("checkpoints") / "run.h5"
    options = TrainingOptions(steps=4, batch=16, checkpoint_every=2, optimizer="adam")
    train(network(), two_classes(), options=options, record_path=path, progress=False)
    return Path(f"{path}.checkpoint")


def resumed(path: Path) -> tuple[int, dict[str, list[float]]]:
    options = TrainingOptions(steps=4, batch=16, checkpoint_every=2, optimizer="adam")
    model = network()
    optimizer, _ = make_optimizer(model, list(model.parameters()), options)
    return load_checkpoint(path, model, optimizer, _plan(model, two_classes(), options))


def copied(checkpoints: Path, folder: Path) -> Path:
    for suffix in ("", ".previous"):
        shutil.copy(f"{checkpoints}{suffix}", folder / f"c{suffix}")
    return folder / "c"


def test_one_flipped_bit_anywhere_in_a_checkpoint_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    path = copied(checkpoints, tmp_path)
    whole = path.read_bytes()
    assert resumed(path)[0] == 4
    generator = np.random.default_rng(0)
    # Every 31st byte was tried once; a few of them tell as much of the digest.
    places = [*range(0, len(whole), 2999), *range(len(whole) - 110, len(whole), 11)]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << generator.integers(8)
        path.write_bytes(changed)
        with pytest.raises(StoreError, match=r"after 2 updates, is .*c\.previous"):
            resumed(path)
    path.write_bytes(whole)
    assert resumed(path)[0] == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-80],
        lambda data: data + b"\0",
        lambda data: b"",
        lambda data: data[:1000] + bytes(512) + data[1512:],
        lambda data: data[512:1024] + data[:512] + data[1024:],
    ],
    ids=["a byte short", "half", "digest cut", "longer", "empty", "a block of zeros", "blocks exchanged"],
)
def test_a_checkpoint_torn_in_other_ways_is_refused_too(change, checkpoints: Path, tmp_path: Path) -> None:
    path = copied(checkpoints, tmp_path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(StoreError, match=r"after 2 updates, is .*c\.previous"):
        resumed(path)
    # What the message says works.
    os.replace(f"{path}.previous", path)
    assert resumed(path)[0] == 2


def test_the_last_good_checkpoint_is_not_named_where_it_is_damaged_too(
    checkpoints: Path, tmp_path: Path
) -> None:
    path = copied(checkpoints, tmp_path)
    for place in (path, Path(f"{path}.previous")):
        place.write_bytes(place.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError) as refusal:
        resumed(path)
    assert "last good" not in str(refusal.value)


def test_a_checkpoint_that_reads_back_otherwise_takes_nobodys_place(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied(checkpoints, tmp_path)
    before = {place.name: place.read_bytes() for place in tmp_path.iterdir()}
    model = network()
    optimizer, _ = make_optimizer(model, list(model.parameters()), TrainingOptions())
    seal = checkpoint._seal

    def torn(draft: Path) -> None:
        seal(draft)
        data = bytearray(draft.read_bytes())
        data[len(data) // 3] ^= 4
        draft.write_bytes(data)

    monkeypatch.setattr(checkpoint, "_seal", torn)
    with pytest.raises(StoreError, match="other bytes than were written"):
        checkpoint.save_checkpoint(path, model, optimizer, {}, 5, {})
    assert {place.name: place.read_bytes() for place in tmp_path.iterdir()} == before


def test_a_checkpoint_without_digest_by_an_earlier_version_is_resumed(
    checkpoints: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c"
    state = torch.load(checkpoints, weights_only=True)
    torch.save({**state, "version": 1}, path)
    assert resumed(path)[0] == 4
    # A newer one that has lost its digest is not taken for an older one.
    torch.save(state, path)
    with pytest.raises(StoreError, match="SHA-256"):
        resumed(path)


def test_learning_rates_follow_their_schedules() -> None:
    linear = TrainingOptions(steps=12, learning_rate=0.6, schedule="linear", warmup=2)
    assert [learning_rate(linear, step) for step in (0, 1, 2, 7)] == pytest.approx([0.3, 0.6, 0.6, 0.3])
    cosine = TrainingOptions(steps=8, learning_rate=1.0, schedule="cosine")
    assert [learning_rate(cosine, step) for step in (0, 2, 4, 6)] == pytest.approx(
        [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]
    )
    assert learning_rate(TrainingOptions(), 150) == 1e-3


def test_every_image_is_seen_once_an_epoch() -> None:
    seen: list[torch.Tensor] = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.append(x.detach()[:, 0].clone())
            return super().forward(x)

    images = torch.arange(64.0).reshape(64, 1, 1, 1)
    labels = torch.arange(64) % 2
    dataset = Dataset("numbers", images, labels, images[:4], labels[:4], 2)
    model = nn.Sequential(nn.Flatten(), Watched(1, 2))
    train(model, dataset, options=TrainingOptions(steps=8, batch=16), progress=False)
    epochs = torch.cat(seen).reshape(2, 64)
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(64))
    assert not torch.equal(epochs[0], epochs[1])


def test_accuracy_counts_the_last_incomplete_batch() -> None:
    images = torch.randn(700, 1, 1, 1)
    labels = (images.flatten() > 0).long()
    labels[-100:] = 1 - labels[-100:]
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0], [1.0]]))
    assert accuracy(model, images, labels) == pytest.approx(600 / 700)


def test_the_mode_of_the_model_is_left_as_it_was() -> None:
    model = network().eval()
    train(model, two_classes(), options=TrainingOptions(steps=1), progress=False)
    assert not model.training


def test_a_record_stands_beside_the_spectra_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    store = open_store(path, "a")
    store.add(Spectrum.from_singular_values([2.0, 1.0]), name="before")
    one = {name: np.array([1.0]) for name in curve_names()}
    write_record(path, record_from({**one, "loss": np.array([4.0])}, {}))
    write_record(path, record_from({**one, "loss": np.array([3.0])}, {"options": {"steps": 1}}))
    record = read_record(path)
    assert record.loss.tolist() == [3.0]
    assert record.about["options"] == {"steps": 1}
    assert store["before"].s_max == 2.0
    assert store.series("training").units["seconds"] == "s"
    assert store.validate() == []


def test_reading_a_record_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    store = open_store(path, "a")
    with pytest.raises(StoreError, match="no series named 'training'"):
        read_record(path)
    store.add_series("training", {"step": np.arange(3)})
    store.add_series("training evaluation", {"step": np.arange(3)})
    with pytest.raises(StoreError, match="no training record"):
        read_record(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": -1}, "steps must be"),
        ({"batch": 0}, "batch must be"),
        ({"learning_rate": math.nan}, "learning_rate must be"),
        ({"optimizer": "sdg"}, "one of sgd, adam"),
        ({"schedule": "step"}, "one of constant"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"clip_norm": 0.0}, "clip_norm must be"),
        ({"train_images": 0}, "train_images must be"),
    ],
)
def test_options_out_of_range_say_so(wrong: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingOptions(**wrong)


def test_a_cuda_graph_needs_cuda() -> None:
    with pytest.raises(InputError, match="CUDA device"):
        train(network(), two_classes(), options=TrainingOptions(cuda_graph=True), progress=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the captured step is not tested")
def test_a_captured_step_is_the_step() -> None:
    results = []
    for cuda_graph in (False, True):
        options = TrainingOptions(steps=6, batch=32, cuda_graph=cuda_graph)
        results.append(train(network(device="cuda"), two_classes(), options=options, progress=False))
    # Kernels may be chosen differently under capture: equal to float32 rounding, amplified by six steps.
    np.testing.assert_allclose(results[0].loss, results[1].loss, rtol=1e-4)
