"""What the documentation site shows of the code is made from the code when the site is built; none of it is kept.

A page for each pattern of `lg.attention.gallery`, with its pictures and its curve; and wherever a page has a line such
as ``<!-- lg --help -->``, what that command prints.
"""

from __future__ import annotations

import contextlib
import io
import re
from typing import TYPE_CHECKING

import torch
from pattern_pages import picture, written

from lg.attention.gallery import EXAMPLES, Example
from lg.cli import main

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the pages of the patterns into the navigation, after those that are written by hand."""
    torch.set_num_threads(1)
    section = next(entry["Patterns"] for entry in config.nav or [] if "Patterns" in entry)
    section.extend({example.name: f"patterns/{example.name}.md"} for example in EXAMPLES.values())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Makes the pages of the patterns, and their pictures."""
    from mkdocs.structure.files import File

    for example in EXAMPLES.values():
        made: dict[str, str | bytes] = {
            f"{example.name}.md": written(example),
            f"{example.name}.png": picture(example, (0,)),
            f"{example.name}-packed.png": picture(example, (0, 20, 33)),
        }
        for name, content in made.items():
            files.append(File.generated(config, f"patterns/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in what commands print, and the gallery."""
    markdown = re.sub(r"<!-- lg (.*?) -->", lambda match: f"```text\n{_printed(match[1].split())}```", markdown)
    return markdown.replace("<!-- gallery -->", " ".join(map(_thumbnail, EXAMPLES.values())))


def _printed(args: list[str]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(args)
    if code:
        raise ValueError(f"`lg {' '.join(args)}`, which the documentation shows, ended with {code}")
    return out.getvalue()


def _thumbnail(example: Example) -> str:
    return f'[![{example.name}]({example.name}.png){{ width="150" title="{example.name}" }}]({example.name}.md)'
