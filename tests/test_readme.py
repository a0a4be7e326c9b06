"""The README's Python runs, and prints what its comments say."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("source", BLOCKS)
def test_python_of_the_readme_prints_what_it_says(source):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(source, {})
    assert printed.getvalue().splitlines() == re.findall(r"print\(.*\)  # (.*)", source)


@pytest.mark.parametrize("marker", ["main job", "tests"])
def test_the_commands_that_ci_runs_are_one_line_each(marker):
    (command,) = re.findall(rf"<!-- ci: {marker} -->\n```bash\n(.*?)```", README, flags=re.DOTALL)
    assert command.count("\n") == 1
    assert "pip install -e " in command
