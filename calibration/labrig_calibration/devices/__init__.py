"""Fits of single devices to what instruments measured of them: curves, programming, relaxation, noise, pulses.

Everything takes arrays in SI units and gives frozen values with standard errors and 90 % intervals; each fit has a
`summary()` and, where there is one, the law of `labrig_surrogates` that a layer can use. Needs the extra `train`.
"""
