"""Documents come out of packages' files whole, in order, and with nothing of theirs lost."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from lg.data.assets.works import bible, essays, faq, plain, tokenizer


def test_plain_texts_have_the_line_ends_of_unix() -> None:
    files = {"x/texts/lear_gut.txt": b"\xef\xbb\xbfa\r\nb\r\n", "x/texts/lear_two_gut_f.txt": b"c\n"}
    assert plain(files) == {"lear.txt": b"a\nb\n", "lear_two.txt": b"c\n"}


ESSAYS = [
    "April 2012A nurse made a list.\n\nIn January 2003, they sold (May 2004) it.",
    "January 2015Corporate development, November\n2002, \nApril 2002,\nand February\n2002 count.\n",
    "\n\nMarch 2006, rev August 2009  \n  \nYesterday it rained.  \n  \n\n",
    "October 2010\n\n(I wrote this.)  \n",
]


def test_essays_begin_at_their_dates_and_nothing_is_lost() -> None:
    made = essays({"json/PaulGrahamEssays.json": json.dumps({"text": "".join(ESSAYS)}).encode()})
    names = ["001-april-2012.txt", "002-january-2015.txt", "003-march-2006.txt", "004-october-2010.txt"]
    assert list(made) == names
    assert [text.decode() for text in made.values()] == [f"{essay.strip()}\n" for essay in ESSAYS]


def test_the_bible_is_what_its_program_prints(tmp_path: Path) -> None:
    text = "\nRuth 1\n\n  1 Now it came\nto pass 1\n  2 And\n\nRuth 2\n\n  1 And\n\n1 Samuel 1\n\n  1 Now there was\n"
    program = '#!/bin/sh\n[ "$*" = "-l79 -p ./ Gen1:1-Rev22:21" ] && cat bible.data\n'
    made = bible({"usr/bin/bible": program.encode(), "usr/lib/bible.data": text.encode()})
    assert list(made) == ["01-ruth.txt", "02-1-samuel.txt"]
    assert b"\n".join(made.values()).decode() == text.lstrip()


@pytest.mark.parametrize("program", ["#!/nowhere\n", "#!/bin/sh\necho libreadline is missing >&2; exit 127\n"])
def test_a_program_that_does_not_run(program: str) -> None:
    with pytest.raises(
        ValueError, match=r"^the program `bible` of Debian's bible-kjv (cannot be run: |ended with 127: lib)"
    ):
        bible({"usr/bin/bible": program.encode()})


def test_the_faq_is_in_the_order_of_its_contents() -> None:
    names = ["secA1", "secA10", "secA2", "secAcon", "secAint", "secB1", "alinks", "secretary"]
    names += ["append1", "append13", "append13int", "append131", "append1310", "append132", "append11", "append41"]
    files = {f"usr/markdown/{name}.md": f"{name}\r\n\n".encode() for name in names}
    files["usr/markdown/secB2.md.gz"] = gzip.compress(b"secB2\n")
    made = {name: re.split(r"\s+", text.decode().strip()) for name, text in faq(files).items()}
    assert made == {
        "section-a.md": ["secAint", "secA1", "secA2", "secA10", "secAcon"],
        "section-b.md": ["secB1", "secB2"],
        "appendix-1.md": [f"append{rest}" for rest in ("1", "11", "13", "13int", "131", "132", "1310")],
        "appendix-4.md": ["append41"],
    }


def test_a_tokenizer_is_as_it_is() -> None:
    assert tokenizer({"package/models/tokenizer.json": b"{}"}) == {"tokenizer.json": b"{}"}
