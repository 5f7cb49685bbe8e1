"""The gate: what it promotes, what it refuses, in which words, and how often chance fools it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from semr.errors import InvalidInputError
from semr.evolution.gate import Candidate, GateThresholds, compare, judge


def candidate(version: str, recent: float, old: float, rows: int = 400, seed: int = 0, **changes: object) -> Candidate:
    """Right and wrong answers of the given accuracies; the same seed has the same hard examples."""
    hardness = np.random.default_rng(seed).random(rows)
    made = Candidate(
        version, (hardness < recent).astype(int), (hardness < old).astype(int), 2.0, 1_000_000, "image->10"
    )
    return dataclasses.replace(made, **changes)


def test_a_clear_improvement_is_promoted_with_its_numbers() -> None:
    report = judge(candidate("1", 0.70, 0.97), candidate("2", 0.96, 0.965), GateThresholds())
    assert report.promotes
    assert report.recent.low > 0.15
    assert "better on recent data by +0.3050 (+0.26" in report.reason
    content = json.loads(report.to_json())
    assert content["verdict"] == "promote"
    assert {check["name"] for check in content["checks"]} >= {
        "better on recent data",
        "as good on old data",
        "fast enough",
    }


@pytest.mark.parametrize(
    ("challenger", "words"),
    [
        (candidate("2", 0.70, 0.97), "not better on recent data"),
        (candidate("2", 0.60, 0.97), "not better on recent data"),
        (candidate("2", 0.96, 0.90), "not as good on old data"),
        (candidate("2", 0.96, 0.97, latency_milliseconds=9.0), "not fast enough: 9.00 ms, wanted at most 4.00 ms"),
        (candidate("2", 0.96, 0.97, size_bytes=3_000_000_000), "not small enough: 3000.00 MB"),
        (candidate("2", 0.96, 0.97, schema="image->11"), "not same inputs and outputs"),
    ],
)
def test_each_fault_alone_refuses_and_is_named(challenger: Candidate, words: str) -> None:
    report = judge(candidate("1", 0.70, 0.97), challenger, GateThresholds())
    assert not report.promotes
    assert words in report.reason
    assert sum(not check.passed for check in report.checks) == 1


def test_too_few_examples_decide_nothing() -> None:
    report = judge(candidate("1", 0.2, 0.9, rows=20), candidate("2", 1.0, 1.0, rows=20), GateThresholds())
    assert not report.promotes
    assert "enough recent examples" in report.reason


def test_no_examples_at_all_are_refused_not_a_crash() -> None:
    champion, challenger = (
        dataclasses.replace(candidate(version, 0.9, 0.9), recent=np.array([])) for version in ("1", "2")
    )
    report = judge(champion, challenger, GateThresholds())
    assert not report.promotes


def test_models_of_equal_strength_are_rarely_promoted() -> None:
    """At 95% (two-sided) chance promotes one of two equal models in 2.5% of cases; 200 trials, so at most 11 at p < 0.01."""
    promoted = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        before, after = rng.random(300) < 0.9, rng.random(300) < 0.9
        promoted += compare(before, after, 0.95, seed).low > 0
    assert promoted <= 11


def test_the_interval_agrees_with_the_normal_approximation() -> None:
    rng = np.random.default_rng(3)
    before, after = rng.normal(0, 1, 2000), rng.normal(0.1, 1, 2000)
    result = compare(before, after, 0.95)
    half = 1.96 * (after - before).std(ddof=1) / np.sqrt(2000)
    assert result.high - result.low == pytest.approx(2 * half, rel=0.05)
    assert result.gain == pytest.approx((after - before).mean())


def test_it_is_reproducible() -> None:
    before, after = np.arange(100) % 2, np.arange(100) % 3 > 0
    assert compare(before, after, 0.9, seed=5) == compare(before, after, 0.9, seed=5)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (np.ones(3), np.ones(4)),
        (np.ones((2, 2)), np.ones((2, 2))),
        (np.array([1.0, np.nan]), np.ones(2)),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(before: np.ndarray, after: np.ndarray) -> None:
    with pytest.raises(InvalidInputError):
        compare(before, after, 0.95)


def test_thresholds_without_sense_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="confidence"):
        GateThresholds(confidence=95)
    with pytest.raises(InvalidInputError, match="allowed_loss_on_old"):
        GateThresholds(allowed_loss_on_old=-0.1)
