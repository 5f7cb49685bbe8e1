"""Collections that libraries bring along: the UCI digits of scikit-learn, and MNIST as Keras downloads it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from semr.errors import DependencyUnavailableError, InvalidInputError
from workflow_examples.mnist.sources.samples import HEIGHT, WIDTH, Image, Quota, Sample, Source, check_labels, pick

# https://archive.ics.uci.edu/dataset/80: 8x8 counts of set pixels in 4x4 blocks, hence 0 to 16.
DIGITS_MAXIMUM = 16
# MNIST's digits fill 20x20 pixels in the middle of the image.
DIGIT_SIZE = 20

MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
# Without a byte for this long the download counts as failed.
DOWNLOAD_STALL_SECONDS = 20.0


def open_digits() -> Source:
    """The 1,797 handwritten digits of UCI's test set that scikit-learn ships; needs no network."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes a second that other sources need not pay

    pixels, labels = load_digits(return_X_y=True)

    def samples(quota: Quota) -> Iterator[Sample]:
        for row, label in zip(pixels.reshape(-1, 8, 8), labels.tolist(), strict=True):
            if quota.take(label):
                yield enlarge(row), label

    return Source("UCI handwritten digits (scikit-learn)", len(labels), samples)


def enlarge(counts: NDArray[np.float64]) -> Image:
    """Bring an 8x8 image with values 0 to 16 into MNIST's form: 20x20 pixels by bicubic interpolation, centred in 28x28."""
    # Pillow resizes 8 bit images in integer arithmetic, which gives the same pixels, and so the same version, everywhere.
    scaled = np.rint(counts * (255 / DIGITS_MAXIMUM)).astype(np.uint8)
    digit = Pillow.fromarray(scaled).resize((DIGIT_SIZE, DIGIT_SIZE), Pillow.Resampling.BICUBIC)
    image = np.zeros((HEIGHT, WIDTH), np.uint8)
    margin = (HEIGHT - DIGIT_SIZE) // 2
    image[margin : margin + DIGIT_SIZE, margin : margin + DIGIT_SIZE] = np.asarray(digit)
    return image


def open_mnist() -> Source:
    """MNIST's 70,000 digits, first the training set, then the test set; downloaded once by Keras into `~/.keras`.

    Raises:
        DependencyUnavailableError: the download fails.
        InvalidInputError: Keras cannot be imported.
    """
    try:
        from keras.datasets import mnist  # noqa: PLC0415 - imports a whole deep learning framework
    except ImportError as error:
        raise InvalidInputError(
            f"The source `mnist` needs Keras with one of its backends ({error}): install SEMR with the extra `tensorflow` "
            "or `torch`, or give the path of MNIST's files."
        ) from error
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_STALL_SECONDS)
    try:
        with redirect_stdout(sys.stderr):  # where progress belongs
            sets = mnist.load_data()
    except Exception as error:
        # Keras raises a bare Exception for a failed download.
        if type(error) is not Exception and not isinstance(error, OSError):
            raise
        reason = " ".join(str(error).split())
        raise DependencyUnavailableError(
            "MNIST download", MNIST_URL, f"{reason}; without network use the source `digits` or files of MNIST"
        ) from error
    finally:
        socket.setdefaulttimeout(before)

    def samples(quota: Quota) -> Iterator[Sample]:
        for images, labels in sets:
            yield from pick(images, check_labels(labels, MNIST_URL), quota)

    return Source("MNIST (downloaded by Keras)", sum(len(labels) for _, labels in sets), samples)
