"""Networks for small images under quantisation and noise: how they are trained, kept and judged on many chips."""
