"""Training on the surrogate, on the chip, and on both in turn. Needs the extra `train`."""
