"""Keras on TensorFlow without what TensorFlow says on its way up."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def import_keras() -> None:
    """Import TensorFlow and Keras 3 on it; what they write to standard error is shown only if that fails."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _held_back_stderr():
        import keras  # noqa: PLC0415 - the point of this function
        import tensorflow  # noqa: F401, PLC0415
    # Progress bars belong to a terminal, not to a job's log.
    keras.config.disable_interactive_logging()
    # The end of a generator is the end of an epoch here, not an accident.
    warnings.filterwarnings("ignore", message="Your input ran out of data")


@contextmanager
def _held_back_stderr() -> Iterator[None]:
    """TensorFlow's C++ parts write before any log level applies, so that only the file descriptor itself can be diverted."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
