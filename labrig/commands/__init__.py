"""The verbs of the command line: each parses, calls one function, prints. Heavy imports stay inside them."""
