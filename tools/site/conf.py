"""Sphinx's settings for the web book; tools/site/build.py calls it."""

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
SITE = json.loads(Path(os.environ["NANOGPT_SITE"]).read_text(encoding="utf-8"))

project = "GPT-2 from an empty file"
html_title = project
copyright = "the course's authors; MIT licence"  # noqa: A001
language = "en"
extensions = ["myst_nb", "sphinx_design", "sphinx_copybutton", "mathml", "terms", "symbols"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
nb_execution_mode = "off"
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "text/html", 0)]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 4
myst_update_mathjax = False
html_math_renderer = "mathml"
html_theme = "sphinx_book_theme"
html_static_path = [str(HERE / "static")]
html_css_files = ["course.css"]
html_js_files = ["course.js"]
html_show_sourcelink = False
html_copy_source = False
html_last_updated_fmt = None
html_favicon = str(HERE / "static/icon.svg")
html_use_index = False
html_context = {"default_mode": "auto"}
smartquotes = False
pygments_style = "a11y-high-contrast-light"
copybutton_exclude = ".linenos, .gp, .go"
copybutton_selector = (
    "div.cell_input div.highlight pre, div.highlight-python pre, div.highlight-default pre"
)
html_theme_options = {
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "show_prev_next": True,
    "footer_content_items": ["copyright"],
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
    **SITE,
}
