"""The documentation site: ``python -m sphinx -W docs site`` builds it, without a network."""

import os
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
# Pages and notebooks name files of the repository, and the package is documented from the clone.
os.chdir(ROOT)
os.environ["PYTHONPATH"] = str(ROOT)
sys.path.insert(0, str(ROOT))

from qmath import __version__  # noqa: E402

project = "qmath"
author = "the qmath authors"
release = version = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"qmath {release}"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

autodoc_typehints = "none"  # numpydoc's sections have the types
numpydoc_show_class_members = False

PROJECT = {  # files outside of docs, and the pages that include them
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "reference/worst/README.md": "worst-cases.md",
}
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True  # what notebooks write is not left beside them
nb_execution_raise_on_error = True
nb_execution_timeout = 300


def _links_to_root_files(_: Sphinx, name: str, source: list[str]) -> None:
    """Let links to the repository's own pages lead to their copies in the site."""
    up = "../" * name.count("/")
    for path, page in PROJECT.items():
        source[0] = re.sub(rf"\]\((?:\.\./)+{path}\b", f"]({up}project/{page}", source[0])


def setup(app: Sphinx) -> None:
    """Register what the pages need besides the extensions."""
    app.connect("source-read", _links_to_root_files)
