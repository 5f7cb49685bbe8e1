"""The QoE workflow against the pattern that it replaces."""
