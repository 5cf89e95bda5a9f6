"""The words of README and docs: links lead somewhere, and commands can be typed."""

import importlib
import re
from pathlib import Path

import pytest

from tests.test_commands import COMMANDS, options_in_help

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(\s*([^)\s]+)\s*\)")


def heading_ids(text: str) -> set[str]:
    """The anchors that headings get where Markdown is shown."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_within_the_project_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in heading_ids(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_on_a_page_exists_and_has_the_options_that_it_is_given(page: Path) -> None:
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    for module, rest in re.findall(r"python -m ((?:raymlc|tests)[\w.]+)([^\n`]*)", text):
        name = module.removeprefix("raymlc.")
        if name in COMMANDS:
            assert options_in_help(rest.partition("#")[0]) <= COMMANDS[name][1], rest
        else:
            importlib.import_module(module)
