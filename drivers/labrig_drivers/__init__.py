"""Async drivers for crossbar boards and source-meters, and the simulated bench that stands in for them.

Needs numpy, pyvisa and pyserial only; imports no other labrig package.
"""
