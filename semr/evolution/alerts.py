"""What Alertmanager posts to a webhook, version 4 of its payload.

Fields: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config. Those that are not used here are not looked
at, so that a later Alertmanager may add some.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

MODEL_LABEL = "model"
VERSION_LABEL = "version"

_Text = Annotated[str, Field(max_length=4096)]
_Pairs = Annotated[dict[_Text, _Text], Field(max_length=100)]


class Alert(BaseModel):
    """One alert of a group.

    Attributes:
        status: whether it fires or has ended.
        labels: its identity; `alertname`, `model` and `version` are used.
        annotations: texts for people.
        starts_at: when it began to fire, as Alertmanager writes it; tells one episode from the next.
        fingerprint: hash of the labels.
    """

    status: Literal["firing", "resolved"]
    labels: _Pairs
    annotations: _Pairs = Field(default_factory=dict)
    starts_at: _Text = Field(alias="startsAt", min_length=1)
    fingerprint: _Text = Field(min_length=1)

    @property
    def name(self) -> str:
        """Name of the alert, "" without one."""
        return self.labels.get("alertname", "")

    @property
    def model(self) -> str:
        """Model that it is about, "" when the rule does not tell."""
        return self.labels.get(MODEL_LABEL, "")

    @property
    def version(self) -> str | None:
        """Model version that it is about, None when the rule does not tell."""
        return self.labels.get(VERSION_LABEL) or None


class WebhookMessage(BaseModel):
    """One message of Alertmanager."""

    version: Literal["4"]
    alerts: list[Alert]
