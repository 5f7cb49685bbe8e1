"""Live traffic for the served MNIST model: pictures at a steady rate, a label for each some time later, drift on demand.

    semr traffic mnist --rate 20 --drift rotate=35 --drift-after 30 --seconds 120

See `semr.traffic`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from semr.deployment.choice import deployment_target
from semr.inference.client import InferenceClient
from semr.inference.protocol import Array
from semr.storage import ObjectStore
from semr.traffic import Drift, OpenLoop, Request, Tally, exit_code_of, show
from workflow_examples.mnist.distortions import Distortion, Pictures, jitter
from workflow_examples.mnist.model import CLASSES, IMAGE_SIZE, to_input
from workflow_examples.mnist.prepare import DATASET


@dataclass(frozen=True)
class Pool:
    """Pictures (rows, 28, 28) float32 in 0..1 and their labels (rows,), from which traffic is drawn."""

    pictures: Pictures
    labels: npt.NDArray[np.int64]

    @classmethod
    def of_split(cls, split: str, version: str = "latest") -> Pool:
        """The pictures of a split of the prepared dataset."""
        store = ObjectStore.from_settings()
        table = store.read(store.dataset(DATASET, version), split)
        pictures = to_input(table["image"].combine_chunks().flatten().to_numpy())
        return cls(pictures.reshape(-1, IMAGE_SIZE, IMAGE_SIZE), table["label"].to_numpy().astype(np.int64))


@dataclass
class Traffic(OpenLoop):
    """A running stream of requests. `pool`, `distortion` and `mislabel` may be changed while it runs.

    Attributes:
        pool: where pictures come from.
        distortion: how they are distorted, None for not at all.
        drift_share: share of the pictures that are distorted.
        mislabel: share of the labels that are fed back wrong.
    """

    pool: Pool
    distortion: Distortion | None = None
    drift_share: float = 1.0
    mislabel: float = 0.0

    def draw(self) -> Request:
        """Pictures of the pool, none twice the same."""
        drawn = [self._draw_one() for _ in range(self.rows)]
        pictures = np.concatenate([picture for picture, _ in drawn])
        labels = np.array([label for _, label in drawn])
        is_wrong = self.rng.random(self.rows) < self.mislabel
        told = np.where(is_wrong, (labels + 1) % CLASSES, labels)
        return Request(pictures.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 1), labels, told)

    def right(self, output: Array, truth: Array) -> int:
        """How many pictures are recognised, whatever label is fed back."""
        return int((output.argmax(axis=1) == truth).sum())

    def tell(self, client: InferenceClient, prediction_id: str, told: Array) -> int:
        """The labels."""
        return client.feedback(prediction_id, told.tolist())

    def _draw_one(self) -> tuple[Pictures, int]:
        pool, distortion = self.pool, self.distortion
        rows = np.arange(len(pool.labels))
        if distortion and distortion.kind == "classes" and self.rng.random() < distortion.strength:
            rows = rows[pool.labels < CLASSES // 2]
        row = int(self.rng.choice(rows))
        picture = jitter(pool.pictures[row : row + 1], self.rng)
        if distortion and self.rng.random() < self.drift_share:
            picture = distortion.apply(picture, self.rng)
        return picture, int(pool.labels[row])


def main(arguments: list[str] | None = None) -> int:
    """Command line of `semr traffic mnist`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="semr traffic mnist", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mnist", help="registered model and route (default: mnist)")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second (default: 20)")
    parser.add_argument("--pictures", type=int, default=1, help="pictures in each request (default: 1)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--split", default="holdout", help="split that the pictures come from (default: holdout)")
    parser.add_argument("--drift", metavar="KIND=STRENGTH", help="rotate=35, invert, noise=0.3, or classes=0.9")
    parser.add_argument("--drift-after", type=float, default=0.0, help="seconds without drift first (default: 0)")
    parser.add_argument("--drift-share", type=float, default=1.0, help="share of drifted pictures (default: 1)")
    parser.add_argument("--label-delay", type=float, default=1.0, help="seconds to a picture's label (default: 1)")
    parser.add_argument("--label-share", type=float, default=1.0, help="share of requests with labels (default: 1)")
    parser.add_argument("--mislabel", type=float, default=0.0, help="share of wrong labels (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="choice of the pictures (default: 0)")
    options = parser.parse_args(arguments)

    def work() -> Tally:
        distortion = Distortion.parse(options.drift) if options.drift else None
        traffic = Traffic(
            deployment_target().url(options.model),
            options.model,
            options.rate,
            Pool.of_split(options.split),
            drift_share=options.drift_share,
            mislabel=options.mislabel,
            rows=options.pictures,
            feedback_delay=options.label_delay,
            feedback_share=options.label_share,
            seed=options.seed,
        )
        if distortion is None:
            return show(traffic, options.seconds)

        def begin() -> str:
            traffic.distortion = distortion
            return f"{distortion.kind} {distortion.strength:g}"

        return show(traffic, options.seconds, Drift(options.drift_after, begin))

    return exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main())
