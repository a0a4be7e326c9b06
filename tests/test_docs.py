"""The Python of every page runs, in order, and prints what its comments say."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

PAGES = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_of_a_page_prints_what_it_says(page):
    source = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), np.printoptions():
        exec(source, {})
    assert printed.getvalue().splitlines() == re.findall(r"^print\(.*\)  # (.*)", source, re.M)
