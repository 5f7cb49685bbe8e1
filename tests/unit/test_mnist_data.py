"""Handwritten digits from every source into a real object store, and one sentence for every wrong file."""

from __future__ import annotations

import gzip
import io
import os
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from semr.errors import DependencyUnavailableError, InvalidInputError
from semr.settings import Settings, get_settings
from semr.storage import DatasetVersion, ObjectStore
from workflow_examples.mnist import data
from workflow_examples.mnist.sources import Quota, images, libraries, open_source
from workflow_examples.mnist.sources.images import to_image

COUNTS = {"train": 30, "t10k": 10}


def digit_set(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Random strokes on black, shape (count, 28, 28), with labels 0, 1, ... 9, 0, ..."""
    pixels = np.zeros((count, 28, 28), np.uint8)
    pixels[:, 4:24, 4:24] = np.random.default_rng(seed).integers(0, 256, (count, 20, 20))
    return pixels, (np.arange(count) % 10).astype(np.uint8)


SETS = {name: digit_set(count, seed) for seed, (name, count) in enumerate(COUNTS.items())}
EVERYTHING = np.concatenate([SETS["train"][0], SETS["t10k"][0]])


def idx_bytes(values: NDArray[np.uint8], magic: int | None = None) -> bytes:
    header = struct.pack(f">{1 + values.ndim}I", magic or (0x800 + values.ndim), *values.shape)
    return header + values.tobytes()


def write_idx(folder: Path, pack: Callable[[bytes], bytes] = bytes, suffix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (pixels, labels) in SETS.items():
        (folder / f"{name}-images-idx3-ubyte{suffix}").write_bytes(pack(idx_bytes(pixels)))
        (folder / f"{name}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(labels)))
    return folder


def arrays() -> dict[str, NDArray[Any]]:
    return {
        "x_train": SETS["train"][0],
        "y_train": SETS["train"][1],
        "x_test": SETS["t10k"][0],
        "y_test": SETS["t10k"][1],
    }


def write_npz(path: Path, **changes: Any) -> Path:
    content = {**arrays(), **changes}
    np.savez(path, **{name: values for name, values in content.items() if values is not None})
    return path


def png(pixels: NDArray[Any], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def image_files() -> dict[str, bytes]:
    """Name to content, in the layout training/class/number.png."""
    return {
        f"{folder}/{label}/{number}.png": png(image)
        for folder, name in (("training", "train"), ("testing", "t10k"))
        for number, (image, label) in enumerate(zip(*SETS[name], strict=True))
    }


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    folder.mkdir(exist_ok=True)
    return folder


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w", extra: tarfile.TarInfo | None = None) -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        if extra is not None:
            archive.addfile(extra)
    return path


def pixels_of(version: DatasetVersion, store: ObjectStore) -> NDArray[np.uint8]:
    column = store.read(version, "all")["image"].combine_chunks()
    pixels: NDArray[np.uint8] = column.flatten().to_numpy().reshape(-1, 28, 28)
    return pixels


def test_digits_are_scaled_like_mnist(store: ObjectStore) -> None:
    version = data.ingest("digits", store=store)
    assert version.name == "mnist-raw" and version.splits == {"all": 1797}
    assert version.schema == (("image", "fixed_size_list<uint8>[784]"), ("label", "int8"))
    assert version.metadata == {"height": "28", "width": "28"}
    table = store.read(version, "all")
    assert table.schema.field("image").type == pa.list_(pa.uint8(), 784)
    pixels = pixels_of(version, store)
    assert pixels.max() == 255 and pixels.min() == 0
    margin = pixels.copy()
    margin[:, 4:24, 4:24] = 0
    assert not margin.any(), "a margin of 4 pixels, as in MNIST"
    assert 0.1 < (pixels > 127).mean() < 0.3, "bright ink on a dark background"
    assert data.rows_per_class(version, store) == dict(enumerate([178, 182, 177, 183, 181, 182, 181, 179, 174, 180]))


def test_digits_keep_their_shape() -> None:
    from sklearn.datasets import load_digits

    counts = load_digits().images[:100]
    shrunk = [
        np.asarray(Image.fromarray(libraries.enlarge(image)[4:24, 4:24]).resize((8, 8), Image.Resampling.BOX))
        for image in counts
    ]
    correlation = np.corrcoef(np.ravel(shrunk), np.ravel(counts))[0, 1]
    assert correlation > 0.97


def test_digits_do_not_import_tensorflow(object_store_settings: Settings, store: ObjectStore) -> None:
    settings = object_store_settings.model_copy(update={"datasets_bucket": store.bucket})
    program = """
import sys
from workflow_examples.mnist.data import main
assert main(["--limit", "20"]) == 0
assert not {"tensorflow", "keras", "torch", "ray", "mlflow"} & set(sys.modules)
"""
    environment = {**settings.contract(), "PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd())}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "quiet when standard error is not a terminal"
    assert "mnist-raw" in result.stdout


def layouts(folder: Path) -> dict[str, Path]:
    """Sources of all layouts that keep the order of the sets, with the same content."""
    write_idx(folder / "plain")
    write_idx(folder / "gz", gzip.compress, ".gz")
    return {
        "IDX folder": folder / "plain",
        "IDX folder, gz": folder / "gz",
        "IDX images": folder / "plain/train-images-idx3-ubyte",
        "IDX labels, gz": folder / "gz/t10k-labels-idx1-ubyte.gz",
        "npz": write_npz(folder / "mnist.npz"),
        "tar": write_tar(folder / "digits.tar", image_files()),
        "tar.gz": write_tar(folder / "digits.tar.gz", image_files(), "w:gz"),
        "tgz": write_tar(folder / "digits.tgz", {f"mnist/{k}": v for k, v in image_files().items()}, "w:gz"),
    }


def test_every_layout_of_the_same_digits_gives_the_same_version(store: ObjectStore, tmp_path: Path) -> None:
    versions = {name: data.ingest(str(path), store=store) for name, path in layouts(tmp_path).items()}
    assert len({version.version for version in versions.values()}) == 1
    version = versions["npz"]
    assert np.array_equal(pixels_of(version, store), EVERYTHING)
    expected = np.concatenate([SETS["train"][1], SETS["t10k"][1]])
    assert store.read(version, "all")["label"].to_numpy().tolist() == expected.tolist()


@pytest.mark.parametrize("prefix", ["", "train/", "mnist_png/training/"])
def test_folders_by_class(store: ObjectStore, tmp_path: Path, prefix: str) -> None:
    pixels, labels = SETS["train"]
    files = {
        f"{prefix}{label}/{n:02}.png": png(image) for n, (image, label) in enumerate(zip(pixels, labels, strict=True))
    }
    junk = {".DS_Store": b"x", "0/notes.txt": b"x", "__MACOSX/0/._00.png": b"x", "0/.hidden.png": b"x"}
    version = data.ingest(str(write_folder(tmp_path / "images", {**files, **junk})), store=store)
    order = np.argsort(labels, kind="stable")
    assert np.array_equal(pixels_of(version, store), pixels[order])
    archive = write_tar(tmp_path / "images.tar", {**dict(sorted(files.items())), **junk})
    assert data.ingest(str(archive), store=store).version == version.version


def test_the_training_set_alone_is_enough(store: ObjectStore, tmp_path: Path) -> None:
    folder = write_idx(tmp_path)
    for path in folder.glob("t10k*"):
        path.unlink()
    assert data.ingest(str(folder), store=store).rows == 30


def test_a_plain_file_is_taken_before_its_compressed_twin(store: ObjectStore, tmp_path: Path) -> None:
    write_idx(tmp_path)
    write_idx(tmp_path, lambda _: b"broken", ".gz")
    assert data.ingest(str(tmp_path), store=store).rows == 40


def test_mnist_npz_of_other_integer_labels(store: ObjectStore, tmp_path: Path) -> None:
    first = data.ingest(str(write_npz(tmp_path / "a.npz")), store=store)
    wide = write_npz(tmp_path / "b.npz", y_train=SETS["train"][1].astype(">i8"))
    with zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays().items():
            buffer = io.BytesIO()
            np.save(buffer, values)
            archive.writestr(f"{name}.npy", buffer.getvalue())
    assert {data.ingest(str(path), store=store).version for path in (wide, tmp_path / "c.npz")} == {first.version}


def test_limit_takes_the_same_share_of_each_class(store: ObjectStore, tmp_path: Path) -> None:
    for path in layouts(tmp_path).values():
        version = data.ingest(str(path), 20, store)
        assert data.rows_per_class(version, store) == dict.fromkeys(range(10), 2)
    assert len(store.versions("mnist-raw")) == 1
    folder = write_folder(tmp_path / "images", image_files())
    assert data.rows_per_class(data.ingest(str(folder), 13, store), store) == {
        label: 1 + (label < 3) for label in range(10)
    }
    assert data.ingest("digits", 1, store).rows == 1
    assert data.ingest(str(folder), 1000, store).rows == 40
    for limit in (0, -1):
        with pytest.raises(InvalidInputError, match="at least 1"):
            data.ingest("digits", limit, store)


def test_other_image_forms_become_mnist_form() -> None:
    bright = np.full((28, 28), 255, np.uint8)
    bright[10:18, 12:16] = 0
    ink = 255 - bright
    assert np.array_equal(to_image(png(bright), "x"), ink), "dark ink on white is inverted"
    assert np.array_equal(to_image(png(ink), "x"), ink)
    assert np.array_equal(to_image(png(np.repeat(ink[..., None], 3, axis=2)), "x"), ink), "colours"
    assert np.array_equal(to_image(png(ink.astype(np.uint16) * 257), "x"), ink), "16 bits"
    opaque = np.dstack([ink, ink, ink, np.full_like(ink, 255)])
    assert np.array_equal(to_image(png(opaque), "x"), ink)
    large = to_image(png(np.kron(ink, np.ones((8, 8), np.uint8))), "x")
    assert large.shape == (28, 28) and np.abs(large.astype(int) - ink).mean() < 8
    wide = to_image(png(np.tile(ink, (1, 2))), "x")
    assert wide.shape == (28, 28) and wide.dtype == np.uint8 and not wide[:6].any(), "proportions are kept"
    assert to_image(png(ink, "JPEG"), "x").shape == (28, 28)
    assert to_image(png(ink[:1, :1]), "x").shape == (28, 28)


Make = Callable[[Path], Path]


def idx_with(name: str, content: bytes | None) -> Make:
    def make(folder: Path) -> Path:
        write_idx(folder / "idx", gzip.compress, ".gz") if name.endswith(".gz") else write_idx(folder / "idx")
        path = folder / "idx" / name
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        return folder / "idx"

    return make


def npz_with(**changes: Any) -> Make:
    return lambda folder: write_npz(folder / "mnist.npz", **changes)


def file_with(name: str, content: bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def folder_with(files: dict[str, bytes]) -> Make:
    return lambda folder: write_folder(folder / "images", files)


def tar_with(files: dict[str, bytes], cut: int | None = None, mode: str = "w", extra: Any = None) -> Make:
    def make(folder: Path) -> Path:
        path = write_tar(folder / ("x.tar.gz" if mode == "w:gz" else "x.tar"), files, mode, extra)
        path.write_bytes(path.read_bytes()[:cut])
        return path

    return make


def damaged_zip(folder: Path) -> Path:
    path = write_npz(folder / "mnist.npz")
    content = bytearray(path.read_bytes())
    at = content.index(SETS["train"][0].tobytes()[:6000])
    content[at + 500 : at + 510] = b"\xff" * 10
    path.write_bytes(content)
    return path


def link(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


def zeros(*shape: int, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.zeros(shape, dtype)


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


TRAIN_IMAGES, TRAIN_LABELS = (idx_bytes(values) for values in SETS["train"])
ONE = png(SETS["train"][0][0])
NOISE = png(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
TRANSPARENT = png(zeros(28, 28, 4))

WRONG: dict[str, tuple[Make, str]] = {
    "missing path": (lambda folder: folder / "nothing", "There is no file or folder .*: expected `digits`, `mnist`"),
    "unknown file": (file_with("digits.csv", b"1,2"), "none of the known names: expected"),
    "idx: truncated gz": (
        idx_with("train-images-idx3-ubyte.gz", gzip.compress(TRAIN_IMAGES)[:-40]),
        "train-images-idx3-ubyte.gz .*expected a complete IDX file",
    ),
    "idx: not gz": (idx_with("train-images-idx3-ubyte.gz", TRAIN_IMAGES), "gz cannot be read .*expected"),
    "idx: damaged gz": (
        idx_with("t10k-images-idx3-ubyte.gz", gzip.compress(idx_bytes(SETS["t10k"][0]))[:300] + bytes(900)),
        "gz cannot be read .*expected",
    ),
    "idx: empty": (idx_with("train-labels-idx1-ubyte", b""), "shorter than its header says: expected"),
    "idx: truncated": (
        idx_with("train-images-idx3-ubyte", TRAIN_IMAGES[:-1]),
        "shorter than its header says: expected",
    ),
    "idx: too long": (
        idx_with("train-labels-idx1-ubyte", TRAIN_LABELS + b"\1"),
        "longer than its header says: expected",
    ),
    "idx: wrong magic": (
        idx_with("train-images-idx3-ubyte", idx_bytes(SETS["train"][0], magic=0xDEADBEEF)),
        "starts with 0xdeadbeef: expected 0x00000803, an IDX file of images",
    ),
    "idx: labels as images": (
        idx_with("train-images-idx3-ubyte", TRAIN_LABELS + bytes(9)),
        "0x00000801: expected 0x00000803",
    ),
    "idx: images as labels": (idx_with("train-labels-idx1-ubyte", TRAIN_IMAGES), "0x00000803: expected 0x00000801"),
    "idx: counts": (
        idx_with("train-labels-idx1-ubyte", idx_bytes(zeros(29))),
        "has 30 images and train-labels-idx1-ubyte has 29 labels: expected as many",
    ),
    "idx: shape": (idx_with("train-images-idx3-ubyte", idx_bytes(zeros(30, 32, 32))), "32x32 pixels: expected 28x28"),
    "idx: label": (
        idx_with("train-labels-idx1-ubyte", idx_bytes(zeros(30) + 10)),
        "label 10: expected labels from 0 to 9",
    ),
    "idx: no partner": (idx_with("train-labels-idx1-ubyte", None), "no file of labels beside it: expected"),
    "npz: not a zip": (file_with("mnist.npz", b"not a zip" * 100), "cannot be read .*expected an .npz file"),
    "npz: empty": (file_with("mnist.npz", b""), "cannot be read .*expected an .npz file"),
    "npz: truncated": (
        lambda folder: file_with("cut.npz", write_npz(folder / "a.npz").read_bytes()[:-500])(folder),
        "cannot be read .*expected an .npz file",
    ),
    "npz: damaged": (damaged_zip, "cannot be read .*expected an .npz file"),
    "npz: missing array": (npz_with(y_test=None), "has no array y_test: expected x_train, y_train, x_test and y_test"),
    "npz: image shape": (npz_with(x_train=zeros(30, 784)), r"uint8 of shape \(30, 784\): expected uint8 of shape"),
    "npz: image type": (npz_with(x_train=zeros(30, 28, 28, dtype=np.float32)), "is float32 of .*: expected uint8"),
    "npz: label shape": (npz_with(y_train=zeros(30, 10)), r"shape \(30, 10\): expected integers of shape"),
    "npz: label type": (npz_with(y_train=zeros(30, dtype=np.float64)), "is float64 .*: expected integers"),
    "npz: objects": (npz_with(y_train=np.array([{}] * 30, dtype=object)), "is object .*: expected integers"),
    "npz: counts": (npz_with(y_train=zeros(29)), "30 images in x_train and 29 labels in y_train: expected as many"),
    "npz: label": (npz_with(y_test=zeros(10, dtype=np.int8) - 1), "label -1: expected labels from 0 to 9"),
    "npz: order": (npz_with(x_test=np.asfortranarray(SETS["t10k"][0])), "column by column: expected row-major"),
    "npz: no arrays": (
        file_with("mnist.npz", zip_of({f"{name}.npy": b"text" for name in arrays()})),
        "not a NumPy array .*expected",
    ),
    "folder: empty": (folder_with({}), "has no images: expected PNG or JPEG images in folders 0 to 9"),
    "folder: no images": (folder_with({"0/a.txt": b"x"}), "has no images: expected"),
    "folder: classes": (folder_with({"zero/a.png": ONE}), "lies in folder 'zero': expected .*folders 0 to 9"),
    "folder: class 10": (folder_with({"10/a.png": ONE}), "lies in folder '10': expected"),
    "folder: no classes": (folder_with({"a.png": ONE}), "lies in folder '': expected"),
    "folder: not an image": (
        folder_with({"3/a.png": b"text"}),
        "3/a.png is not an image: expected a PNG or JPEG",
    ),
    "folder: truncated": (folder_with({"3/a.png": NOISE[:-3000]}), "cannot be read .*expected a complete PNG or JPEG"),
    "folder: empty image": (folder_with({"3/a.jpg": b""}), "is not an image: expected a PNG or JPEG"),
    "folder: transparent": (folder_with({"3/a.png": TRANSPARENT}), "transparent parts: expected an opaque image"),
    "folder: pixels": (folder_with({"3/a.png": png(zeros(5000, 5000))}), "5000x5000 pixels: expected"),
    "tar: not a tar": (file_with("digits.tar", b"no" * 1000), "cannot be read .*expected a complete tar archive"),
    "tar: empty file": (file_with("digits.tar.gz", b""), "expected"),
    "tar: truncated": (
        tar_with({"0/a.png": ONE, "1/b.png": NOISE}, cut=2600),
        "cannot be read .*expected a complete tar",
    ),
    "tar: truncated gz": (tar_with({"1/b.png": NOISE}, 2000, "w:gz"), "cannot be read .*expected a complete tar"),
    "tar: no images": (tar_with({"0/a.txt": b"x"}), "has no images: expected"),
    "tar: classes": (tar_with({"mnist/a/a.png": ONE}), "lies in folder 'a': expected"),
    "tar: not an image": (tar_with({"0/a.png": b"text"}), "Member 0/a.png .* is not an image: expected"),
    "tar: link": (tar_with({"0/a.png": ONE}, extra=link("0/b.png")), "is a link or device: expected image files"),
}


@pytest.fixture
def command(
    store: ObjectStore, object_store_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ObjectStore]:
    """Settings in the environment, as the command finds them; yields the store that they name."""
    for name, value in object_store_settings.contract().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SEMR_DATASETS_BUCKET", store.bucket)
    get_settings.cache_clear()
    yield store
    get_settings.cache_clear()


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_sentence_and_leaves_no_version(
    command: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    make, sentence = WRONG[case]
    path = make(tmp_path)
    with pytest.raises(InvalidInputError, match=sentence) as caught:
        data.ingest(str(path), store=command)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    assert data.main(["--source", str(path)]) == 2
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", f"error: {message}\n")
    assert command.versions("mnist-raw") == []


def test_archives_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", image_files())
    for bound, value, sentence in (
        ("MAX_ARCHIVE_MEMBERS", 5, "too large"),
        ("MAX_ARCHIVE_BYTES", 5000, "too large"),
        ("MAX_IMAGE_BYTES", 100, "Member training/0/0.png .* too large"),
    ):
        with monkeypatch.context() as patch, pytest.raises(InvalidInputError, match=sentence):
            patch.setattr(images, bound, value)
            list(open_source(str(path)).samples(Quota()))


def test_names_in_archives_reach_nothing(store: ObjectStore, tmp_path: Path) -> None:
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    archive = write_tar(inside / "a.tar", {"../../0/evil.png": ONE, f"{tmp_path}/1/evil.png": ONE, "./2/a.png": ONE})
    before = sorted(tmp_path.rglob("*"))
    assert data.rows_per_class(data.ingest(str(archive), store=store), store) == {0: 1, 1: 1, 2: 1}
    assert sorted(tmp_path.rglob("*")) == before


def test_command_says_what_it_stored_and_that_it_was_there(
    command: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(write_npz(tmp_path / "mnist.npz"))
    assert data.main(["--source", source]) == 0
    version = command.dataset("mnist-raw")
    first = capsys.readouterr()
    for part in ("mnist-raw", f"{version.version} (stored)", "40 (0: 4, 1: 4,", version.uri, "mnist.npz"):
        assert part in first.out
    assert first.err == ""
    assert data.main(["--source", source]) == 0
    assert f"{version.version} (was there already" in capsys.readouterr().out
    assert command.versions("mnist-raw") == [version]


def test_progress_bar_goes_to_standard_error(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    data.ingest("digits", 100, store, progress=True)
    assert capsys.readouterr().out == ""


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        data.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("--source", "--limit", "digits", "mnist", "IDX", ".npz", "tar"))


def test_command_names_a_store_that_is_down(
    command: ObjectStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], unused_port: int
) -> None:
    monkeypatch.setenv("SEMR_OBJECT_STORE_ENDPOINT", f"http://127.0.0.1:{unused_port}")
    assert data.main([]) == 1
    assert f"error: object store at http://127.0.0.1:{unused_port} is unavailable" in capsys.readouterr().err


@pytest.fixture
def keras_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for Keras' downloads, which come from a loopback port on which nobody listens."""
    from keras.src.utils import file_utils

    monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(tmp_path))
    monkeypatch.setattr("urllib.request._opener", None)  # it remembers the proxies of its first use
    return tmp_path


def test_mnist_without_network_is_one_sentence(
    keras_home: Path, monkeypatch: pytest.MonkeyPatch, unused_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{unused_port}")
    with pytest.raises(DependencyUnavailableError, match=r"MNIST download .* use the source `digits`") as caught:
        open_source("mnist")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
    assert not list(keras_home.rglob("*.npz"))
    assert socket.getdefaulttimeout() is None


def test_mnist_download_that_stalls_ends(keras_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "DOWNLOAD_STALL_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for variable in ("https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(DependencyUnavailableError, match="timed out"):
            open_source("mnist")


def test_mnist_as_keras_returns_it(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from keras.datasets import mnist

    sets = ((SETS["train"][0], SETS["train"][1]), (SETS["t10k"][0], SETS["t10k"][1]))
    monkeypatch.setattr(mnist, "load_data", lambda: sets)
    version = data.ingest("mnist", store=store)
    assert version.version == data.ingest(str(write_npz(tmp_path / "mnist.npz")), store=store).version
