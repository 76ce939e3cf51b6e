"""From recorded matrix-vector products to a fitted surrogate with standard errors. Takes arrays, never files.

`labrig_calibration.dataset` and `.stimulus` need numpy only; everything else needs the extra `train`.
"""
