"""A model as one HTML file: its weights rounded, its tokenizer, and the program that runs it.

The program is nanogpt_lib/web/*.js; model.js mirrors model.py function by function.
"""

import base64
import copy
import hashlib
import html
import json
import re
import zlib
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt_lib.conversations import roles_of
from nanogpt_lib.model import GPT, count_parameters
from nanogpt_lib.prompts import first_token
from nanogpt_lib.sampling import generate
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer

WEB = Path(__file__).with_name("web")
SCRIPTS = (
    "model.js", "sampling.js", "tokenizer.js", "chat.js", "load.js", "panels.js", "page.js",
)  # fmt: skip
LARGEST_PAGE = 25_000_000  # parameters: a page of 33 MB that writes some 20 tokens a second
MOST_RISE = 0.005  # of the loss, by rounding to int8; with more, bfloat16 is taken


def fits_page(model: GPT) -> bool:
    """Whether a browser can run it: GPT-2's architecture, and few enough parameters."""
    return isinstance(model, GPT) and count_parameters(model) <= LARGEST_PAGE


def answers(tokenizer: GPT2Tokenizer | CharTokenizer) -> bool:
    """Whether a model with this tokenizer was fine-tuned on conversations: it has role tokens."""
    try:
        roles_of(tokenizer)
    except UserError:
        return False
    return True


# ---- weights -------------------------------------------------------------------------------------


def round_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (rows, columns) → whole numbers from -127 to 127 and a scale per row."""
    scales = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scales).round().to(torch.int8), scales


def rounded(name: str, weight: Tensor) -> tuple[bytes, Tensor]:
    """A matrix as bytes in format "int8" or "bfloat16", and the float32 that they stand for."""
    if name == "bfloat16":
        low = weight.to(torch.bfloat16)
        return low.view(torch.int16).numpy().astype("<i2").tobytes(), low.float()
    whole, scales = round_int8(weight)
    return scales.numpy().astype("<f4").tobytes() + whole.numpy().tobytes(), whole * scales


def pack(model: GPT, dtype: str) -> tuple[list[dict], bytes, GPT]:
    """The tensors' names, shapes and formats, their bytes, and the model that they stand for.

    Matrices are rounded, vectors stay float32. The tied head is not repeated, nor are padding rows.
    """
    page, tensors, parts = copy.deepcopy(model), [], []
    with torch.no_grad():
        for name, tensor in page.state_dict().items():
            if name == "lm_head.weight":
                continue
            if name == "transformer.wte.weight":
                tensor = tensor[: model.config.vocab_size]
            if tensor.dim() == 2:
                data, value = rounded(dtype, tensor)
                tensor.copy_(value)
            else:
                data = tensor.numpy().astype("<f4").tobytes()
            kind = dtype if tensor.dim() == 2 else "float32"
            tensors.append({"name": name, "shape": list(tensor.shape), "dtype": kind})
            parts.append(data)
    return tensors, b"".join(parts), page


@torch.inference_mode()
def rise(model: GPT, page: GPT, first: int) -> float:
    """By which part rounding raises the loss, on text that the model itself writes.

    There the loss of the rounded model exceeds the model's own by their Kullback-Leibler
    divergence, which is summed over the vocabulary: no data are needed and few tokens suffice.
    """
    T = min(model.config.block_size, 128)
    start = torch.full((4, 1), first)
    idx = generate(model, start, T - 1, generator=torch.Generator().manual_seed(1337))
    logs, others = (F.log_softmax(m(idx)[0].float(), dim=-1) for m in (model, page))
    entropy, cross = -(logs.exp() * logs).sum(), -(logs.exp() * others).sum()
    return (cross / entropy - 1).item()


def choose(model: GPT, first: int, dtype: str) -> tuple[list[dict], bytes, GPT, str]:
    """Pack the weights: int8 where the loss rises by at most 0.5 %, else bfloat16."""
    for name in ["int8", "bfloat16"] if dtype == "auto" else [dtype]:
        tensors, data, page = pack(model, name)
        by = rise(model, page, first)
        if not by == by:
            raise UserError("the model's logits are not finite: damaged weights, or it diverged")
        if by <= MOST_RISE:
            break
    return tensors, data, page, f"{name}: rounding raises the loss by {by:.3%}"


# ---- the file ------------------------------------------------------------------------------------


def embedded(value) -> str:
    """JSON that may stand inside a <script>: none of its text can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\r", "\\r")


def vocabulary(tokenizer: GPT2Tokenizer | CharTokenizer) -> dict:
    """What tokenizer.js needs: the characters, or GPT-2's tokens in the order of their merges."""
    if isinstance(tokenizer, CharTokenizer):
        return {"characters": list(tokenizer.characters)}
    decode = tokenizer.encoding.decode_single_token_bytes
    return {"tokens": [decode(i).decode("latin-1") for i in range(50256)], "added": tokenizer.added}


def script_hash(text: str) -> str:
    """How a content security policy names an inline script or style."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def assemble(about: dict, tokenizer: dict, weights: bytes, title: str) -> str:
    """The page's HTML. Its policy forbids every request, and every script but its own."""
    read = {name: (WEB / name).read_text(encoding="utf-8") for name in (*SCRIPTS, "page.css")}
    script, style = "\n".join(read[name] for name in SCRIPTS), read["page.css"]
    policy = (
        f"default-src 'none'; script-src {script_hash(script)}; style-src {script_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy, "title": html.escape(title), "style": style, "script": script,
        "about": embedded(about), "tokenizer": embedded(tokenizer),
        "weights": base64.b64encode(weights).decode("ascii"),
    }  # fmt: skip
    page = (WEB / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], page)


def make_page(
    model: GPT,
    tokenizer: GPT2Tokenizer | CharTokenizer,
    *,
    prompt: str,
    title: str = "A GPT in a page",
    dtype: str = "auto",
) -> tuple[str, GPT, str]:
    """The page, the model that it runs (its rounded weights), and a line on the rounding."""
    config = model.config
    model = model.float().eval()
    tensors, data, page, line = choose(model, first_token(tokenizer), dtype)
    words = "GPT-2's tokens" if tokenizer.eot else f"{tokenizer.vocab_size} characters"
    facts = f"{count_parameters(model):,} parameters, {config.n_layer} layers of {config.n_head} "
    facts += f"heads, {words}, a context of {config.block_size:,}"
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    about = {
        "config": {name: getattr(config, name) for name in names}, "tensors": tensors,
        "bytes": len(data), "crc32": zlib.crc32(data), "prompt": prompt, "facts": facts,
        "parameters": count_parameters(model),
    }  # fmt: skip
    if answers(tokenizer):
        about["roles"] = roles_of(tokenizer)._asdict()
    return assemble(about, vocabulary(tokenizer), data, title), page, line
