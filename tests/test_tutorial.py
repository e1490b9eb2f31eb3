"""docs/tutorial.md as a newcomer pastes it: every block runs, and prints what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
SHOWN_BY = (3, 11)  # the Python whose docstrings the page ranks
FAULTS = ("Traceback (most recent call last)", "SyntaxError", "Error: ")
# In what the page shows, … stands for anything, and a number, a variant or a line of a file for
# another one: variants rank docstrings that are nearly as good in another order.
LOOSE = re.compile(
    r"(?P<anything>\s*…\s*)"
    r"|(?P<line>\b[\w/]+\.py:\d+)"
    r"|(?P<variant>\b(?:torch|onnx|openvino)-[a-z]+\d+\b)"
    r"|(?P<number>-?\d[\d.,:]*)"
    r"|(?P<rule>[-─╌═]{2,})"
    r"|(?P<blank>\s+)"
)
MATCHED_BY = {
    "anything": r".*?",
    "line": r"[\w/]+\.py:\d+",
    "variant": r"(?:torch|onnx|openvino)-[a-z]+\d+",
    "number": r"-?\d[\d.,:]*",
    "rule": r"[-─╌═]+",
    "blank": r"\s+",
}
# The page validates the variant that it was recommended, and says to put one's own in its place.
ITS_OWN = "--variant openvino-int8"
RECOMMENDED = """--variant $(python -c 'if True:
    import json
    measured = json.load(open("reranker/xopt.json"))["measured"]
    print(*(machine["recommended"] for machine in measured.values()))
')"""


@dataclass
class Block:
    """A block to paste, and what the page shows that it prints."""

    language: str
    code: str
    shown: str = ""


def blocks_of_the_page() -> list[Block]:
    blocks: list[Block] = []
    for token in MarkdownIt().parse(PAGE.read_text(encoding="utf-8")):
        if token.type != "fence":
            continue
        if token.info == "text":
            blocks[-1].shown += token.content
        else:
            blocks.append(Block(token.info, token.content))
    return blocks


def script_of(blocks: list[Block], place: Path) -> str:
    """One shell for all blocks. What a block prints goes to files of its number in `place`."""
    lines = ["set -e"]
    for number, block in enumerate(blocks):
        code = block.code.replace(ITS_OWN, RECOMMENDED)
        if block.language == "python":
            pasted = place / f"{number}.py"
            pasted.write_text(code + "\n", encoding="utf-8")
            code = f"python -q -i < {pasted}\n"
        lines.append(f"{{\n{code}}} > {place}/{number}.out 2> {place}/{number}.err")
    return "\n".join(lines) + "\n"


def pattern_of(shown: str) -> str:
    """The regular expression of what a block may print."""
    parts = []
    end = 0
    text = shown.strip()
    for loose in LOOSE.finditer(text):
        parts += [re.escape(text[end : loose.start()]), MATCHED_BY[str(loose.lastgroup)]]
        end = loose.end()
    return "".join([*parts, re.escape(text[end:])])


def run(blocks: list[Block], place: Path) -> list[tuple[str, str]]:
    """Paste the blocks into one shell, in a checkout with an empty home; give what each prints to
    standard output and standard error.
    """
    home = place / "home"
    checkout = place / "checkout"
    printed = place / "printed"
    for folder in (home, checkout, printed):
        folder.mkdir()
    (checkout / ".venv").symlink_to(sys.prefix)
    script = place / "script.sh"
    script.write_text(script_of(blocks, printed), encoding="utf-8")
    environment = {**os.environ, "HOME": str(home)}
    ended = subprocess.run(["bash", script], cwd=checkout, env=environment, check=False)
    texts = []
    for number in range(len(list(printed.glob("*.err")))):
        out = (printed / f"{number}.out").read_text(encoding="utf-8")
        texts.append((out, (printed / f"{number}.err").read_text(encoding="utf-8")))
    assert ended.returncode == 0, f"{blocks[len(texts) - 1].code}\n{''.join(texts[-1])}"
    return texts


@pytest.mark.slow
@pytest.mark.alone
def test_every_block_of_the_tutorial_runs_and_prints_what_the_page_shows(tmp_path: Path) -> None:
    blocks = blocks_of_the_page()
    assert {block.language for block in blocks} == {"bash", "python"}
    for block, (out, error) in zip(blocks, run(blocks, tmp_path), strict=True):
        assert not any(fault in error for fault in FAULTS), f"{block.code}\n{error}"
        if sys.version_info[:2] == SHOWN_BY:
            matches = re.fullmatch(pattern_of(block.shown), out.strip(), re.DOTALL)
            assert matches, f"{block.code}\nprinted:\n{out}\nand not:\n{block.shown}"
