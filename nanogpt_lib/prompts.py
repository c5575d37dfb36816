"""Prompts: from the user's text or file to the tokens that a model continues."""

from collections.abc import Callable
from pathlib import Path

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer, encode_prompt


def read_prompt(prompt: str) -> str:
    """The text itself, or the contents of the file after `FILE:`; without a byte-order mark."""
    if prompt.startswith("FILE:"):
        try:
            prompt = Path(prompt.removeprefix("FILE:")).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: not UTF-8, or no path at all
            raise UserError(f"--prompt {prompt}: cannot be read as UTF-8 text ({error})") from error
    return prompt.removeprefix("\ufeff")


def first_token(tokenizer: GPT2Tokenizer | CharTokenizer) -> int:
    """The token to start from without a prompt: <|endoftext|>, else a newline, else id 0."""
    if tokenizer.eot is not None:
        return tokenizer.eot
    return tokenizer.ids.get("\n", 0)


def prompt_tokens(
    tokenizer: GPT2Tokenizer | CharTokenizer,
    text: str,
    block_size: int,
    say: Callable[[str], None] = print,
    flag: str = "--prompt",
) -> list[int]:
    """Encode a prompt into 1 to block_size tokens; `say` is told if it was replaced or cropped.

    Special tokens are recognised by name. An empty prompt becomes `first_token`; a long one is
    cropped to its last block_size tokens. Raises UserError, which names the `flag`, for a character
    outside the alphabet.
    """
    if not text:
        first = first_token(tokenizer)
        say(f"no prompt: the text begins after {tokenizer.decode([first])!r}")
        return [first]
    try:
        tokens = encode_prompt(tokenizer, text)
    except UserError as error:
        raise UserError(f"{flag}: {error}") from error
    if len(tokens) > block_size:
        say(f"the prompt has {len(tokens):,} tokens; the model sees the last {block_size:,}")
    return tokens[-block_size:]
