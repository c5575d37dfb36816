"""The checks of the exercises, one module for each chapter; `exercise` makes a check of a function.

A check takes the learner's answer and says "Right." with something worth knowing, or "Not yet:"
with a hint for the very mistake; it never ends in a traceback. It returns whether the answer is
right, so that the solutions and the tests can assert it.
"""

from collections.abc import Callable
from functools import wraps


class Wrong(Exception):
    """An answer is wrong; the message is the hint."""


def hint(condition: bool, text: str) -> None:
    """Raise Wrong with this hint if the condition, which describes a mistake, holds."""
    if condition:
        raise Wrong(text)


def exercise(right: str) -> Callable[[Callable], Callable[..., bool]]:
    """A decorator: `right` is what a learner who got it right may like to know."""

    def make(check: Callable) -> Callable[..., bool]:
        @wraps(check)
        def checked(*answers) -> bool:
            if all(answer is None for answer in answers):
                print("Nothing to check yet: replace None by your answer and run both cells.")
                return False
            try:
                check(*answers)
            except Wrong as mistake:
                print(f"Not yet: {mistake}")
                return False
            except Exception as error:
                print(f"Not yet: it ended with {type(error).__name__}: {error}")
                return False
            print(f"Right. {right}")
            return True

        return checked

    return make


def call(function: Callable, *args):
    """What a learner's function returns; Wrong if it is still empty or not a function."""
    if not callable(function):
        raise Wrong("pass the function itself, without calling it")
    result = function(*args)
    if result is None:
        raise Wrong("it returns None so far: write your code and return the result")
    return result


def as_number(answer) -> float:
    """An answer of any numeric type as a plain number."""
    try:
        return answer.item() if hasattr(answer, "item") else answer + 0
    except (TypeError, ValueError, RuntimeError) as error:
        raise Wrong(f"give one number, not {type(answer).__name__}") from error


def as_tensors(answer, count: int) -> list:
    """An answer of `count` tensors, as a list, from a tuple, a list, a generator or a tensor."""
    import torch

    try:
        tensors = list(answer)
    except TypeError as error:
        raise Wrong(f"return {count} tensors, not {type(answer).__name__}") from error
    if len(tensors) != count or not all(torch.is_tensor(tensor) for tensor in tensors):
        raise Wrong(f"return {count} tensors")
    return tensors
