"""The Python of every page runs, in order, and prints what its comments say."""

import contextlib
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import papers
from experiments.report.claims import check

PAGES = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_of_a_page_prints_what_it_says(page):
    source = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), np.printoptions():
        exec(source, {})
    assert printed.getvalue().splitlines() == re.findall(r"^print\(.*\)  # (.*)", source, re.M)


@pytest.fixture
def forgetting():
    """Forget the toy's modules, whatever becomes of the test."""
    yield
    for name in [name for name in sys.modules if name.startswith("experiments.papers.toy")]:
        del sys.modules[name]


@pytest.mark.usefixtures("forgetting")
def test_the_files_of_the_page_on_papers_are_a_paper(tmp_path, monkeypatch):
    """Each of them alone, as somebody would copy it, with the imports that it shows."""
    text = (PAGES[0].parent / "adding-a-paper.md").read_text()
    files = re.findall(r"^## `([\w/.]+)`.*?```python\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    for name, source in [*files, ("studies/__init__.py", "")]:
        path = tmp_path / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    monkeypatch.setattr(papers, "__path__", [*papers.__path__, str(tmp_path)])
    monkeypatch.setattr(papers, "PAPERS", [*papers.PAPERS, "toy"])
    paper = papers.load("toy")
    check(paper.part("claims").CLAIMS, paper.known())
    assert paper.part("figures").COLUMNS
    for study in paper.studies:
        found = paper.part(f"studies.{study.name}").measure(None, **study.options["smoke"])
        assert found.protocols() == (study.name,)
