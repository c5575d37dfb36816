"""A model that was fine-tuned on conversations: its loss on answers, and the answers themselves."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional as F

from nanogpt_lib.conversations import (
    IGNORED,
    ConversationLoader,
    Roles,
    encode_conversation,
    roles_of,
)
from nanogpt_lib.device import autocast
from nanogpt_lib.distributed import all_reduce_sum
from nanogpt_lib.model import GPT
from nanogpt_lib.sampling import generate, stream
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.evaluating import evaluating
from nanogpt_lib.support.processes import World
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer


@torch.inference_mode()
def answer_loss(
    model: GPT,
    data: Sequence[int],
    roles: Roles,
    *,
    tokens: int,
    batch_size: int,
    world: World = World(),  # noqa: B008 (frozen)
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> float:
    """Mean cross entropy in nats per answer token, over the first rows (`tokens` tokens in all).

    The rows are always the same, shared among the processes; see evaluation.validation_loss.
    """
    device, T = torch.device(device), model.config.block_size
    loader = ConversationLoader(data, batch_size, T, roles=roles, shuffle=False)
    mine = loader.rows[: max(1, tokens // T)][world.rank :: world.size]
    total, count = 0.0, 0
    with evaluating(model), autocast(device, dtype):
        for first in range(0, len(mine), batch_size):
            x, y = loader.batch(mine[first : first + batch_size])
            logits = model(x.to(device))[0].float().flatten(0, 1)
            total += F.cross_entropy(logits, y.flatten().to(device), reduction="sum").item()
            count += (y != IGNORED).sum().item()
    total, count = all_reduce_sum([total, float(count)], world, device)
    return total / count


def recent(tokenizer: GPT2Tokenizer | CharTokenizer, messages: list[dict], room: int) -> list[int]:
    """The ids of a conversation, without its oldest turns if it is longer than `room` tokens.

    Raises UserError if the last question alone is.
    """
    ids = encode_conversation(tokenizer, messages)
    while len(ids) > room and len(messages) > 2:
        messages = messages[2:]
        ids = encode_conversation(tokenizer, messages)
    if len(ids) > room:
        raise UserError(f"the question has {len(ids)} tokens; at most {room} fit")
    return ids


def reply(
    model: GPT,
    tokenizer: GPT2Tokenizer | CharTokenizer,
    messages: list[dict],
    max_new_tokens: int,
    **options,
) -> Iterator[int]:
    """Yield the tokens of the answer to the last message, up to the first role token.

    The options are those of sampling.stream; temperature=0 takes the likeliest token each time.
    """
    roles = roles_of(tokenizer)
    ids = recent(tokenizer, messages, model.config.block_size - max_new_tokens)
    idx = torch.tensor([ids], device=model.lm_head.weight.device)
    for column in stream(model, idx, max_new_tokens, eot=roles.end, **options):
        if (token := column.item()) in roles:
            return
        yield token


def answers(
    model: GPT, tokenizer: GPT2Tokenizer | CharTokenizer, questions: list[str], longest: int = 16
) -> list[str]:
    """What a model answers to each question alone, taking the likeliest token each time.

    Questions of equal length are computed together.
    """
    roles, groups, found = roles_of(tokenizer), defaultdict(list), {}
    for number, question in enumerate(questions):
        ids = encode_conversation(tokenizer, [{"role": "user", "content": question}])
        groups[len(ids)].append((number, ids))
    for length, group in groups.items():
        numbers, rows = zip(*group, strict=True)
        out = generate(model, torch.tensor(rows), longest, temperature=0, eot=roles.end)
        for number, row in zip(numbers, out[:, length:].tolist(), strict=True):
            end = next((i for i, token in enumerate(row) if token in roles), len(row))
            found[number] = tokenizer.decode(row[:end])
    return [found[number] for number in range(len(questions))]
