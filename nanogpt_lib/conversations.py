"""Conversations: their template, the targets in their answers, a loader that packs them whole.

Exported from notebooks/11_finetuning.ipynb; edit the notebook, not this file.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nanogpt_lib.loader import WindowOrder
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer

ROLE_CHARACTERS = "¶▸◂■"  # start, user, assistant, end; they sort behind ASCII
ROLE_NAMES = ("<|user|>", "<|assistant|>", "<|end|>")  # GPT-2's start is <|endoftext|>


class Roles(NamedTuple):
    """The ids of the tokens that structure a conversation."""

    start: int  # begins a conversation
    user: int  # begins a question
    assistant: int  # begins an answer
    end: int  # ends an answer


def with_roles(tokenizer: GPT2Tokenizer | CharTokenizer) -> GPT2Tokenizer | CharTokenizer:
    """The tokenizer with the role tokens added; the ids of ASCII characters stay the same."""
    if isinstance(tokenizer, CharTokenizer):
        return CharTokenizer(tokenizer.characters + ROLE_CHARACTERS)
    new = [name for name in ROLE_NAMES if name not in tokenizer.added]
    return GPT2Tokenizer([*tokenizer.added, *new])


def roles_of(tokenizer: GPT2Tokenizer | CharTokenizer) -> Roles:
    """The role tokens of a tokenizer; raises UserError if it has none."""
    chars = isinstance(tokenizer, CharTokenizer)
    names = ROLE_CHARACTERS if chars else ("<|endoftext|>", *ROLE_NAMES)
    ids = tokenizer.ids if chars else tokenizer.special
    if missing := [name for name in names if name not in ids]:
        raise UserError(f"no conversations: this tokenizer has no role token {missing[0]}")
    return Roles(*(ids[name] for name in names))


def encode_conversation(
    tokenizer: GPT2Tokenizer | CharTokenizer, messages: list[dict]
) -> list[int]:
    """Messages {"role": "user" or "assistant", "content": text}, in turn, → token ids.

    start, then for each turn: user, question, assistant, answer, end. If the last message is the
    user's, the ids stop where the answer begins. Raises UserError for another order of roles, and
    for content with a role character: nobody but the program may write those.
    """
    roles = roles_of(tokenizer)
    ids = [roles.start]
    for number, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role != ("user", "assistant")[number % 2]:
            raise UserError(f"message {number + 1} is the {role}'s: user and assistant take turns")
        forged = set(content) & set(ROLE_CHARACTERS)
        if forged and isinstance(tokenizer, CharTokenizer):
            raise UserError(f"{min(forged)} is a role token, which a message cannot contain")
        text = tokenizer.encode(content)
        asked = role == "user"
        ids += [roles.user, *text, roles.assistant] if asked else [*text, roles.end]
    return ids


IGNORED = -100  # a target that cross_entropy leaves out


def answer_targets(windows: Tensor, roles: Roles) -> Tensor:
    """Windows (B, T + 1) → targets (B, T): the next token within an answer, else IGNORED.

    An answer begins after the assistant token and includes its end token.
    """
    x, y = windows[:, :-1], windows[:, 1:]
    is_role = torch.isin(x, torch.tensor(roles, device=x.device))
    place = torch.arange(x.size(1), device=x.device)
    newest = torch.where(is_role, place, 0).cummax(dim=1).values  # place of the newest role token
    answering = x.gather(1, newest) == roles.assistant  # (B, T)
    return y.masked_fill(~answering, IGNORED)


def pack(lengths: Sequence[int], order: Sequence[int], room: int) -> list[list[int]]:
    """Numbers of conversations by row: the next one joins the row if it fits, else begins another.

    A conversation longer than `room` tokens gets a row of its own, to be cut.
    """
    rows, left = [], 0
    for number in order:
        if lengths[number] > left:
            rows.append([])
            left = room
        rows[-1].append(number)
        left -= lengths[number]
    return rows


class ConversationLoader(WindowOrder):
    """A TokenLoader for conversations: rows hold whole ones, and only answers are targets.

    In each epoch the conversations are shuffled and packed anew; row b of micro-step m is row
    (m·W + rank)·B + b of that order. What stays free at a row's end is filled with end tokens,
    which are no targets. With answers_only=False every token of a conversation is a target.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        batch_size: int,
        block_size: int,
        *,
        roles: Roles,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        seed: int = 1337,
        answers_only: bool = True,
    ):
        self.tokens, self.roles, self.answers_only = tokens, roles, answers_only
        self.batch_size, self.block_size = batch_size, block_size
        self.rank, self.world_size = rank, world_size
        starts = np.flatnonzero(np.asarray(tokens[: len(tokens)]) == roles.start)
        if not starts.size:
            raise UserError(f"{getattr(tokens, 'folder', 'the data')}: holds no conversations")
        self.bounds = [*starts.tolist(), len(tokens)]
        super().__init__(len(tokens), block_size, shuffle, seed)

    def go_to(self, epoch: int, position: int) -> None:
        """Shuffle and pack the conversations for an epoch; move to its row number `position`."""
        self.epoch, self.position = epoch, position
        lengths = np.diff(self.bounds).tolist()
        order = np.arange(len(lengths))
        if self.drawn_from["shuffle"]:
            np.random.default_rng([self.drawn_from["seed"], epoch]).shuffle(order)
        self.rows = pack(lengths, order.tolist(), self.block_size + 1)

    def take(self, count: int) -> list[list[int]]:
        """The next `count` rows, continuing into the next epoch if needed."""
        taken = []
        while len(taken) < count:
            chosen = self.rows[self.position : self.position + count - len(taken)]
            taken += chosen
            self.position += len(chosen)
            if self.position == len(self.rows):
                self.go_to(self.epoch + 1, 0)
        return taken

    def batch(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """The inputs x and targets y of some rows, both (B, T) int64; no target: IGNORED."""
        windows = torch.full((len(rows), self.block_size + 1), IGNORED)
        for window, row in zip(windows, rows, strict=True):
            parts = [self.tokens[self.bounds[n] : self.bounds[n + 1]] for n in row]
            ids = torch.as_tensor(np.concatenate(parts)[: len(window)], dtype=torch.long)
            window[: len(ids)] = ids
        x = windows[:, :-1].masked_fill(windows[:, :-1] == IGNORED, self.roles.end)
        y = answer_targets(windows, self.roles) if self.answers_only else windows[:, 1:]
        return x, y.contiguous()

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """The next micro-batch of this process, x and y, as `batch` makes them."""
        B = self.batch_size
        return self.batch(self.take(self.world_size * B)[self.rank * B : (self.rank + 1) * B])
