"""Inputs of the QoE workflow that cannot be: refused in a sentence by its first task, before anything is written or asked."""

from __future__ import annotations

from typing import Any

import pytest

from semr.errors import InvalidInputError
from workflow_examples.qoe.wf import check, qoe_train

# What `qoe_train` gives to its first task when nothing is said.
USUAL: dict[str, Any] = {
    name: value
    for name, (_, value) in qoe_train.python_interface.inputs_with_defaults.items()
    if name in check.python_interface.inputs
}


def test_the_usual_inputs_pass() -> None:
    assert USUAL.keys() == check.python_interface.inputs.keys()
    n, config = check(**{**USUAL, "n": 3, "bt_s": 64, "seed": 5})
    assert n == 3
    assert (config.batch_size, config.seed, config.dataset_version) == (64, 5, "")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"n": 0}, "n must be at least 1, not 0: it is how many times the reports are taken"),
        ({"n": -5}, "n must be at least 1, not -5"),
        ({"bt_s": 0}, "bt_s must be at least 1, not 0: it is the batch size"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"workers": 0}, "workers must be at least 1, not 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"patience": -1}, "patience"),
        ({"architecture": "transformer"}, "no architecture 'transformer': name lstm, tcn, linear"),
        ({"hidden": 0}, "hidden"),
        ({"columns": "bytes"}, "columns must be different ones of"),
        ({"columns": ""}, "columns must be different ones of"),
        ({"steps": 0}, "steps and horizon must be at least 1"),
        ({"horizon": 0}, "steps and horizon must be at least 1"),
    ],
)
def test_the_workflow_refuses_what_cannot_be_at_once(wrong: dict[str, Any], words: str) -> None:
    """There is no stack here: whatever came after the check would say so instead."""
    with pytest.raises(InvalidInputError, match=words):
        qoe_train(**wrong)
