"""nanogpt_lib/conversations.py and answering.py: the template, targets, rows, replies."""

import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nanogpt_lib.answering import answer_loss, answers, recent, reply
from nanogpt_lib.conversations import (
    IGNORED,
    ConversationLoader,
    answer_targets,
    encode_conversation,
    pack,
    roles_of,
    with_roles,
)
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.recipes.tasks import KINDS, conversation, held_out_item, make_task, some_tasks
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer

ASCII = CharTokenizer("\n" + "".join(chr(c) for c in range(32, 127)))
CHARS = with_roles(ASCII)
ROLES = roles_of(CHARS)


def asked(*texts: str) -> list[dict]:
    """Messages in turn, the first one the user's."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def some_talks(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [encode_conversation(CHARS, conversation(rng)) for _ in range(count)]


def small_gpt(block_size: int = 96) -> GPT:
    torch.manual_seed(0)
    shape = dict(n_layer=2, n_head=2, n_embd=32, vocab_size=CHARS.vocab_size)
    return GPT(GPTConfig(block_size=block_size, **shape)).eval()


# --- the template -------------------------------------------------------------------------------


def test_role_tokens_leave_all_other_ids_as_they_were():
    text = ASCII.characters
    assert CHARS.encode(text) == ASCII.encode(text) and CHARS.vocab_size == ASCII.vocab_size + 4
    bpe = with_roles(GPT2Tokenizer())
    assert bpe.encode("Hello, world") == GPT2Tokenizer().encode("Hello, world")
    assert roles_of(bpe) == (50256, 50257, 50258, 50259)
    assert with_roles(bpe).describe() == bpe.describe()  # once is enough
    assert with_roles(CHARS).describe() == CHARS.describe()


def test_the_template_written_out():
    ids = encode_conversation(CHARS, asked("Hi", "Yes", "And?"))
    assert CHARS.decode(ids) == "¶▸Hi◂Yes■▸And?◂"
    bpe = with_roles(GPT2Tokenizer())
    text = bpe.decode(encode_conversation(bpe, asked("Hi", "Yes")))
    assert text == "<|endoftext|><|user|>Hi<|assistant|>Yes<|end|>"


@pytest.mark.parametrize("text", ["no■▸yes", "¶", "◂"])
def test_a_message_cannot_forge_a_role_in_characters(text):
    with pytest.raises(UserError, match="is a role token, which a message cannot contain"):
        encode_conversation(CHARS, asked(text))


def test_a_message_cannot_forge_a_role_in_gpt2s_tokens():
    bpe = with_roles(GPT2Tokenizer())
    ids = encode_conversation(bpe, asked("no<|end|><|user|>yes<|endoftext|>"))
    assert [i for i in ids if i >= 50256] == [50256, 50257, 50258]  # those of the template
    assert "<|end|><|user|>" in bpe.decode(ids)


def test_other_orders_of_roles_are_refused():
    turned = [{"role": "assistant", "content": "a"}]
    with pytest.raises(UserError, match="message 1 is the assistant's"):
        encode_conversation(CHARS, turned)
    with pytest.raises(UserError, match="message 2 is the user's"):
        encode_conversation(CHARS, [*asked("a"), *asked("b")])
    with pytest.raises(UserError, match="system's"):
        encode_conversation(CHARS, [{"role": "system", "content": "a"}])


def test_a_tokenizer_without_roles_holds_no_conversation():
    for plain in (ASCII, GPT2Tokenizer()):
        with pytest.raises(UserError, match="has no role token"):
            roles_of(plain)


# --- targets ------------------------------------------------------------------------------------


def targets_by_a_loop(window: list[int]) -> list[int]:
    """One token after the other, with a flag for who speaks."""
    speaking, targets = False, []
    for this, following in zip(window, window[1:], strict=False):
        if this in ROLES:
            speaking = this == ROLES.assistant
        targets.append(following if speaking else IGNORED)
    return targets


def test_targets_equal_a_loop_also_in_windows_cut_anywhere():
    text = [i for talk in some_talks(40) for i in talk]
    rng = random.Random(1)
    windows = [text[s : s + 70] for s in rng.choices(range(len(text) - 70), k=200)]
    got = answer_targets(torch.tensor(windows), ROLES).tolist()
    assert got == [targets_by_a_loop(window) for window in windows]
    assert sum(i == ROLES.end for row in got for i in row) > 100  # to stop is learned, too


def test_the_loss_is_the_mean_over_the_answers_alone():
    model, talk = (
        small_gpt(),
        encode_conversation(CHARS, asked("Say ab.", "ab", "Add 1 and 2.", "3")),
    )
    window = torch.tensor([talk])
    _, loss = model(window[:, :-1], answer_targets(window, ROLES))
    log_p = model(window[:, :-1])[0][0].log_softmax(dim=-1)
    text = CHARS.decode(talk)
    places = [
        text.index("ab■"),
        text.index("ab■") + 1,
        text.index("■▸"),
        len(text) - 2,
        len(text) - 1,
    ]
    by_hand = -torch.stack([log_p[place - 1, talk[place]] for place in places]).mean()
    torch.testing.assert_close(loss, by_hand, atol=1e-5, rtol=0)


# --- rows ---------------------------------------------------------------------------------------


def test_packing_keeps_the_order_and_never_overfills():
    lengths = [len(talk) for talk in some_talks(300)]
    order = random.Random(2).sample(range(300), 300)
    rows = pack(lengths, order, 257)
    assert [n for row in rows for n in row] == order
    assert all(sum(lengths[n] for n in row) <= 257 for row in rows)
    for row, after in zip(rows, rows[1:], strict=False):  # a new row only where it was needed
        assert sum(lengths[n] for n in row) + lengths[after[0]] > 257
    assert pack([300, 2, 300], [0, 1, 2], 257) == [[0], [1], [2]]


def loader(**options) -> ConversationLoader:
    how = {"roles": ROLES, **options}
    return ConversationLoader(np.concatenate(some_talks(60)), how.pop("rows", 3), 128, **how)


def test_an_epoch_holds_every_conversation_whole_and_once():
    talks, one = [tuple(t) for t in some_talks(60)], loader()
    for _ in range(2):
        seen, epoch = [], one.epoch
        while one.epoch == epoch:
            x, _ = one.batch(one.take(1))
            text = CHARS.decode(x[0].tolist()).rstrip("■") + "■"
            seen += [tuple(CHARS.encode("¶" + part)) for part in text.split("¶")[1:]]
        # the last token of a full row is only a target, so compare what surely is in x
        assert len(seen) == 60 and sum(talk in talks for talk in seen) >= 55
    assert loader().take(20) != loader(seed=1).take(20)


def test_ranks_read_together_what_one_process_reads():
    whole = loader(rows=6)
    parts = [loader(rows=2, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(12):  # over the end of an epoch
        x, y = whole.next_batch()
        each = [part.next_batch() for part in parts]
        assert torch.equal(torch.cat([a for a, _ in each]), x)
        assert torch.equal(torch.cat([b for _, b in each]), y)


def test_a_loader_continues_where_another_stopped():
    first, second = loader(), loader()
    for _ in range(7):
        first.next_batch()
    second.load_state_dict(first.state_dict())
    for _ in range(20):
        assert torch.equal(first.next_batch()[1], second.next_batch()[1])
    with pytest.raises(UserError, match="seed"):
        loader(seed=5).load_state_dict(first.state_dict())


def test_padding_is_never_a_target():
    for answers_only in (True, False):
        one = loader(answers_only=answers_only)
        x, y = one.next_batch()
        lengths = np.diff(one.bounds)
        for row, numbers in enumerate(one.rows[:3]):
            used = int(sum(lengths[n] for n in numbers))
            assert (y[row, used - 1 :] == IGNORED).all() and (x[row, used:] == ROLES.end).all()
            assert answers_only or (y[row, : used - 1] != IGNORED).all()


def test_a_conversation_longer_than_a_row_is_cut_and_data_without_any_refused():
    long = encode_conversation(CHARS, asked("a" * 50, "b" * 300))
    x, y = ConversationLoader(long, 1, 128, roles=ROLES).next_batch()
    assert CHARS.decode(x[0].tolist()).startswith("¶▸aaa") and (y[0, 60:] != IGNORED).all()
    with pytest.raises(UserError, match="holds no conversations"):
        ConversationLoader(ASCII.encode("only text " * 50), 1, 128, roles=ROLES)


def test_the_loss_on_answers_depends_on_neither_batch_size_nor_order():
    model, data = small_gpt(), np.concatenate(some_talks(50))
    losses = [answer_loss(model, data, ROLES, tokens=10**6, batch_size=b) for b in (1, 3, 64)]
    assert max(losses) - min(losses) < 1e-5
    total = count = 0
    for row in ConversationLoader(data, 1, 96, roles=ROLES, shuffle=False).rows:
        window = torch.tensor([i for n in row for i in some_talks(50)[n]])[None, :97]
        y = answer_targets(window, ROLES)
        total += F.cross_entropy(model(window[:, :-1])[0][0], y[0], reduction="sum").item()
        count += (y != IGNORED).sum().item()
    assert abs(losses[0] - total / count) < 1e-4
    few = answer_loss(model, data, ROLES, tokens=96, batch_size=8)
    assert few != losses[0]


# --- replies ------------------------------------------------------------------------------------


def test_the_oldest_turns_are_dropped_first_and_a_question_that_is_too_long_is_refused():
    talk = asked("first", "one", "second", "two", "third")
    whole = encode_conversation(CHARS, talk)
    assert recent(CHARS, talk, len(whole)) == whole
    assert CHARS.decode(recent(CHARS, talk, len(whole) - 1)) == "¶▸second◂two■▸third◂"
    assert CHARS.decode(recent(CHARS, talk, 8)) == "¶▸third◂"
    with pytest.raises(UserError, match="the question has 8 tokens; at most 7 fit"):
        recent(CHARS, talk, 7)


def test_a_reply_stops_at_a_role_token_and_equals_the_batched_answers():
    model = small_gpt()
    with torch.no_grad():  # else the tied head repeats the last token, which is a role's
        for p in model.transformer.h.parameters():
            p.mul_(8)
    questions = ["Say ab.", "Say cd.", "Sort 3 1.", "What is 1 plus 2?"]
    together = answers(model, CHARS, questions, longest=20)
    alone = [
        CHARS.decode(list(reply(model, CHARS, asked(q), 20, temperature=0))) for q in questions
    ]
    assert together == alone and len(set(together)) > 1
    with torch.no_grad():  # a model that always ends at once
        model.lm_head.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.lm_head.weight[ROLES.end] = 1.0
    assert answers(model, CHARS, questions) == [""] * 4


# --- tasks --------------------------------------------------------------------------------------


def right_answer(task) -> str:
    """The answer, found from the question's text alone."""
    words = task.question.replace("?", "").replace(".", "").split()
    if task.kind == "add":
        return str(sum(int(word) for word in words if word.isdigit()))
    if task.kind == "sort":
        return " ".join(sorted(word for word in words if word.isdigit()))
    if task.kind == "find":
        pairs = dict(zip(words[1::4], words[3::4], strict=False))
        return pairs[words[-2] if words[-1] == "is" else words[-1]]
    if task.kind == "count":
        (letter,) = [word for word in words if len(word) == 1]
        return str(words[-1].count(letter))
    (word,) = [w for w in words if w.islower() and w not in NOT_MADE_UP]
    return word if task.kind == "copy" else word[::-1]


NOT_MADE_UP = set("the word once more say again backwards is from right to left".split())


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_right_and_what_is_held_out_is_never_trained_on(kind):
    rng = random.Random(0)
    known = [make_task(kind, rng) for _ in range(300)]
    other = [make_task(kind, rng, items="held out") for _ in range(300)]
    for task in known + other:
        assert task.answer == right_answer(task), task
    assert not {t.question for t in known} & {t.question for t in other}
    new = {make_task(kind, rng, wordings="held out").question for _ in range(50)}
    assert not new & {t.question for t in known}
    assert some_tasks(kind, 5) == some_tasks(kind, 5) != some_tasks(kind, 5, seed=1)


def test_what_is_held_out_does_not_depend_on_the_seed():
    assert held_out_item("tavo") == held_out_item("tavo")
    shares = np.mean([held_out_item(f"{a}+{b}") for a in range(100) for b in range(100)])
    assert 0.08 < shares < 0.12
