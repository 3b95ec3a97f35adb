"""The documentation site: `make docs` writes it to docs/_build. Pages are Markdown, the reference is made from docstrings."""

import gossamer

project = "Gossamer"
copyright = "the Gossamer authors, Apache-2.0"
release = gossamer.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "evidence/*/*"]
html_theme = "furo"
html_title = "Gossamer"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"Tensor": "Tensor"}
napoleon_numpy_docstring = False
suppress_warnings = ["myst.xref_missing"]  # links to folders and files that are read in the repository
