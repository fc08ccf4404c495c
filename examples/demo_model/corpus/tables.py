"""Reading the tables in the folder data: plain text, one entry on a line."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent / "data"

Block = tuple[tuple[str, ...], tuple[str, ...]]


def read_lines(name: str) -> tuple[str, ...]:
    """The lines of a table that are not empty."""
    return tuple(line for line in (_FOLDER / name).read_text(encoding="utf-8").splitlines() if line)


def read_words(name: str) -> tuple[str, ...]:
    """The words of a table, several on a line."""
    return tuple(" ".join(read_lines(name)).split())


def read_columns(name: str, num_columns: int) -> tuple[tuple[str, ...], ...]:
    """Lines of `num_columns` values with a bar between them. Raises ValueError for any other line."""
    rows = tuple(tuple(line.split("|")) for line in read_lines(name))
    for row in rows:
        if len(row) != num_columns:
            raise ValueError(f"{name}: {'|'.join(row)!r} has {len(row)} values; expected {num_columns}")
    return rows


def read_blocks(name: str) -> tuple[Block, ...]:
    """Blocks with an empty line between them: questions, then possible answers after "> ".

    Raises ValueError for a block without a question or without an answer.
    """
    blocks: list[Block] = []
    for text in (_FOLDER / name).read_text(encoding="utf-8").strip().split("\n\n"):
        lines = text.splitlines()
        questions = tuple(line for line in lines if not line.startswith("> "))
        answers = tuple(line[2:] for line in lines if line.startswith("> "))
        if not questions or not answers:
            raise ValueError(f"{name}: {text!r} lacks a question or an answer")
        blocks.append((questions, answers))
    return tuple(blocks)
