"""What a terminal shows of what was written to it."""

from __future__ import annotations

import re

__all__ = ["screen"]

# a control sequence, a control character, or text
TOKEN = re.compile(
    r"\x1b\[(?P<numbers>[?\d;]*)(?P<command>[A-Za-z])|(?P<control>[\r\n])|(?P<text>.)"
)


def screen(written: str, width: int) -> list[str]:
    """Return the lines that stand on a terminal of a width in the end, empty ones at the end too.

    Knows what bars use: the cursor goes to the start of a line, up and down; lines are erased;
    text that reaches the edge goes on in the next line.
    """
    rows: list[list[str]] = [[]]
    row = 0
    column = 0
    for match in TOKEN.finditer(written):
        command = match["command"]
        if command == "A":
            row -= int(match["numbers"] or 1)
        elif command == "K":
            rows[row] = []
        elif match["control"] == "\r":
            column = 0
        elif match["control"] == "\n" or (match["text"] and column == width):
            row += 1
            column = 0
        if row == len(rows):
            rows.append([])
        if match["text"]:
            rows[row] += [" "] * (column + 1 - len(rows[row]))
            rows[row][column] = match["text"]
            column += 1
    return ["".join(each).rstrip() for each in rows]
