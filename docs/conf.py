"""How Sphinx builds the site: `make docs`. Pages made from code, cards, notebooks and data lie in docs/made."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from maker import api, board, cards, figures, markup, notebooks, static  # noqa: E402

import lab  # noqa: E402

project = "lab"
author = "The lab's authors"
copyright = author
version = release = lab.__version__
html_title = "lab"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "made/static"]
templates_path = ["templates"]
nb_execution_mode = "off"
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["colon_fence", "dollarmath", "substitution"]
myst_substitutions = figures.quoted()
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries = False
viewcode_line_numbers = True

html_theme = "furo"
html_theme_options = {"navigation_with_keys": False}
html_static_path = ["static", "made/static"]
html_css_files = ["lab.css", "site.css"]
html_js_files = [("lab-explorer.js", {"defer": "defer"}), ("site.js", {"defer": "defer"})]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = html_show_sourcelink = False


def setup(app):
    """Write what is made into docs/made before Sphinx reads the pages."""
    made = HERE / "made"
    for part in (static, notebooks, cards, api, board):
        part.write(made)
    app.add_html_math_renderer("mathml", markup.INLINE_MATH, markup.BLOCK_MATH)
    app.connect("autodoc-process-docstring", markup.docstring)
    app.connect("autodoc-process-signature", markup.signature)
