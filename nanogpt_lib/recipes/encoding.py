"""Texts into token ids on all cores."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from nanogpt_lib.shards import document_row

Ids = list[int] | np.ndarray  # the tokens of one text


def batch_encoder(
    encode: Callable[[str], Ids], threads: int | None = None, chunk: int = 8
) -> Callable[[list[str]], list[Ids]]:
    """A function for one text becomes one for many texts, on several threads (default: all cores).

    A thread takes `chunk` texts at a time: handing over a short text alone costs more than encoding
    it. Threads suffice because tiktoken works outside Python's lock.
    """
    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1)

    def encode_some(texts: list[str]) -> list[Ids]:
        return [encode(text) for text in texts]

    def encode_batch(texts: list[str]) -> list[Ids]:
        chunks = [texts[i : i + chunk] for i in range(0, len(texts), chunk)]
        return [ids for encoded in pool.map(encode_some, chunks) for ids in encoded]

    return encode_batch


def take(documents: Iterator, most: int, characters: int = 1 << 24) -> list[tuple[object, str]]:
    """The next documents: at most so many, and no more once they hold so many characters."""
    taken = []
    while len(taken) < most and characters > 0 and (document := next(documents, None)):
        taken.append(document)
        characters -= len(document[1])
    return taken


def encode_documents(
    documents: Iterable[tuple[object, str]],
    encode_batch: Callable[[list[str]], list[Ids]],
    eot: int,
    batch: int = 1024,
) -> Iterator[tuple[object, np.ndarray]]:
    """(position, text) → (position, uint16 tokens); <|endoftext|> comes before every document.

    `encode_batch` encodes many texts at once (see batch_encoder). It works on the next batch while
    this one is consumed. An empty text is no document: left out.
    """
    documents = iter((position, text) for position, text in documents if text)
    with ThreadPoolExecutor(1) as ahead:

        def start():
            chosen = take(documents, batch)
            return chosen, ahead.submit(encode_batch, [text for _, text in chosen])

        chosen, task = start()
        while chosen:
            following = start()
            for (position, _), ids in zip(chosen, task.result(), strict=True):
                yield position, document_row(ids, eot)
            chosen, task = following
