"""Benchmarks: `make bench`, or `python -m bench --help`. They measure real servers and print medians with their spread."""
