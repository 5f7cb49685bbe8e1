"""Embedded mode: the real servers that SEMR needs, on this machine, under one supervisor.

`control` is the way in (`up`, `down`, `status`); `semr.cli` is its command line.
"""
