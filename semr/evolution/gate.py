"""Whether a challenger may replace the champion.

Both answer the same examples: a recent holdout, which shows whether retraining helped, and the holdout that the
champion was judged on when it was trained, which shows what retraining made it forget. "Better" means better by more
than chance: a paired bootstrap over the examples (B. Efron and R. Tibshirani, "An Introduction to the Bootstrap",
1993, ch. 8 and 13; for comparing two models on one test set: P. Koehn, "Statistical Significance Tests for Machine
Translation Evaluation", EMNLP 2004). Pairing takes out how hard the examples are, which is most of the variance
between two models of similar strength.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from semr.errors import InvalidInputError

Scores = npt.NDArray[np.floating[Any]] | npt.NDArray[np.integer[Any]] | npt.NDArray[np.bool_]
Verdict = Literal["promote", "refuse"]

_RESAMPLES = 10_000
# Resampled indices held in memory at once, 8 bytes each.
_INDICES_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class GateThresholds:
    """What a challenger has to reach.

    Attributes:
        min_gain: the lower end of the interval of its gain on the recent holdout must be above this (score units).
        allowed_loss_on_old: its mean loss on the champion's own holdout may be at most this (score units).
        confidence: of the bootstrap intervals, such as 0.95.
        latency_factor: its time for one request may be at most so many times the champion's.
        max_size_mb: its files may have at most so many megabytes (10^6 bytes).
        least_examples: with fewer on a holdout nothing is decided: the challenger is refused.
    """

    min_gain: float = 0.0
    allowed_loss_on_old: float = 0.02
    confidence: float = 0.95
    latency_factor: float = 2.0
    max_size_mb: float = 1000.0
    least_examples: int = 50

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:
            raise InvalidInputError(f"confidence must be in 0.5 to below 1, not {self.confidence}.")
        for name in ("allowed_loss_on_old", "latency_factor", "max_size_mb", "least_examples"):
            if getattr(self, name) < 0:
                raise InvalidInputError(f"{name} must not be negative, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Candidate:
    """A model as the gate sees it.

    Attributes:
        version: model version.
        recent: score of each example of the recent holdout (rows,), more is better; for a classifier 1 is right,
            0 wrong, for a forecaster minus the error.
        old: the same for the champion's own holdout.
        latency_milliseconds: median time for a request of one example.
        size_bytes: of the model's files.
        schema: names, datatypes and shapes of inputs and outputs, in any comparable form.
    """

    version: str
    recent: Scores
    old: Scores
    latency_milliseconds: float
    size_bytes: int
    schema: str


@dataclass(frozen=True)
class Comparison:
    """Paired comparison on one holdout; gains are challenger minus champion, `low` and `high` the ends of the interval."""

    examples: int
    champion: float
    challenger: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class Check:
    """One condition: what was found, what was wanted, whether it holds."""

    name: str
    passed: bool
    found: str
    wanted: str


@dataclass(frozen=True)
class GateReport:
    """The verdict with all that led to it; `to_json` is the artifact of the challenger."""

    champion_version: str
    challenger_version: str
    verdict: Verdict
    reason: str
    recent: Comparison
    old: Comparison
    checks: tuple[Check, ...] = field(default_factory=tuple)
    thresholds: GateThresholds = field(default_factory=GateThresholds)

    @property
    def promotes(self) -> bool:
        """Whether the challenger may become champion."""
        return self.verdict == "promote"

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), indent=2)


def judge(
    champion: Candidate,
    challenger: Candidate,
    thresholds: GateThresholds,
    seed: int = 0,
    further: tuple[Check, ...] = (),
) -> GateReport:
    """Compare challenger and champion and decide.

    Args:
        champion: the version that serves.
        challenger: the one that wants to.
        thresholds: what it has to reach.
        seed: of the bootstrap.
        further: conditions of the model's own, which must hold too.

    Raises:
        InvalidInputError: the two were not scored on the same examples, or scores are not finite.
    """
    recent = compare(champion.recent, challenger.recent, thresholds.confidence, seed)
    old = compare(champion.old, challenger.old, thresholds.confidence, seed + 1)
    least = thresholds.least_examples
    checks = (
        Check("enough recent examples", recent.examples >= least, str(recent.examples), f"at least {least}"),
        Check("enough old examples", old.examples >= least, str(old.examples), f"at least {least}"),
        Check(
            "better on recent data",
            recent.low > thresholds.min_gain,
            f"gain {recent.gain:+.4f}, interval {recent.low:+.4f} to {recent.high:+.4f}",
            f"whole interval above {thresholds.min_gain:+.4f}",
        ),
        Check(
            "as good on old data",
            old.gain >= -thresholds.allowed_loss_on_old,
            f"gain {old.gain:+.4f}, interval {old.low:+.4f} to {old.high:+.4f}",
            f"at least {-thresholds.allowed_loss_on_old:+.4f}",
        ),
        _within(
            "fast enough",
            challenger.latency_milliseconds,
            champion.latency_milliseconds * thresholds.latency_factor,
            "ms",
        ),
        _within("small enough", challenger.size_bytes / 1e6, thresholds.max_size_mb, "MB"),
        Check(
            "same inputs and outputs",
            challenger.schema == champion.schema,
            challenger.schema,
            champion.schema,
        ),
        *further,
    )
    failed = [check for check in checks if not check.passed]
    return GateReport(
        champion_version=champion.version,
        challenger_version=challenger.version,
        verdict="refuse" if failed else "promote",
        reason=_reason(failed, recent, old),
        recent=recent,
        old=old,
        checks=checks,
        thresholds=thresholds,
    )


def compare(champion: Scores, challenger: Scores, confidence: float, seed: int = 0) -> Comparison:
    """Means of both, and the percentile interval of the mean paired difference over 10,000 bootstrap resamples.

    Args:
        champion: scores (rows,).
        challenger: scores (rows,) of the same examples in the same order.
        confidence: such as 0.95.
        seed: of the resampling; the same input gives the same interval.

    Raises:
        InvalidInputError: shapes differ, or a score is not finite.
    """
    before, after = np.asarray(champion, dtype=np.float64), np.asarray(challenger, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1:
        raise InvalidInputError(
            f"Champion has scores of shape {before.shape}, challenger of {after.shape}: give both (rows,)."
        )
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise InvalidInputError("A score is not a finite number.")
    if not len(before):
        nothing = float("nan")
        return Comparison(0, nothing, nothing, 0.0, 0.0, 0.0)
    differences = after - before
    means = _bootstrap_means(differences, np.random.default_rng(seed))
    low, high = np.quantile(means, ((1 - confidence) / 2, (1 + confidence) / 2))
    return Comparison(
        examples=len(before),
        champion=float(before.mean()),
        challenger=float(after.mean()),
        gain=float(differences.mean()),
        low=float(low),
        high=float(high),
    )


def _bootstrap_means(values: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    rows = len(values)
    at_once = max(1, _INDICES_AT_ONCE // rows)
    means = [
        values[rng.integers(0, rows, size=(min(at_once, _RESAMPLES - start), rows))].mean(axis=1)
        for start in range(0, _RESAMPLES, at_once)
    ]
    return np.concatenate(means)


def _within(name: str, found: float, limit: float, unit: str) -> Check:
    return Check(name, found <= limit, f"{found:.2f} {unit}", f"at most {limit:.2f} {unit}")


def _reason(failed: Sequence[Check], recent: Comparison, old: Comparison) -> str:
    if not failed:
        return (
            f"better on recent data by {recent.gain:+.4f} ({recent.low:+.4f} to {recent.high:+.4f}), "
            f"{old.gain:+.4f} on the champion's own holdout"
        )
    return "; ".join(f"not {check.name}: {check.found}, wanted {check.wanted}" for check in failed)
