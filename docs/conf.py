"""How the documentation site is built: `python -m sphinx -W --keep-going -b html docs build/docs`."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "labrig"
author = "The labrig authors"
copyright = "The labrig authors"
release = version = installed_version("labrig")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "linked_contents",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]

html_theme = "furo"
html_title = "labrig"
html_show_sourcelink = False

# Links to headings (`page.md#heading`) are checked like links to pages.
myst_heading_anchors = 3
