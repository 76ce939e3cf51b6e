"""Benchmarks: each runs as `python -m benchmarks.NAME [--quick] [--json FILE]` and prints a table of ratios.

A script measures what it compares in one process, in interleaved rounds, and states versions and machine.
Absolute numbers belong to the machine; the ratios are what is promised.
"""
