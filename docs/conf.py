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
    "generated_pages",
    "docstring_markup",
    "public_alias",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]

html_theme = "furo"
html_title = "labrig"
html_show_sourcelink = False

# Links to headings (`page.md#heading`) are checked like links to pages.
myst_heading_anchors = 3

toc_object_entries = False  # a page of the API has a heading for each name; their members would fill the sidebar
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Notebooks are kept without what they print; the build runs them, and a cell that fails fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
