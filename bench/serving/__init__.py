"""Requests a second and latencies of served models: our hosts, and the ways that others serve the same models."""
