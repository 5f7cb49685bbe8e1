"""What training is told and how it fails, whatever the framework."""

from __future__ import annotations
