"""A rig served to other machines: `labrig serve` on the bench, `labrig.boards.remote` wherever it is used.

Topics, envelope and verbs are in docs/reference/mqtt-topics.md.
"""
