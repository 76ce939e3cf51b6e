"""The research studies, each one command: `labrig study NAME`.

A study prints its claim, the figure that decides it with an interval, and its negative controls; it writes a page and
the numbers behind it. A claim that does not hold is a result like any other.
"""
