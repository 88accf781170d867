"""Makes documents, or a model's files, out of what packages hold: one function for each way of holding them.

Each takes the files of one or more packages by their paths, and gives what is kept by file name, in UTF-8 with the
line ends of Unix. All are pure but `bible`.
"""

import gzip
import json
import re
import subprocess
import tempfile
from pathlib import Path

from lg.data.assets.archive import Files
from lg.data.assets.gguf_tokenizer import tokenizer_json
from lg.data.assets.r_data import character_vectors


def plain(files: Files) -> Files:
    """Files as they are, by their last names; those of Project Gutenberg lose the mark of that in their names."""
    return {re.sub(r"_gut(_f)?(?=\.)", "", path.rpartition("/")[2]): _unix(text) for path, text in files.items()}


_DATE = (
    r"(January|February|March|April|May|June|July|August|September|October|November|December)"
    r" ((?:19|20)\d\d)"
)
# The file was joined without anything between: a date that follows a letter or stands on a line of its own (it may
# have been revised) begins an essay.
_ESSAY = re.compile(rf"(?:^|(?<=[^\s(])|(?<=\n)){_DATE}(?=[^\s,.)]|,? \(?(?:rev|corr)|\s*\n)")


def essays(files: Files) -> Files:
    """The essays that one JSON file holds end to end, each from its date to the next essay's; all text is kept.

    What stands above a date (an epigraph, an advertisement) so ends up below the essay before.
    """
    text = json.loads(_only(files))["text"]
    starts = list(_ESSAY.finditer(text))
    ends = [start.start() for start in starts[1:]] + [len(text)]
    begins = [0, *ends[:-1]]
    return {
        f"{number:03}-{start[1].lower()}-{start[2]}.txt": text[begin:end].strip().encode() + b"\n"
        for number, (start, begin, end) in enumerate(zip(starts, begins, ends, strict=True), start=1)
    }


def novels(files: Files) -> Files:
    """The vectors of lines in an R package's database, each a book."""
    by_ending = {Path(path).suffix: content for path, content in files.items()}
    vectors = character_vectors(by_ending[".rdx"], by_ending[".rdb"])
    return {f"{name}.txt": "\n".join([*lines, ""]).encode() for name, lines in vectors.items()}


_BOOK = re.compile(r"^((?:\d )?[A-Z][A-Za-z ]+) 1$(?=\n\n  1 )", re.MULTILINE)


def bible(files: Files) -> Files:
    """The books of the Bible, which only the package's own program can decompress: it is run on them.

    Raises:
        ValueError: the program cannot be run here, or fails.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            for path, content in files.items():
                Path(folder, Path(path).name).write_bytes(content)
            program = Path(folder, "bible")
            program.chmod(0o700)
            command = [str(program), "-l79", "-p", "./", "Gen1:1-Rev22:21"]
            done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True)
    except OSError as error:
        raise ValueError(f"the program `bible` of Debian's bible-kjv cannot be run: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().replace(str(program), "bible")
        raise ValueError(f"the program `bible` of Debian's bible-kjv ended with {done.returncode}: {said}")
    text = done.stdout.decode()
    starts = list(_BOOK.finditer(text))
    ends = [start.start() for start in starts[1:]] + [len(text)]
    return {
        f"{number:02}-{start[1].lower().replace(' ', '-')}.txt": text[start.start() : end].strip().encode() + b"\n"
        for number, (start, end) in enumerate(zip(starts, ends, strict=True), start=1)
    }


# Chapters of an appendix may have chapters of their own: append13, append13int, append131, append1310.
_SECTION = re.compile(r"sec(?P<part>[A-J])(?P<chapter>int|con|\d+)(?P<below>)\.md(?:\.gz)?")
_APPENDIX = re.compile(r"append(?P<part>\d)(?P<chapter>\d?)(?P<below>int|\d*)\.md(?:\.gz)?")
_PLACE = {"": -1, "int": 0, "con": 99}


def faq(files: Files) -> Files:
    """The sections of the FAQ and its appendices, each with its chapters in the order of its table of contents.

    Lists of links, of books and of other pages are left out.
    """
    parts: dict[str, dict[tuple[int, ...], bytes]] = {}
    for path, content in files.items():
        for kind, pattern in (("section", _SECTION), ("appendix", _APPENDIX)):
            if found := pattern.fullmatch(path.rpartition("/")[2]):
                part = parts.setdefault(f"{kind}-{found['part'].lower()}.md", {})
                place = tuple(_PLACE[word] if word in _PLACE else int(word) for word in found.group("chapter", "below"))
                part[place] = _unix(gzip.decompress(content) if path.endswith(".gz") else content).strip()
    return {name: b"\n\n".join(part[place] for place in sorted(part)) + b"\n" for name, part in parts.items()}


def tokenizer(files: Files) -> Files:
    """A ``tokenizer.json``, as it is."""
    return {"tokenizer.json": _only(files)}


def gguf_model(files: Files) -> Files:
    """A model in GGUF, by its own name, and its tokenizer beside it."""
    (path,) = files
    return {path.rpartition("/")[2]: files[path], "tokenizer.json": tokenizer_json(files[path])}


def _only(files: Files) -> bytes:
    (content,) = files.values()
    return content


def _unix(text: bytes) -> bytes:
    return text.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
