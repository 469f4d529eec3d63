"""Files made to do harm: nothing outside the file is read or written, no reader hangs, no promise fills the memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from store_samples import measured, predicted

from isometry.cli.entry import run
from isometry.errors import StoreError
from isometry.store import journal, open_store, validate
from isometry.store.digest import DIGEST, digest_of
from isometry.store.elements import checksum
from isometry.store.journal import journal_path

SECRET = b"the password is swordfish" * 4


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("hostile") / "original.h5"
    store = open_store(path, "a")
    store.add(measured())
    store.add(measured(1, name="other"))
    store.add_series("curve", {"step": [1, 2], "loss": [0.5, 0.25]})
    return path.read_bytes()


@pytest.fixture
def stored(original, tmp_path) -> Path:
    path = tmp_path / "a.h5"
    path.write_bytes(original)
    (tmp_path / "secret").write_bytes(SECRET)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["nodes"] = np.full((2, 3, 5), 7.0)
        other.create_group("group")
    return path


def seal(group: h5py.Group) -> None:
    """Checksums and digest of what is there now, as whoever makes a file to deceive would write them."""
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            dataset = group[name]
            if (
                isinstance(dataset, h5py.Dataset)
                and not dataset.external
                and dataset.dtype.kind in "fiub"
                and (dataset.size or 10**6) < 10**6
            ):
                dataset.attrs["crc32"] = np.uint32(checksum(dataset[...]))
    try:
        group.attrs[DIGEST] = digest_of(group)
    except StoreError:
        group.attrs[DIGEST] = "0" * 64


def replace(group: h5py.Group, name: str, **options) -> h5py.Dataset:
    """A dataset of the same meaning with other properties, in the place of one that is there."""
    kept = dict(group[name].attrs)
    shape, dtype = options.pop("shape", group[name].shape), options.pop("dtype", group[name].dtype)
    del group[name]
    dataset = group.create_dataset(name, shape, dtype, **options)
    for key, value in kept.items():
        if key not in ("DIMENSION_LIST", "CLASS", "REFERENCE_LIST", "NAME"):
            dataset.attrs[key] = value
    return dataset


def external(group: h5py.Group, name: str = "nodes") -> None:
    folder = Path(group.file.filename).parent
    replace(group, name, external=[(str(folder / "secret"), 0, 8 * 30)])


def external_pipe(group: h5py.Group) -> None:
    folder = Path(group.file.filename).parent
    os.mkfifo(folder / "pipe")
    replace(group, "nodes", external=[(str(folder / "pipe"), 0, 8 * 30)])


def virtual(group: h5py.Group) -> None:
    layout = h5py.VirtualLayout((2, 3, 5), "f8")
    layout[...] = h5py.VirtualSource(str(Path(group.file.filename).parent / "other.h5"), "nodes", (2, 3, 5))
    del group["nodes"]
    group.create_virtual_dataset("nodes", layout)


def endless_virtual(group: h5py.Group) -> None:
    """One whose very shape is found by opening as many other files as there are."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    space = h5py.h5s.create_simple((0, 3, 5), (h5py.h5s.UNLIMITED, 3, 5))
    space.select_hyperslab((0, 0, 0), (h5py.h5s.UNLIMITED, 1, 1), block=(1, 3, 5))
    properties.set_virtual(space, b"other-%b.h5", b"nodes", h5py.h5s.create_simple((1, 3, 5)))
    del group["nodes"]
    h5py.h5d.create(group.id, b"nodes", h5py.h5t.IEEE_F64LE, space, properties)


def soft(group: h5py.Group) -> None:
    del group["nodes"]
    group["nodes"] = h5py.SoftLink("weights")


def dangling(group: h5py.Group) -> None:
    del group["nodes"]
    group["nodes"] = h5py.SoftLink("/nowhere")


def circle(group: h5py.Group) -> None:
    del group["nodes"]
    group["nodes"] = h5py.SoftLink(f"{group.name}/nodes")


def external_link(group: h5py.Group) -> None:
    del group["nodes"]
    group["nodes"] = h5py.ExternalLink("other.h5", "nodes")


def external_scale(group: h5py.Group) -> None:
    del group["node"]
    group["node"] = h5py.ExternalLink("other.h5", "nodes")


def additional(group: h5py.Group) -> None:
    """Where no reader looks, but the digest does."""
    group["more"] = h5py.ExternalLink("other.h5", "nodes")


def committed(group: h5py.Group) -> None:
    group.file["type"] = np.dtype("f8")
    replace(group, "nodes", dtype=group.file["type"])


def named_type(group: h5py.Group) -> None:
    del group["nodes"]
    group["nodes"] = np.dtype("f8")


def references(group: h5py.Group) -> None:
    replace(group, "nodes", dtype=h5py.ref_dtype)


def regions(group: h5py.Group) -> None:
    replace(group, "nodes", dtype=h5py.regionref_dtype)


def texts(group: h5py.Group) -> None:
    replace(group, "nodes", dtype=h5py.string_dtype())


def compound(group: h5py.Group) -> None:
    replace(group, "nodes", dtype=np.dtype([("re", "f8"), ("im", "f8")]))


def reference_attribute(group: h5py.Group) -> None:
    group.attrs["model"] = group["nodes"].ref


def region_attribute(group: h5py.Group) -> None:
    group.attrs["model"] = group["nodes"].regionref[0]


def many_texts(group: h5py.Group) -> None:
    group.attrs.create("model", ["x" * 1000] * 500, dtype=h5py.string_dtype())


def empty_attribute(group: h5py.Group) -> None:
    group.attrs["model"] = h5py.Empty("f8")


def filtered(group: h5py.Group) -> None:
    """A filter that HDF5 has built in and isometry does not use."""
    replace(group, "nodes", dtype="i4", chunks=(2, 3, 5), scaleoffset=0)


def plugin(group: h5py.Group) -> None:
    """A filter for which HDF5 would load a library."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((2, 3, 5))
    properties.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (1, 2, 3))
    del group["nodes"]
    space = h5py.h5s.create_simple((2, 3, 5))
    h5py.h5d.create(group.id, b"nodes", h5py.h5t.IEEE_F64LE, space, properties)


def huge(group: h5py.Group) -> None:
    """8 TB of fill values, of which the file holds none, and everything agrees on the shape."""
    for name in ("nodes", "weights"):
        replace(group, name, shape=(2, 3, 2**37), chunks=(1, 1, 4096), compression="gzip")
    replace(group, "node", shape=(2**37,), chunks=(4096,))


def huge_scale(group: h5py.Group) -> None:
    replace(group, "node", shape=(2**40,), chunks=(4096,))


def huge_contiguous(group: h5py.Group) -> None:
    """Space that was promised and never allocated."""
    replace(group, "nodes", shape=(2, 3, 2**37))


def huge_chunk(group: h5py.Group) -> None:
    """Few numbers, in one chunk that unpacks to 50 MB."""
    replace(group, "nodes", chunks=(2, 3, 2**20), maxshape=(2, 3, None), compression="gzip")[0, 0, 0] = 1.0


def bomb(group: h5py.Group) -> None:
    """What gzip can pack into the file, in a shape that nothing else has."""
    dataset = replace(group, "nodes", shape=(2, 3, 2**20), chunks=(2, 3, 2**20), compression="gzip")
    dataset[...] = 0.0


def one_number(group: h5py.Group) -> None:
    replace(group, "nodes", shape=())


def no_numbers(group: h5py.Group) -> None:
    del group["nodes"]
    group["nodes"] = h5py.Empty("f8")


def many_dimensions(group: h5py.Group) -> None:
    replace(group, "nodes", shape=(1,) * 30)


ELEMENTS = [
    external, external_pipe, virtual, endless_virtual, soft, dangling, circle, external_link, external_scale,
    additional, committed, named_type, references, regions, texts, compound, reference_attribute, region_attribute,
    many_texts, empty_attribute, filtered, plugin, huge, huge_scale, huge_contiguous, huge_chunk, bomb, one_number,
    no_numbers, many_dimensions,
]  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("change", ELEMENTS, ids=lambda change: change.__name__)
def test_an_element_that_leads_outside_or_promises_too_much_is_refused_and_the_others_are_read(
    change, stored
):
    with h5py.File(stored, "r+") as file:
        change(file["spectra/measured"])
        seal(file["spectra/measured"])
    store = open_store(stored)
    with pytest.raises(StoreError) as refusal:
        store["measured"]
    assert "swordfish" not in str(refusal.value)
    problems = validate(stored)
    assert problems
    assert all(problem.startswith("spectra/measured") for problem in problems), problems
    assert "swordfish" not in str(problems)
    assert store.names() == ["measured", "other"]
    assert store["other"].name == "other"
    assert store.series("curve")["loss"][0] == 0.5
    # It can be got rid of, whatever it is.
    writer = open_store(stored, "a")
    writer.add(measured(), overwrite=True)
    assert writer.validate() == []
    assert (stored.parent / "secret").read_bytes() == SECRET


@pytest.mark.parametrize(
    "change", [external, virtual, external_link, soft, huge_contiguous], ids=lambda c: c.__name__
)
def test_a_series_that_leads_outside_is_neither_read_nor_added_to(change, stored):
    with h5py.File(stored, "r+") as file:
        group = file["series/curve"]
        group.move("loss", "nodes")
        if change is external:
            folder = stored.parent
            replace(group, "nodes", external=[(str(folder / "secret"), 0, 16)])
        elif change is huge_contiguous:
            replace(group, "nodes", shape=(2**40,))
        else:
            change(group)
        seal(group)
    store = open_store(stored, "a")
    for act in (
        lambda: store.series("curve"),
        lambda: store.append_series("curve", {"step": [3], "nodes": [1.0]}),
    ):
        with pytest.raises(StoreError):
            act()
    assert [problem.split(":")[0].split("/")[0] for problem in validate(stored)] == ["series"]
    assert (stored.parent / "secret").read_bytes() == SECRET


@pytest.mark.parametrize("kind", ["spectra", "series"])
@pytest.mark.parametrize(
    "link",
    [
        h5py.ExternalLink("other.h5", "/group"),
        h5py.SoftLink("/kept"),
        h5py.SoftLink("/"),
        np.dtype("f8"),
        np.arange(3),
    ],
    ids=["external", "soft", "root", "type", "dataset"],
)
def test_the_group_of_all_elements_is_not_followed_elsewhere(kind, link, stored):
    with h5py.File(stored, "r+") as file:
        file.move(kind, "kept")
        file[kind] = link
    store = open_store(stored)
    with pytest.raises(StoreError, match=kind):
        store.names() if kind == "spectra" else store.series_names()
    with pytest.raises(StoreError, match=kind):
        open_store(stored, "a").add(measured(), name="new")
    assert any(kind in problem for problem in validate(stored))


def test_a_hard_link_to_a_group_above_is_a_problem_and_no_endless_walk(stored):
    with h5py.File(stored, "r+") as file:
        file["spectra/up"] = file["spectra"]
        file["spectra/measured/up"] = file["/"]
    store = open_store(stored)
    assert store["measured"].name == "measured"
    with pytest.raises(StoreError, match="no encoding type"):
        store["up"]
    assert len(validate(stored)) == 1


def test_names_that_are_no_text_keep_nobody_from_the_others(stored, capsys):
    with h5py.File(stored, "r+") as file:
        h5py.h5g.create(file["spectra"].id, b"\xff\x1b[31m")
        attribute = h5py.h5a.create(
            file["spectra/other"].id, b"\xfe\x1b", h5py.h5t.NATIVE_INT32, h5py.h5s.create(h5py.h5s.SCALAR)
        )
        attribute.write(np.array(1, "i4"))
    store = open_store(stored, "a")
    assert store.names() == ["measured", "other", "\udcff\x1b[31m"]
    assert store["measured"].name == "measured"
    with pytest.raises(StoreError, match="attributes, names or types changed"):
        store["other"]
    for command in ("list", "validate", "table"):
        assert run([command, str(stored)]) == 4
        said = capsys.readouterr()
        assert "\x1b" not in said.out + said.err
    for problem in validate(stored):
        assert "TypeError" not in problem
    assert store.add(measured(), name="new") == "new"


@pytest.mark.parametrize(
    "strange", ["measured\0x", "measured/nodes", ".", "measured/../measured", "\ud800", ""]
)
def test_a_name_is_no_path(strange, stored):
    with pytest.raises(StoreError, match="no spectrum named"):
        open_store(stored)[strange]


def test_a_hostile_file_of_8_terabytes_is_refused_in_little_memory(stored):
    open_store(stored, "a").add(predicted())
    with h5py.File(stored, "r+") as file:
        for name in ("measured", "predicted"):
            keys = ("nodes", "node") if name == "measured" else ("cdf", "log_s", "density")
            for key in keys:
                group = file["spectra"][name]
                replace(
                    group,
                    key,
                    shape=(*group[key].shape[:-1], 2**40),
                    chunks=(1,) * (group[key].ndim - 1) + (4096,),
                )
            seal(file["spectra"][name])
    code = (
        "import resource, sys; from isometry.cli import main\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "import isometry.spectrum, isometry.store, isometry.report.tables\n"
        "loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for command in ('list', 'validate'):\n"
        "    try: main([command, sys.argv[1]])\n"
        "    except SystemExit as end: assert end.code in (0, 4), end.code\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - loaded)"
    )
    done = subprocess.run([sys.executable, "-c", code, stored], capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) < 50_000  # kB


# ---- what is no regular file -------------------------------------------------------------------------


@pytest.fixture(
    params=["pipe", "device", "terminal", "socket", "link to a pipe", "link to a device", "stdin"]
)
def irregular(request, tmp_path) -> Iterator[Path]:
    path = tmp_path / "a.h5"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "device":
        path = Path("/dev/zero")
    elif request.param == "terminal":
        path = Path("/dev/tty")
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as held:
            held.bind(str(path))
    elif request.param == "stdin":
        # Standard input of most programs in a script, and of this test.
        read, write = os.pipe()
        yield Path(f"/dev/fd/{read}")
        os.close(read), os.close(write)
        return
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe" if "pipe" in request.param else "/dev/random")
    yield path


@pytest.mark.timeout(20)
@pytest.mark.parametrize("mode", ["r", "a", "w"])
def test_a_pipe_a_device_or_a_socket_is_refused_at_once(mode, irregular):
    with pytest.raises(StoreError, match=r"is a (pipe|device|socket): spectra are kept in regular files"):
        open_store(irregular, mode)
    assert "regular files" in validate(irregular)[0]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("command", ["list", "show", "validate", "report", "table", "plot"])
def test_no_command_waits_for_a_pipe(command, tmp_path, monkeypatch, capsys):
    os.mkfifo(tmp_path / "a.h5")
    monkeypatch.chdir(tmp_path)
    arguments = {"show": ["x"], "plot": ["--x", "depth"]}.get(command, [])
    assert run([command, "a.h5", *arguments]) != 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "~nobody-of-this-name/a.h5"])
def test_a_path_that_is_none(path):
    with pytest.raises(StoreError):
        open_store(path)
    assert len(validate(path)) == 1


def test_links_in_a_circle(tmp_path):
    (tmp_path / "a.h5").symlink_to("b.h5")
    (tmp_path / "b.h5").symlink_to("a.h5")
    for mode in ("r", "a"):
        with pytest.raises(StoreError):
            open_store(tmp_path / "a.h5", mode)


# ---- journals made by hand ----------------------------------------------------------------------------


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "link", "dangling link", "folder"])
def test_what_stands_in_the_place_of_the_journal_is_neither_waited_for_nor_written_through(kind, stored):
    beside = journal_path(stored)
    target = stored.parent / "secret"
    if kind == "pipe":
        os.mkfifo(beside)
    elif kind == "folder":
        beside.mkdir()
    else:
        target = target if kind == "link" else stored.parent / "absent"
        beside.symlink_to(target)
    for act in (
        lambda: open_store(stored),
        lambda: open_store(stored, "a").add(measured(), name="new"),
        lambda: open_store(stored, "w"),
    ):
        with pytest.raises(StoreError, match=r"\.a\.h5\.journal|is a folder"):
            act()
    assert not (stored.parent / "absent").exists()
    assert (stored.parent / "secret").read_bytes() == SECRET


@pytest.mark.parametrize(
    "made",
    [
        journal.Journal(2**43, 2**43, ()),
        journal.Journal(0, 2**43, ()),
        journal.Journal(-1, -1, ()),
        journal.Journal(-1, -1, (journal.Change(2**40, b"x"),)),
    ],
)
def test_a_journal_made_by_hand_does_not_make_the_file_grow(made, stored):
    size = stored.stat().st_size
    made = journal.Journal(
        *(size if n == -1 else n for n in (made.extended_size, made.final_size)), made.changes
    )
    journal_path(stored).write_bytes(journal._pack(made))
    assert open_store(stored).validate() == []
    assert stored.stat().st_size == size
    assert not journal_path(stored).exists()


@pytest.mark.parametrize("body", [b"", b"\xff" * 7, b"\xff" * 24, b"\0" * 24 + b"\1"])
def test_a_journal_of_nonsense_with_a_digest_is_dropped(body, stored):
    import hashlib

    packed = journal._MAGIC + body
    journal_path(stored).write_bytes(packed + hashlib.sha256(packed).digest())
    assert open_store(stored).validate() == []
    assert not journal_path(stored).exists()
