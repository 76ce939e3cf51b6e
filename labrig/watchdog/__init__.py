"""The watchdog process: it does nothing while its parent lives, and makes the instruments safe when it was killed.

`client` is the parent's side, `process` and `rescue` run in the process itself, `messages` is what goes between them.
"""
