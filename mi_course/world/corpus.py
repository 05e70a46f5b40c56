"""The training corpus: documents of the world, packed into rows, made again from the seed at any time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from . import generate
from .tokenizer import vocabulary

ROW = 96  # tokens in a row; also the largest position a lab model knows
CHUNK = 400_000  # tokens generated at a time


@dataclass
class Chunk:
    """Packed rows: `ids`, `document`, `position`, `answer` are [rows, ROW] integers. `document` 0 is padding, else its
    number in the row; `answer` is 1 for words of the continuation, which the prompt determines."""

    ids: np.ndarray
    document: np.ndarray
    position: np.ndarray
    answer: np.ndarray
    tokens: Counter  # domain -> tokens
    dealt: Counter  # (dial, key, outcome) -> times: what the corpus really contains


def make_chunk(world: generate.World, index: int, weights: dict[str, float], tokens: int = CHUNK) -> Chunk:
    """Chunk number `index` of the corpus. Documents stand as `<bos> text <eos>`; a sixth of them are followed by more
    documents in the same context, so that the model also sees late positions and unrelated text before a prompt."""
    ids = {w: i for i, w in enumerate(vocabulary())}
    bos, eos = ids["<bos>"], ids["<eos>"]
    draw = generate.Draw(world, "train", seed=index)
    names, shares = list(weights), list(weights.values())
    counts: Counter = Counter()
    pieces: list[list[tuple[int, int]]] = []  # (id, answer) of every word
    total = 0
    while total < tokens:
        piece = [(bos, 0)]
        more = draw.rng.random() < 1 / 6
        while True:
            domain = draw.rng.choices(names, shares)[0]
            prompt, continuation = generate.document(world, draw, domain)
            words = [(ids[w], 0) for w in prompt.split()] + [(ids[w], 1) for w in continuation.split()] + [(eos, 0)]
            if len(piece) + len(words) > ROW:
                break
            piece += words
            counts[domain] += len(words)
            if not more:
                break
        pieces.append(piece)
        total += len(piece)
    rows = _pack(pieces)
    draw.rng.shuffle(rows)
    out = np.zeros((4, len(rows), ROW), dtype=np.int64)
    for r, row in enumerate(rows):
        at = 0
        for number, piece in enumerate(row, start=1):
            out[[0, 3], r, at : at + len(piece)] = np.array(piece).T
            out[1, r, at : at + len(piece)] = number
            out[2, r, at : at + len(piece)] = range(len(piece))
            at += len(piece)
    return Chunk(*out, tokens=counts, dealt=draw.counts)


def _pack(pieces: list[list], open_rows: int = 64) -> list[list[list]]:
    """First fit, with a bounded number of open rows: every row holds at most ROW tokens."""
    done, rows, room = [], [], []
    for piece in pieces:
        for i, free in enumerate(room):
            if len(piece) <= free:
                rows[i].append(piece)
                room[i] -= len(piece)
                break
        else:
            rows.append([piece])
            room.append(ROW - len(piece))
            if len(rows) > open_rows:
                fullest = min(range(len(room)), key=room.__getitem__)
                done.append(rows.pop(fullest))
                room.pop(fullest)
    return done + rows
