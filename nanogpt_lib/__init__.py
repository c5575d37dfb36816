"""GPT-2 rebuilt from an empty file: the library that the notebooks export.

    from nanogpt_lib import GPT, GPTConfig, generate

Names are imported when they are first used, so `import nanogpt_lib` costs nothing.
"""

from importlib import import_module

OWNERS = {
    "GPT": "model",
    "GPTConfig": "model",
    "GPT2Tokenizer": "tokenizer",
    "CharTokenizer": "tokenizer",
    "generate": "sampling",
    "load_model": "load",
    "save_huggingface": "huggingface",
    "TokenLoader": "loader",
    "TokenStream": "shards",
    "TrainConfig": "config",
    "UserError": "support.errors",
}
__all__ = sorted(OWNERS)  # noqa: PLE0605
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in OWNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"nanogpt_lib.{OWNERS[name]}"), name)
