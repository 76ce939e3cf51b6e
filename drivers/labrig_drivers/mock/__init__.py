"""The simulated bench: a chip with a hidden truth, an in-process board, and real servers on sockets and ptys.

Nothing here shares code with `labrig_surrogates`: the physics is written a second time, so that calibration has
something independent to find.
"""
