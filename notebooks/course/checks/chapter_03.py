"""Checks of chapter 03's exercises: odds, BPE, min-p, positions computed, speculative decoding."""

import math
from collections import Counter
from itertools import pairwise

from nanogpt_course.checks import Wrong, as_number, call, exercise, hint


@exercise(
    "The favourite goes from 53 % to 75 %: that is why low temperatures sound so sure of "
    "themselves. The order of the tokens never changes."
)
def check_03_1(answer) -> None:
    """Odds 8 : 4 : 2 : 1 at temperature 1/2."""
    try:
        given = [as_number(number) for number in answer]
    except TypeError as error:
        raise Wrong("give four probabilities, such as (0.5, 0.3, 0.1, 0.1)") from error
    hint(len(given) != 4, "give four probabilities.")

    def near(weights: list[float]) -> bool:
        total = sum(weights)
        pairs = zip(given, weights, strict=True)
        return all(math.isclose(a, b / total, abs_tol=6e-3) for a, b in pairs)

    right = [64, 16, 4, 1]
    hint(near([8, 4, 2, 1]), "these are the probabilities at temperature 1.")
    hint(
        near([8**0.5, 2, 2**0.5, 1]),
        "that is temperature 2. Dividing by one half multiplies the logits.",
    )
    hint(near([1, 4, 16, 64]), "the right numbers, in the wrong order: the first is the likeliest.")
    hint(
        all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(given, right, strict=True)),
        "these are the odds; divide by their sum to get probabilities.",
    )
    hint(
        near([3, 2, 1, 0]) or near([6, 4, 2, 0]),
        "the logits are the logarithms of the odds; what becomes of e^z?",
    )
    hint(
        math.isclose(given[0], 16 / 15, abs_tol=6e-3),
        "dividing the probabilities by ½ is not dividing the logits; these sum to 2.",
    )
    hint(abs(sum(given) - 1) > 0.02, f"probabilities sum to 1, these to {sum(given):.3g}.")
    hint(not near(right), "the logits are ln 8, ln 4, ln 2, 0. Divide by 1/2: what becomes of e^z?")


def merges_of(text: str, merges: int) -> list[tuple[bytes, bytes]]:
    """The right answer of exercise 2."""
    parts, found = [bytes([b]) for b in text.encode()], []
    for _ in range(merges):
        counts = Counter(pairwise(parts))
        if not counts:
            break
        pair = max(counts, key=counts.get)
        found.append(pair)
        joined, i = [], 0
        while i < len(parts):
            match = tuple(parts[i : i + 2]) == pair
            joined.append(b"".join(pair) if match else parts[i])
            i += 2 if match else 1
        parts = joined
    return found


TEXTS = [
    ("the lower the slower, the newer the fewer", 8),
    ("abcabcab", 3),
    ("aaaaaaab", 3),
    ("Grüße, Grüße! 世界", 5),
    ("xyz", 10),  # more merges than there are pairs
]


@exercise(
    "GPT-2's 50,000 merges were found in just this way, on words of WebText instead of one long "
    "text. minbpe is a repository of Karpathy's that goes on from here."
)
def check_03_2(answer) -> None:
    """The merges of several texts, in order."""
    for text, merges in TEXTS:
        right = merges_of(text, merges)
        try:
            given = call(answer, text, merges)
        except TypeError as error:
            if "bytes-like object, int found" not in str(error):
                raise
            raise Wrong(
                "a byte by itself is an int in Python: begin with "
                "[bytes([b]) for b in text.encode()]"
            ) from error
        except (IndexError, ValueError) as error:
            if len(right) < merges:
                raise Wrong(
                    f"for {text!r} there is nothing left to merge after {len(right)} merges: stop "
                    f"there (it ended with {type(error).__name__})"
                ) from error
            raise
        try:
            given = [tuple(pair) for pair in given]
        except TypeError as error:
            raise Wrong("return a list of pairs of bytes") from error
        wrong_kind = any(len(pair) != 2 for pair in given)
        hint(wrong_kind, "each merge is a pair, (left, right).")
        plain = all(isinstance(part, str) for pair in given for part in pair) and bool(given)
        hint(plain, "these are strings. Begin with the text's bytes: text.encode().")
        hint(
            any(not isinstance(part, (bytes, bytearray)) for pair in given for part in pair),
            "pairs of bytes, such as (b'th', b'e'); a byte by itself is an int in Python.",
        )
        where = f"for {text!r}"
        first = Counter(pairwise([bytes([b]) for b in text.encode()])).most_common(merges)
        hint(
            len(right) > 1 and given == [pair for pair, _ in first] and given != right,
            f"{where}: count again after every merge; joined pairs have other neighbours.",
        )
        hint(
            len(given) < len(right),
            f"{where} there are {len(right)} merges to find, not {len(given)}.",
        )
        hint(
            len(given) > len(right),
            f"{where} there is nothing left to merge after {len(right)} merges: stop there.",
        )
        for number, (ours, theirs) in enumerate(zip(right, given, strict=True)):
            if ours == theirs:
                continue
            before = [tuple(pair) for pair in right[:number]]
            counts = Counter(pairwise(parts_after(text, before)))
            equal = counts.get(theirs) == counts[ours]
            tie = f"{where}: {theirs} is as frequent as {ours}, but comes later in the text."
            hint(equal, tie)
            fewer = f"{where}, merge {number}: {theirs} occurs {counts.get(theirs, 0)} times, "
            raise Wrong(
                fewer + f"{ours} {counts[ours]} times. (Are all pairs joined, left to right?)"
            )


def parts_after(text: str, merges: list[tuple[bytes, bytes]]) -> list[bytes]:
    """The tokens of a text after these merges."""
    parts = [bytes([b]) for b in text.encode()]
    for pair in merges:
        joined, i = [], 0
        while i < len(parts):
            match = tuple(parts[i : i + 2]) == pair
            joined.append(b"".join(pair) if match else parts[i])
            i += 2 if match else 1
        parts = joined
    return parts


@exercise(
    "Where the model is sure, almost nothing else passes; where it is not, many tokens do. And "
    "unlike top-p it needs no sorting."
)
def check_03_3(answer) -> None:
    """Min-p against a loop, for several thresholds and shapes."""
    import torch

    torch.manual_seed(0)
    cases = [((5, 12), 0.1), ((3, 40), 0.5), ((1, 7), 0.02), ((4, 9), 1.0)]
    for shape, min_p in cases:
        probs = (3 * torch.randn(shape)).softmax(-1)
        kept = probs.clone()
        given = call(answer, kept, min_p)
        hint(not torch.equal(kept, probs), "probs has changed; make a new tensor.")
        hint(
            not torch.is_tensor(given) or given.shape != probs.shape,
            "return a tensor of the shape of probs.",
        )
        want = probs * (probs >= min_p * probs.amax(-1, keepdim=True))
        want /= want.sum(-1, keepdim=True)
        absolute = probs >= min_p
        whole = probs >= min_p * probs.max()
        same = (given > 0) == (want > 0)
        hint(
            min_p == 1.0 and not bool((given > 0).any(-1).all()),
            "with min_p = 1 the likeliest itself must stay: at least, not more than.",
        )
        wrong = bool(same.all()) and not torch.allclose(given, want, atol=1e-5)
        hint(
            wrong and torch.allclose(given.sum(-1), torch.ones(len(given)), atol=1e-4),
            "the right tokens are kept, but their odds have changed: these are probabilities, not "
            "logits. Write 0 over the rest and divide by the sum, without a softmax.",
        )
        hint(
            wrong,
            "the right tokens are kept, but each row must sum to 1 again.",
        )
        hint(
            bool(((given > 0) == whole).all()) and not bool(same.all()),
            "the threshold follows the largest of the same row, not of the whole tensor.",
        )
        hint(
            bool(((given > 0) == absolute).all()) and not bool(same.all()),
            "min_p is not a probability itself: it is multiplied by the largest of the row.",
        )
        hint(torch.allclose(given, probs), "nothing is cut yet.")
        hint(
            not torch.allclose(given, want, atol=1e-5),
            f"for min_p = {min_p}: keep p ≥ min_p × the largest p of the row.",
        )


@exercise(
    "Two positions per token, whatever the size of the context. For 10,000 tokens beyond GPT-2's "
    "context that is 20,000 positions instead of ten million."
)
def check_03_4(answer) -> None:
    """Positions computed for n more tokens once the context is full."""
    from nanogpt_lib.sampling import context_start

    for block, n in ((8, 2), (8, 13), (64, 200), (2, 5), (16, 1)):
        halves, start = 0, 0
        for length in range(block + 1, block + n):
            moved = context_start(length, block)
            halves += length - moved if moved != start else 1
            start = moved
        given = call(answer, block, n)
        try:
            sliding, dropping = (as_number(number) for number in given)
        except (TypeError, ValueError) as error:
            raise Wrong("return two numbers.") from error
        right = (n - 1) * block
        hint(
            (sliding, dropping) == (halves, right) and halves != right,
            "the other way round: first nanoGPT's rule, then ours.",
        )
        hint(
            sliding == n * block and n > 1,
            "sliding: the logits for the first draw are already there; count from the second on.",
        )
        hint(
            sliding in (n, n - 1) and sliding != right,
            "sliding: each step shifts all positions, so all of them are computed, not one.",
        )
        hint(
            sliding != right, f"sliding: block {block}, n {n} needs {right}, you have {sliding:g}."
        )
        hint(
            dropping in (n, n - 1) and dropping != halves,
            "halves: and the rebuild? It computes the half that was kept, and the new token.",
        )
        hint(
            dropping != halves,
            f"halves: block {block}, n {n} needs {halves}, you have {dropping:g}. A rebuild "
            "computes block/2 + 1 positions, then block/2 - 1 steps compute one each.",
        )


@exercise(
    "It pays because a pass over k + 1 tokens costs hardly more than one over a single token: both "
    "read all the weights once. Samplers in practice do it with random draws, too."
)
def check_03_5(answer) -> None:
    """Speculative text equals greedy text, with fewer calls of the large model."""
    import torch

    from nanogpt_lib.model import GPT, GPTConfig
    from nanogpt_lib.sampling import generate

    if not callable(answer):
        raise Wrong("pass the function itself, without calling it")
    torch.manual_seed(5)
    shape = dict(block_size=64, vocab_size=20, n_head=2, n_embd=32)
    large, small = (GPT(GPTConfig(n_layer=n, **shape)).eval() for n in (3, 1))
    other = GPT(GPTConfig(n_layer=1, **shape)).eval()  # agrees with the large one by chance only
    with torch.no_grad():  # so that the text varies, mostly with the position
        large.transformer.wpe.weight.mul_(20)
        for block in large.transformer.h:
            block.mlp.c_proj.weight.mul_(4)
            block.attn.c_proj.weight.mul_(8)
    small.load_state_dict(large.state_dict(), strict=False)  # shares the first block: often right
    calls: dict[str, int] = {}
    for name, model in (("large", large), ("small", small), ("other", other)):
        model.register_forward_hook(lambda *_, n=name: calls.update({n: calls.get(n, 0) + 1}))
    idx = torch.tensor([[1, 2, 3]])
    for draft, k, count in ((small, 4, 40), (small, 1, 40), (other, 3, 20), (small, 5, 1)):
        expected = generate(large, idx, count, temperature=0)
        calls.clear()
        with torch.no_grad():
            given = call(answer, large, draft, idx.clone(), count, k)
        hint(not torch.is_tensor(given), "return a tensor of ids, (1, T + max_new_tokens).")
        hint(
            given.shape != expected.shape,
            f"return the prompt and exactly max_new_tokens more: {tuple(expected.shape)} here, "
            f"not {tuple(given.shape)}.",
        )
        if not torch.equal(given, expected):
            at = int((given != expected).flatten().nonzero()[0])
            greedy_small = generate(draft, idx, count, temperature=0)
            hint(torch.equal(given, greedy_small), "that is the small model's text, unjudged.")
            raise Wrong(
                f"token {at} is not the large model's choice. Off by one position, or was a "
                "proposal after the first wrong one kept?"
            )
        used = calls.get("large", 0)
        hint(used == 0, "the large model was never asked.")
        small_used = calls.get("small", 0) + calls.get("other", 0)
        hint(count > 1 and small_used == 0, "the small model was never asked for proposals.")
        hint(
            draft is small and count > 1 and used >= count,
            f"with k = {k}: {used} passes of the large model for {count} tokens, none saved. After "
            "k right proposals its next choice comes free.",
        )
        best = -(-count // (k + 1))
        hint(used < best, f"{used} passes cannot judge {count} tokens, {k} proposals at a time.")
        hint(
            draft is small and k == 4 and used > 0.7 * count,
            f"{used} passes for {count} tokens: after a proposal that is wrong, add the large "
            "model's own choice; after k right ones, its next choice comes free.",
        )
    agreed = call(answer, large, large, idx.clone(), 12, 4)  # two whole runs, and part of a third
    length = agreed.size(1) if torch.is_tensor(agreed) else 0
    hint(length != 15, f"where the two models agree, {length - 3} tokens came instead of 12: trim.")
