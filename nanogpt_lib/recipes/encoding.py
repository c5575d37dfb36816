"""Encode texts into token ids on all cores."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from nanogpt_lib.shards import document_row
from nanogpt_lib.support.vocabulary import encode_gpt2
from nanogpt_lib.tokenizer import GPT2Tokenizer

Ids = list[int] | np.ndarray  # the tokens of one text


def batch_encoder(
    encode: Callable[[str], Ids], threads: int | None = None, chunk: int = 8
) -> Callable[[list[str]], list[Ids]]:
    """Turn a function for one text into one for many, on several threads (default: all cores).

    Each thread takes `chunk` texts at a time, because dispatching one short text costs more than
    encoding it. Threads suffice because tiktoken releases Python's global lock.
    """
    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1)

    def encode_some(texts: list[str]) -> list[Ids]:
        return [encode(text) for text in texts]

    def encode_batch(texts: list[str]) -> list[Ids]:
        chunks = [texts[i : i + chunk] for i in range(0, len(texts), chunk)]
        return [ids for encoded in pool.map(encode_some, chunks) for ids in encoded]

    return encode_batch


def next_documents(
    documents: Iterator[tuple[object, str]], most: int, characters: int = 1 << 24
) -> list[tuple[object, str]]:
    """The next documents: at most `most`, and no more once they total `characters` characters."""
    batch = []
    while len(batch) < most and characters > 0 and (document := next(documents, None)):
        batch.append(document)
        characters -= len(document[1])
    return batch


def encode_ahead(
    documents: Iterable[tuple[object, str]],
    encode_batch: Callable[[list[str]], list[Ids]],
    batch: int = 1024,
) -> Iterator[tuple[object, Ids]]:
    """(position, text) → (position, ids), in order.

    `encode_batch` encodes many texts at once (see batch_encoder). The next batch is encoded while
    this one is consumed.
    """
    documents = iter(documents)
    with ThreadPoolExecutor(1) as ahead:

        def start():
            chosen = next_documents(documents, batch)
            return chosen, ahead.submit(encode_batch, [text for _, text in chosen])

        chosen, task = start()
        while chosen:
            following = start()
            for (position, _), ids in zip(chosen, task.result(), strict=True):
                yield position, ids
            chosen, task = following


def encode_documents(
    documents: Iterable[tuple[object, str]],
    encode_batch: Callable[[list[str]], list[Ids]],
    eot: int,
    batch: int = 1024,
) -> Iterator[tuple[object, np.ndarray]]:
    """(position, text) → (position, uint16 tokens); <|endoftext|> comes before every document.

    Empty texts do not count as documents and are skipped.
    """
    filled = ((position, text) for position, text in documents if text)
    for position, ids in encode_ahead(filled, encode_batch, batch):
        yield position, document_row(ids, eot)


def encode_gpt2_documents(
    documents: Iterable[tuple[object, str]], threads: int | None = None
) -> Iterator[tuple[object, np.ndarray]]:
    """(position, text) → (position, GPT-2 tokens), on several threads (default: one per core)."""
    threads = threads or os.cpu_count() or 1
    encode_batch = batch_encoder(encode_gpt2, threads)
    return encode_documents(documents, encode_batch, GPT2Tokenizer.eot, batch=128 * threads)
