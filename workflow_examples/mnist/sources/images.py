"""Images sorted by class: PNG or JPEG files in folders 0 to 9, on disk or in a tar archive.

The class folders may lie below others, as in `training/7/x.png`. Archives are read as a stream: nothing is extracted to
disk, so names and links in them cannot reach anything, and sizes are bounded.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath, PurePosixPath

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from semr.errors import InvalidInputError
from workflow_examples.mnist.sources.samples import CLASSES, HEIGHT, WIDTH, Image, Quota, Sample, Source

MAX_IMAGE_BYTES = 16 * 2**20
MAX_IMAGE_PIXELS = 4096 * 4096
# MNIST as PNG files is 70,000 members and 110 MB. These bounds stop an archive that unpacks into the disk's size.
MAX_ARCHIVE_MEMBERS = 2_000_000
MAX_ARCHIVE_BYTES = 16 * 2**30

_ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_EXPECTED = "PNG or JPEG images in folders 0 to 9, such as training/7/one.png"


def is_archive(path: Path) -> bool:
    """Whether the file has a name as tar archives have it."""
    return path.name.lower().endswith(_ARCHIVE_SUFFIXES)


def open_folder(folder: Path) -> Source:
    """All images below the folder, in the order of their names.

    Raises:
        InvalidInputError: there are no images, or one is not in a class folder.
    """
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    found = sorted((name for name in names if _is_image(name)), key=lambda name: name.as_posix())
    if not found:
        raise InvalidInputError(f"Folder {folder} has no images: expected {_EXPECTED}.")
    labelled = [(folder / name, _class_of(name, folder)) for name in found]

    def samples(quota: Quota) -> Iterator[Sample]:
        for path, label in labelled:
            if quota.full:
                return
            if quota.take(label):
                yield _read_file(path), label

    return Source(f"images in folders by class ({folder.name})", len(labelled), samples)


def open_archive(path: Path) -> Source:
    """All images of a tar archive, plain or compressed, in the order of the archive; its errors show while reading."""

    def samples(quota: Quota) -> Iterator[Sample]:
        seen = 0
        try:
            with tarfile.open(path, "r|*") as archive:
                for member in _members(archive, path):
                    label = _class_of(PurePosixPath(member.name), path)
                    seen += 1
                    if quota.full:
                        return
                    if quota.take(label):
                        yield _read_member(archive, member, path), label
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise InvalidInputError(
                f"{path} cannot be read ({error}): expected a complete tar archive of {_EXPECTED}."
            ) from error
        if not seen:
            raise InvalidInputError(f"{path} has no images: expected {_EXPECTED}.")

    return Source(f"tar archive of images by class ({path.name})", None, samples)


def to_image(data: bytes, name: str) -> Image:
    """Decode a PNG or JPEG file into MNIST's form.

    Colours become grey, an image whose outermost pixels are mostly bright is inverted (ink is bright in MNIST), and other
    sizes are fitted into 28x28 with their proportions kept.

    Raises:
        InvalidInputError: the data is not such a file, too large, or has transparent parts.
    """
    try:
        with Pillow.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            if picture.width * picture.height > MAX_IMAGE_PIXELS:
                raise InvalidInputError(
                    f"{name} has {picture.width}x{picture.height} pixels: expected {MAX_IMAGE_PIXELS} pixels at most."
                )
            picture.load()
            grey = _grey(picture, name)
    except UnidentifiedImageError as error:
        raise InvalidInputError(f"{name} is not an image: expected a PNG or JPEG image.") from error
    except (OSError, SyntaxError, ValueError, zlib.error, Pillow.DecompressionBombError) as error:
        raise InvalidInputError(f"{name} cannot be read ({error}): expected a complete PNG or JPEG image.") from error
    pixels = np.asarray(grey)
    frame = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    if np.median(frame) > 127:
        grey = ImageOps.invert(grey)
    if grey.size != (WIDTH, HEIGHT):
        grey = ImageOps.pad(grey, (WIDTH, HEIGHT), Pillow.Resampling.LANCZOS, color=0)
    return np.asarray(grey)


def _grey(picture: Pillow.Image, name: str) -> Pillow.Image:
    if picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise InvalidInputError(f"{name} has transparent parts: expected an opaque image.")
    if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip
        return Pillow.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    return picture.convert("L")


def _is_image(name: PurePath) -> bool:
    hidden = any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in name.parts)
    return name.suffix.lower() in _IMAGE_SUFFIXES and not hidden


def _class_of(name: PurePath, where: Path) -> int:
    folder = name.parent.name
    if folder not in map(str, range(CLASSES)):
        raise InvalidInputError(f"Image {name} of {where} lies in folder {folder!r}: expected {_EXPECTED}.")
    return int(folder)


def _read_file(path: Path) -> Image:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read ({error}): expected a PNG or JPEG image.") from error
    _check_size(len(data), str(path))
    return to_image(data, str(path))


def _members(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """The images among the members."""
    count = 0
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header until the end
        count += 1
        if count > MAX_ARCHIVE_MEMBERS or member.offset_data + member.size > MAX_ARCHIVE_BYTES:
            raise InvalidInputError(
                f"{path} is too large: expected {MAX_ARCHIVE_MEMBERS} members and {MAX_ARCHIVE_BYTES >> 30} GiB at most."
            )
        name = PurePosixPath(member.name)
        if member.isdir() or not _is_image(name):
            continue
        if not member.isfile():
            raise InvalidInputError(f"Member {name} of {path} is a link or device: expected image files.")
        _check_size(member.size, f"Member {name} of {path}")
        yield member


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> Image:
    file = archive.extractfile(member)
    data = b"" if file is None else file.read()
    return to_image(data, f"Member {member.name} of {path}")


def _check_size(size: int, name: str) -> None:
    if size > MAX_IMAGE_BYTES:
        raise InvalidInputError(f"{name} is too large: expected {MAX_IMAGE_BYTES >> 20} MiB at most for an image.")
