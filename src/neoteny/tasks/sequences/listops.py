"""ListOps: nested lists of digits under MIN, MAX, MED and SM, to be evaluated (Nangia & Bowman 2018).

In the style of the Long Range Arena (Tay et al. 2021): a node is an operator with probability 0.25 and a digit
otherwise, an operator has 2 to `max_args` arguments, nodes at `max_depth` are digits, and an expression is kept if
min_length < tokens < max_length (the archive: 500, 2000, depth 10, 10 arguments). Parentheses are left out, as every
published model does: tokens are digits, operators with their bracket, and the closing bracket.
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path

import numpy as np

from neoteny.errors import UsageError
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.sequences.rows import from_parts, padded_rows, positive

OPERATOR_SHARE = 0.25
"""Probability that a node above the greatest depth is an operator (`VALUE_P` of the archive's generator)."""

SYMBOLS = (*"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
"""Token t is SYMBOLS[t - 1]; 0 is padding."""

TOKENS = len(SYMBOLS) + 1
MIN, MAX, MED, SM, END = range(11, 16)
SOURCE = "ListOps; Nangia & Bowman 2018, Tay et al. 2021 (Long Range Arena)"

_ROUND = 4_096
"""Expressions begun at once; it is part of what a seed means."""

_BARREN = 200
"""Rounds without a new expression after which there are taken to be none."""


def listops(
    examples: int = 20_000,
    *,
    min_length: int = 500,
    max_length: int = 2_000,
    max_depth: int = 10,
    max_args: int = 10,
    dev: int = 2_000,
    test: int = 2_000,
    seed: int = 0,
) -> Arrays:
    """Generated expressions, all different: inputs (n, max_length) int8 tokens, labels their values 0 to 9.

    `examples` are for training; dev and test come on top. Reduced sizes: min_length=10, max_length=100, max_depth=4.
    The archive has 96,000. UsageError where the sizes allow too few different expressions.
    """
    positive(examples, "examples")
    positive(max_depth, "max_depth", 2)
    positive(max_args, "max_args", 2)
    if not 0 <= min_length < max_length - 1:
        raise UsageError(f"min_length={min_length} and max_length={max_length} leave no length between them")
    return _listops(examples, min_length, max_length, max_depth, max_args, dev, test, seed)


@functools.lru_cache(maxsize=4)
def _listops(
    examples: int, min_length: int, max_length: int, max_depth: int, max_args: int, dev: int, test: int, seed: int
) -> Arrays:
    wanted = examples + dev + test
    rng = np.random.default_rng([seed, 1])
    rows = np.zeros((0, max_length), np.int8)
    values = np.zeros(0, np.int32)
    barren = 0
    while len(rows) < wanted:
        more, results = expressions(rng, _ROUND, min_length, max_length, max_depth, max_args)
        both = np.concatenate([rows, more])
        _, first = np.unique(both.view(np.dtype((np.void, max_length))).ravel(), return_index=True)
        kept = np.sort(first)
        barren = barren + 1 if len(kept) == len(rows) else 0
        if barren == _BARREN:
            raise UsageError(
                f"only {len(rows):,} different expressions of {min_length} to {max_length} tokens were found and "
                f"{wanted:,} are wanted; ask for fewer, or allow more depth or length"
            )
        rows, values = both[kept], np.concatenate([values, results])[kept]
    parts, start = {}, 0
    for split, size in (("train", examples), ("dev", dev), ("test", test)):
        if size:
            parts[split] = rows[start : start + size], values[start : start + size]
        start += size
    name = f"listops-{examples}-{min_length}-{max_length}-{max_depth}-{max_args}-{seed}"
    return from_parts(name, parts, classes=10, tokens=TOKENS, source=f"generated, seed {seed}; {SOURCE}")


def expressions(
    rng: np.random.Generator, count: int, min_length: int, max_length: int, max_depth: int, max_args: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of `count` expressions begun, those of min_length < tokens < max_length.

    Returns rows (m, max_length) int8 and values (m,).

    All trees grow together, one depth at a time. A root that is a digit is a tree of one token: roots here are
    operators, which is the archive's distribution for any min_length >= 1.
    """
    # Level by level: the parent (a place in the level above), the symbol (0 where an operator), sizes below.
    parents: list[np.ndarray] = [np.arange(count)]
    operators: list[np.ndarray] = [np.ones(count, bool)]
    symbols: list[np.ndarray] = [rng.integers(MIN, END, count, dtype=np.int8)]
    grown = np.full(count, 2, np.int64)  # tokens so far, to give up on trees that are already too long
    owner = np.arange(count)
    for depth in range(2, max_depth + 1):
        above = np.flatnonzero(operators[-1])
        above = above[grown[owner[above]] < max_length]
        arguments = rng.integers(2, max_args + 1, len(above))
        parent = np.repeat(above, arguments)
        is_operator = rng.random(len(parent)) <= OPERATOR_SHARE if depth < max_depth else np.zeros(len(parent), bool)
        digits = rng.integers(1, 11, len(parent), dtype=np.int8)
        symbol = np.where(is_operator, rng.integers(MIN, END, len(parent), dtype=np.int8), digits)
        owner = owner[parent]
        grown += np.bincount(owner, np.where(is_operator, 2, 1), count).astype(np.int64)
        parents.append(parent)
        operators.append(is_operator)
        symbols.append(symbol)
    # Bottom up: sizes and values of every node.
    sizes = [np.where(mask, 2, 1).astype(np.int64) for mask in operators]
    results = [symbol.astype(np.int64) - 1 for symbol in symbols]
    for level in range(len(parents) - 1, 0, -1):
        parent = parents[level]
        sizes[level - 1] += np.bincount(parent, sizes[level], len(sizes[level - 1])).astype(np.int64)
        if len(parent):
            places, value = evaluate(symbols[level - 1], parent, results[level])
            results[level - 1][places] = value
    kept = (sizes[0] > min_length) & (sizes[0] < max_length) & (grown < max_length)
    rows = np.zeros((count, max_length), np.int8)
    # Top down: a node's place is its parent's, plus 1 for the operator, plus its elder siblings' sizes.
    row = np.arange(count)
    alive = kept
    place = np.zeros(count, np.int64)
    for level in range(len(parents)):
        if level:
            parent = parents[level]
            row, alive = row[parent], alive[parent]
            elder = np.cumsum(sizes[level]) - sizes[level]
            first = np.searchsorted(parent, parent, side="left")
            place = place[parent] + 1 + elder - elder[first]
        rows[row[alive], place[alive]] = symbols[level][alive]
        closing = alive & operators[level]
        rows[row[closing], place[closing] + sizes[level][closing] - 1] = END
    return rows[kept], results[0][kept].astype(np.int32)


def evaluate(symbols: np.ndarray, parent: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places of the parents, their values): each operator applied to its children.

    symbols: (parents,) tokens of the level above; parent: (children,) sorted places in it; values: (children,).
    MED is the median rounded down, SM the sum modulo 10.
    """
    starts = np.flatnonzero(np.r_[True, parent[1:] != parent[:-1]])
    counts = np.diff(np.r_[starts, len(parent)])
    ordered = values[np.lexsort((values, parent))]
    middle = (ordered[starts + (counts - 1) // 2] + ordered[starts + counts // 2]) // 2
    places = parent[starts]
    operator = symbols[places]
    found = np.select(
        [operator == MIN, operator == MAX, operator == MED],
        [ordered[starts], ordered[starts + counts - 1], middle],
        np.add.reduceat(values, starts) % 10,
    )
    return places, found


def listops_tsv(folder: str | Path, *, length: int = 2_000) -> Arrays:
    """The archive's files basic_train.tsv, basic_val.tsv and basic_test.tsv (columns Source and Target).

    Rows longer than `length` tokens are cut at the end. UsageError names a file or line that does not fit.
    """
    folder = Path(folder).expanduser()
    parts = {}
    for split, file in (("train", "basic_train.tsv"), ("dev", "basic_val.tsv"), ("test", "basic_test.tsv")):
        path = folder / file
        if path.is_file():
            parts[split] = _read(path, length)
    if "train" not in parts:
        raise UsageError(f"{folder}: no basic_train.tsv; give the folder with the archive's ListOps files")
    return from_parts("listops", parts, classes=10, tokens=TOKENS, source=f"{folder}; {SOURCE}")


_TOKEN = {symbol: token for token, symbol in enumerate(SYMBOLS, 1)}


def tokenize(expression: str) -> list[int]:
    """Tokens of an expression as text; parentheses are left out. KeyError for an unknown symbol."""
    return [_TOKEN[symbol] for symbol in expression.replace("(", " ").replace(")", " ").split()]


def _read(path: Path, length: int) -> tuple[np.ndarray, np.ndarray]:
    flat: list[int] = []
    lengths, labels = [], []
    with path.open(newline="") as file:
        for line, row in enumerate(csv.reader(file, delimiter="\t"), 1):
            if line == 1 and row[:1] == ["Source"]:
                continue
            try:
                source, target = row
                tokens = tokenize(source)
                labels.append(int(target))
            except (ValueError, KeyError) as error:
                raise UsageError(f"{path}, line {line}: not an expression and its value ({error})") from error
            flat += tokens
            lengths.append(len(tokens))
    counts = np.asarray(lengths, np.int64)
    rows = padded_rows(np.asarray(flat, np.int8), np.cumsum(counts) - counts, counts, length)
    return rows, np.asarray(labels, np.int32)
