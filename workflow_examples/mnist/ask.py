"""Show the served model some pictures of the holdout and print what it says.

python -m workflow_examples.mnist.ask --count 4
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel

from semr.deployment.choice import deployment_target
from semr.errors import InvalidInputError, SemrError
from semr.inference.client import InferenceClient
from semr.storage import ObjectStore
from workflow_examples.mnist.model import IMAGE_SIZE, to_input
from workflow_examples.mnist.prepare import DATASET

_SHADES = " ░▒▓█"


def draw(pixels: npt.NDArray[np.uint8]) -> str:
    """A picture of (28, 28) grey values as 14 lines of 28 characters: a character is twice as high as wide."""
    halved = pixels.reshape(IMAGE_SIZE // 2, 2, IMAGE_SIZE).mean(axis=1)
    shades = np.array(list(_SHADES))[np.minimum(halved * len(_SHADES) // 256, len(_SHADES) - 1).astype(int)]
    return "\n".join("".join(row) for row in shades)


def save_picture(pixels: npt.NDArray[np.uint8], file: Path) -> None:
    """Write (28, 28) grey values as a picture of the kind that the file's name ends with.

    Raises:
        InvalidInputError: it cannot be written there, or Pillow knows no such kind.
    """
    try:
        Image.fromarray(pixels).save(file)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"The picture cannot be saved as {file}: {error}.") from error


def ask(model: str, count: int, seed: int, console: Console, save: Path | None = None) -> None:
    """Send `count` random holdout pictures in one request and print them with the answers; the first one goes to `save`."""
    store = ObjectStore.from_settings()
    holdout = store.read(store.dataset(DATASET), "holdout")
    rows = np.random.default_rng(seed).choice(len(holdout), size=min(count, len(holdout)), replace=False)
    chosen = holdout.take(rows)
    images = chosen["image"].combine_chunks().flatten().to_numpy().reshape(-1, IMAGE_SIZE, IMAGE_SIZE)
    if save is not None:
        save_picture(images[0], save)
    with InferenceClient(deployment_target().url(model), model) as client:
        name = client.metadata().inputs[0].name
        prediction = client.infer({name: to_input(images)})
    scores = next(iter(prediction.outputs.values()))
    panels = []
    for image, label, score in zip(images, chosen["label"].to_pylist(), scores, strict=True):
        said = int(score.argmax())
        colour = "green" if said == label else "red"
        panels.append(
            Panel.fit(
                draw(image),
                title=f"[{colour}]{said}[/] ({score[said]:.0%})",
                subtitle=f"label {label}",
                border_style="dim",
            )
        )
    console.print(Columns(panels))
    console.print(f"answered by {model}, version {prediction.version}", highlight=False)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workflow_examples.mnist.ask", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mnist", help="registered model and route (default: mnist)")
    parser.add_argument("--count", type=int, default=4, help="how many pictures (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="choice of the pictures (default: 0)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the first picture there, as a PNG for example")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error("--count must be at least 1")
    try:
        ask(options.model, options.count, options.seed, Console(), options.save)
    except SemrError as error:
        print(f"ask: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
