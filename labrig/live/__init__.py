"""A page to watch a run, and to stop it: fed by the events of the run, in a thread of its own, never in its way.

`LivePage` serves it; what the page may do to a run is a `Steering`. How it is used is in docs/how-to/watch-live.md.
"""
