"""Input drift: the population stability index (PSI) of live inputs against a reference window.

For each feature the reference window has quantile bins. With p the shares of the live rows in them and q those of the
reference, PSI = sum((p - q) ln(p / q)): Jeffreys' divergence, the two relative entropies of SciPy's `rel_entr` added. It is
symmetric, adds over replicas as counts, and has a customary scale: above 0.25 is a major shift (N. Siddiqi, "Credit Risk
Scorecards", 2006).

Small windows have a large PSI by chance. Without drift, PSI of N live rows against M reference rows in B bins is
distributed about as (1/N + 1/M) chi-square with B - 1 degrees of freedom (B. Yurdakul, "Statistical Properties of Population
Stability Index", dissertation, Western Michigan University, 2018). Drift is what exceeds both the customary threshold and
the quantile of that distribution; see `critical_psi`.

The server only counts rows by bin. `helm_charts/SEMR/rules` computes the same as `psi` and `critical_psi` over the sum of all
replicas.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri, rel_entr

from semr.errors import InvalidInputError
from semr.monitoring.features import MOST_FEATURES, Array, Values, extract

Counts = npt.NDArray[np.int64]

ARTIFACT_FILE = "monitoring/reference_window.json"
BINS = 10
#: A PSI above this is a major shift by custom.
PSI_THRESHOLD = 0.25
#: Probability that chance alone lifts any feature of a window over `critical_psi`.
ALPHA = 0.001
#: Fewer live rows than this say nothing.
LEAST_ROWS = 200
#: Added to every bin's count, so that no share is 0: the Krichevsky-Trofimov estimator.
SMOOTHING = 0.5

_LEAST_REFERENCE_ROWS = 50
_FORMAT = 1


@dataclass(frozen=True)
class ReferenceFeature:
    """A feature in the reference window.

    Attributes:
        edges: bounds between bins, ascending, one less than bins; a value equal to an edge is in the bin above it.
        counts: rows of the reference in each bin.
    """

    group: str
    name: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def ratios(self) -> Values:
        """Smoothed share of each bin."""
        return smoothed_ratios(np.asarray(self.counts))


@dataclass(frozen=True)
class ReferenceWindow:
    """What the inputs looked like that a model was trained on.

    Attributes:
        extractor: name of the extractor, see `semr.monitoring.features`.
        rows: number of examples.
        features: their distributions.
    """

    extractor: str
    rows: int
    features: tuple[ReferenceFeature, ...]

    @classmethod
    def from_inputs(cls, inputs: Array, extractor: str, bins: int = BINS) -> ReferenceWindow:
        """Take the inputs (rows, ...) as reference; features with few different values get fewer bins.

        Raises:
            InvalidInputError: less than 50 rows, less than 2 bins, features that are not finite, or a wrong extractor.
        """
        if len(inputs) < _LEAST_REFERENCE_ROWS or bins < 2:
            raise InvalidInputError(
                f"A reference window needs at least {_LEAST_REFERENCE_ROWS} rows and 2 bins, not {len(inputs)} and {bins}."
            )
        table = extract(extractor, inputs)
        if not np.isfinite(table.values).all():
            raise InvalidInputError("The reference inputs give features that are not finite: leave such rows out.")
        features = []
        for feature, values in zip(table.features, table.values.T, strict=True):
            edges = np.unique(np.quantile(values, np.arange(1, bins) / bins))
            edges = edges[edges > values.min()]  # else the lowest bin would be empty
            counts = _count(edges, values)
            features.append(
                ReferenceFeature(feature.group, feature.name, tuple(edges.tolist()), tuple(counts.tolist()))
            )
        return cls(extractor, len(inputs), tuple(features))

    def bin(self, inputs: Array) -> tuple[Counts, ...]:
        """Rows of `inputs` in each bin, for each feature; values that are not a number are in the highest bin.

        Raises:
            InvalidInputError: the inputs do not have the extractor's shape, or give other features.
        """
        table = extract(self.extractor, inputs)
        if [(each.group, each.name) for each in table.features] != [(each.group, each.name) for each in self.features]:
            raise InvalidInputError(f"The inputs {inputs.shape} have other features than the reference window.")
        return tuple(
            _count(np.asarray(feature.edges), values)
            for feature, values in zip(self.features, table.values.T, strict=True)
        )

    def chance_quantile(self, feature: ReferenceFeature) -> float:
        """The part of `critical_psi` that does not depend on the live rows, with `ALPHA` shared among the features."""
        return _chance_quantile(len(feature.counts), ALPHA / len(self.features))

    def to_json(self) -> str:
        """As stored in MLflow."""
        features = [
            {"group": each.group, "name": each.name, "edges": each.edges, "counts": each.counts}
            for each in self.features
        ]
        return json.dumps({"format": _FORMAT, "extractor": self.extractor, "rows": self.rows, "features": features})

    @classmethod
    def from_json(cls, text: str) -> ReferenceWindow:
        """The inverse of `to_json`.

        Raises:
            InvalidInputError: this is not a reference window of the known format.
        """
        try:
            content = json.loads(text)
            if content["format"] != _FORMAT:
                raise InvalidInputError(f"The reference window has format {content['format']!r}, not {_FORMAT}.")
            features = tuple(
                ReferenceFeature(
                    group=str(each["group"]),
                    name=str(each["name"]),
                    edges=tuple(float(edge) for edge in each["edges"]),
                    counts=tuple(int(count) for count in each["counts"]),
                )
                for each in content["features"]
            )
            window = cls(str(content["extractor"]), int(content["rows"]), features)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(f"This is not a reference window: {type(error).__name__} {error}.") from error
        window.check()
        return window

    def check(self) -> None:
        """Raises `InvalidInputError` when counts, edges and rows do not belong together."""
        sound = 1 <= len(self.features) <= MOST_FEATURES and all(
            len(each.counts) == len(each.edges) + 1
            and sum(each.counts) == self.rows
            and min(each.counts) >= 0
            and list(each.edges) == sorted(each.edges)
            for each in self.features
        )
        if not sound:
            raise InvalidInputError(
                "The reference window contradicts itself: write it again with log_reference_window."
            )


@dataclass(frozen=True)
class FeatureDrift:
    """PSI of a feature, and what chance alone may reach in a window of that size."""

    group: str
    name: str
    psi: float
    critical_psi: float
    rows: int

    @property
    def is_drift(self) -> bool:
        """Whether the alert rule would take it for drift."""
        return self.rows >= LEAST_ROWS and self.psi > max(PSI_THRESHOLD, self.critical_psi)


def smoothed_ratios(counts: npt.NDArray[np.integer]) -> Values:
    """Shares of counts (bins,), none of them 0; they add up to 1."""
    smoothed = np.asarray(counts, np.float64) + SMOOTHING
    return np.asarray(smoothed / smoothed.sum())


def psi(reference_counts: npt.NDArray[np.integer], live_counts: npt.NDArray[np.integer]) -> float:
    """Population stability index of two histograms (bins,) over the same bins; 0 when they are equal.

    Raises:
        InvalidInputError: their numbers of bins differ.
    """
    if len(reference_counts) != len(live_counts):
        raise InvalidInputError(f"PSI needs equal bins, not {len(reference_counts)} and {len(live_counts)}.")
    reference, live = smoothed_ratios(reference_counts), smoothed_ratios(live_counts)
    return float((rel_entr(live, reference) + rel_entr(reference, live)).sum())


def critical_psi(bins: int, live_rows: int, reference_rows: int, alpha: float = ALPHA) -> float:
    """PSI that chance exceeds with the probability `alpha` when there is no drift; infinite without rows."""
    if not live_rows or not reference_rows:
        return float("inf")
    return _chance_quantile(bins, alpha) * (1 / live_rows + 1 / reference_rows)


def measure_drift(reference: ReferenceWindow, counts: tuple[Counts, ...]) -> tuple[FeatureDrift, ...]:
    """Drift of each feature, from what `ReferenceWindow.bin` counted."""
    measured = []
    for feature, live in zip(reference.features, counts, strict=True):
        rows = int(live.sum())
        critical = critical_psi(len(feature.counts), rows, reference.rows, ALPHA / len(reference.features))
        measured.append(
            FeatureDrift(feature.group, feature.name, psi(np.asarray(feature.counts), live), critical, rows)
        )
    return tuple(measured)


def log_reference_window(run_id: str, inputs: Array, extractor: str) -> ReferenceWindow:
    """Keep the inputs' distribution with the MLflow run `run_id`, whose model is compared with it when it is served.

    Args:
        run_id: the run that logged the model.
        inputs: (rows, ...) as the model takes them; examples as they are expected live.
        extractor: `image_moments`, `columns` or `windows`.

    Raises:
        InvalidInputError: see `ReferenceWindow.from_inputs`.
        DependencyUnavailableError: MLflow does not answer.
    """
    from semr import tracking  # noqa: PLC0415 - MLflow takes a second to import, and only this function needs it

    window = ReferenceWindow.from_inputs(inputs, extractor)
    with tracking.named_errors():
        tracking.connect().log_text(run_id, window.to_json(), ARTIFACT_FILE)
    return window


def _count(edges: Values, values: Values) -> Counts:
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return counts.astype(np.int64)


def _chance_quantile(bins: int, alpha: float) -> float:
    # `chdtri` is the inverse of the upper tail. One bin has nothing to differ in.
    return float(chdtri(bins - 1, alpha)) if bins > 1 else 0.0
