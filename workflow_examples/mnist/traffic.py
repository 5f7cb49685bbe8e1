"""Live traffic for the served MNIST model: pictures at a steady rate, a label for each some time later, drift on demand.

    semr traffic mnist --rate 20 --drift rotate=35 --drift-after 30 --seconds 120

Requests are sent when they are due, whether or not earlier ones have been answered (an open loop): a slow server is seen as
slow.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from rich.console import Console

from semr.deployment.choice import deployment_target
from semr.errors import DependencyUnavailableError, InvalidInputError, SemrError
from semr.inference.client import InferenceClient, InferenceError
from semr.storage import ObjectStore
from workflow_examples.mnist.distortions import Distortion, Pictures, jitter
from workflow_examples.mnist.model import CLASSES, IMAGE_SIZE, to_input
from workflow_examples.mnist.prepare import DATASET

# Enough senders that a request which waits for a second holds none back at 50 a second.
_SENDERS = 64


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


@dataclass(frozen=True)
class Tally:
    """What a stretch of traffic came to.

    Attributes:
        sent: requests.
        failed: how many of them had no answer, or an error.
        pictures: answered ones.
        right: how many of them were recognised.
        versions: answered requests by model version.
    """

    sent: int
    failed: int
    pictures: int
    right: int
    versions: dict[str, int]

    @property
    def accuracy(self) -> float:
        """Share of right answers among the answered pictures, NaN when there are none."""
        return self.right / self.pictures if self.pictures else float("nan")


@dataclass
class Traffic:
    """A running stream of requests. `pool`, `distortion` and `mislabel` may be changed while it runs.

    Attributes:
        url: what stands before `/v2`.
        model: its name.
        rate: requests a second.
        pictures: in each request.
        pool: where pictures come from.
        distortion: how they are distorted, None for not at all.
        drift_share: share of the pictures that are distorted.
        label_delay: seconds until a request's labels are fed back; None feeds none back.
        label_share: share of the requests whose labels come.
        mislabel: share of the labels that are wrong.
        seed: of the choice and jitter of pictures.
    """

    url: str
    model: str
    rate: float
    pool: Pool
    distortion: Distortion | None = None
    drift_share: float = 1.0
    label_delay: float | None = 1.0
    label_share: float = 1.0
    mislabel: float = 0.0
    seed: int = 0
    pictures: int = 1
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1000:
            raise InvalidInputError(f"The rate must be above 0 and at most 1000 requests a second, not {self.rate:g}.")
        if self.pictures < 1:
            raise InvalidInputError(f"A request takes at least 1 picture, not {self.pictures}.")
        self._rng = np.random.default_rng(self.seed)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._outcomes: list[tuple[float, str | None, int]] = []
        self._labels: list[tuple[float, int, str, list[int]]] = []
        self._order = itertools.count()
        self._threads = [
            threading.Thread(target=self._send_on_time, name="traffic", daemon=True),
            threading.Thread(target=self._feed_back, name="labels", daemon=True),
        ]

    def __enter__(self) -> Traffic:
        self._client = InferenceClient(self.url, self.model, timeout_seconds=20.0)
        self._input = self._client.metadata().inputs[0].name
        self._senders = ThreadPoolExecutor(_SENDERS, thread_name_prefix="sender")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=30)
        self._senders.shutdown(cancel_futures=True)
        self._client.close()

    def tally(self, since: float = 0.0, until: float = float("inf")) -> Tally:
        """Requests answered between two times of `time.monotonic`."""
        with self._lock:
            chosen = [outcome for outcome in self._outcomes if since <= outcome[0] < until]
        failed = sum(version is None for _, version, _ in chosen)
        return Tally(
            sent=len(chosen),
            failed=failed,
            pictures=(len(chosen) - failed) * self.pictures,
            right=sum(right for _, _, right in chosen),
            versions=dict(Counter(version for _, version, _ in chosen if version is not None)),
        )

    def newest_version(self) -> str | None:
        """Version that gave the last answer; None before the first one."""
        with self._lock:
            return next((version for _, version, _ in reversed(self._outcomes) if version is not None), None)

    def _send_on_time(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            drawn = [self._draw() for _ in range(self.pictures)]
            pictures = np.concatenate([picture for picture, _ in drawn])
            self._senders.submit(self._send, pictures, np.array([label for _, label in drawn]))
            due += 1 / self.rate
            self._stop.wait(max(0.0, due - time.monotonic()))

    def _draw(self) -> tuple[Pictures, int]:
        pool, distortion = self.pool, self.distortion
        rows = np.arange(len(pool.labels))
        if distortion and distortion.kind == "classes" and self._rng.random() < distortion.strength:
            rows = rows[pool.labels < CLASSES // 2]
        row = int(self._rng.choice(rows))
        picture = jitter(pool.pictures[row : row + 1], self._rng)
        if distortion and self._rng.random() < self.drift_share:
            picture = distortion.apply(picture, self._rng)
        return picture, int(pool.labels[row])

    def _send(self, pictures: Pictures, labels: npt.NDArray[np.int64]) -> None:
        try:
            prediction = self._client.infer({self._input: pictures.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 1)})
        except (InferenceError, DependencyUnavailableError) as error:
            with self._lock:
                self._outcomes.append((time.monotonic(), None, 0))
                self.errors.append(str(error))
            return
        right = int((next(iter(prediction.outputs.values())).argmax(axis=1) == labels).sum())
        with self._lock:
            self._outcomes.append((time.monotonic(), prediction.version, right))
            if self.label_delay is None or self._rng.random() >= self.label_share:
                return
            if prediction.prediction_id:
                is_wrong = self._rng.random(len(labels)) < self.mislabel
                told = np.where(is_wrong, (labels + 1) % CLASSES, labels).tolist()
                due = time.monotonic() + self.label_delay
                heapq.heappush(self._labels, (due, next(self._order), prediction.prediction_id, told))

    def _feed_back(self) -> None:
        while not self._stop.wait(0.05):
            with self._lock:
                due = []
                while self._labels and self._labels[0][0] <= time.monotonic():
                    due.append(heapq.heappop(self._labels))
            for _, _, prediction_id, labels in due:
                self._senders.submit(self._tell, prediction_id, labels)

    def _tell(self, prediction_id: str, labels: list[int]) -> None:
        try:
            self._client.feedback(prediction_id, labels)
        except (InferenceError, DependencyUnavailableError) as error:
            with self._lock:
                self.errors.append(str(error))


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
    console = Console()
    try:
        distortion = Distortion.parse(options.drift) if options.drift else None
        traffic = Traffic(
            deployment_target().url(options.model),
            options.model,
            options.rate,
            Pool.of_split(options.split),
            drift_share=options.drift_share,
            label_delay=options.label_delay,
            label_share=options.label_share,
            mislabel=options.mislabel,
            seed=options.seed,
            pictures=options.pictures,
        )
        with traffic:
            _run(traffic, distortion, options.drift_after, options.seconds, console)
    except SemrError as error:
        print(f"traffic: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 1 if traffic.tally().failed else 0


def _run(traffic: Traffic, distortion: Distortion | None, drift_after: float, seconds: float, console: Console) -> None:
    started = shown = time.monotonic()
    with console.status("sending …") as status:
        while (now := time.monotonic()) < started + seconds:
            if distortion and traffic.distortion is None and now >= started + drift_after:
                traffic.distortion = distortion
                console.print(f"{now - started:5.0f} s  drift begins: {distortion.kind} {distortion.strength:g}")
            if now - shown >= 5:
                console.print(f"{now - started:5.0f} s  {_line(traffic.tally(since=shown))}", highlight=False)
                shown = now
            status.update(_line(traffic.tally(since=now - 2)))
            time.sleep(0.2)
    console.print(f"in all   {_line(traffic.tally())}", highlight=False)


def _line(tally: Tally) -> str:
    versions = ", ".join(f"version {version}: {count}" for version, count in sorted(tally.versions.items()))
    return (
        f"{tally.sent} requests, {tally.failed} failed, accuracy {tally.accuracy:.3f} ({versions or 'none answered'})"
    )


if __name__ == "__main__":
    sys.exit(main())
