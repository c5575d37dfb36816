"""Entry: the modern model with Muon and a linear decay, otherwise as gpt2.py."""

import torch

from nanogpt_lib.choices import muon_and_adamw
from nanogpt_lib.config import TrainConfig
from nanogpt_lib.device import autocast, choose_dtype
from nanogpt_lib.loader import TokenLoader
from nanogpt_lib.model import GPTConfig
from nanogpt_lib.modern import ModernGPT
from nanogpt_lib.optimizer import set_learning_rate

SHAPE = dict(block_size=256, n_layer=4, n_head=4, n_embd=192, bias=False, attention="manual")
ROWS, RATE, MUON_RATE, WARMUP, DROPOUT = 8, 4e-3, 0.02, 20, 0.1


def train(tokens, vocab_size, seconds_left):
    """Train until the time is up; the rate follows the clock, linearly to zero."""
    torch.manual_seed(1337)
    device = torch.device("cpu")
    dtype = choose_dtype(device, "auto")
    model = ModernGPT(GPTConfig(vocab_size=vocab_size, dropout=DROPOUT, **SHAPE))
    settings = TrainConfig(
        learning_rate=RATE,
        muon_learning_rate=MUON_RATE,
        muon_method="halley",
        beta1=0.9,
        beta2=0.95,
        weight_decay=0.0,
    )
    optimizer = muon_and_adamw(model, settings, dtype)
    loader, step, whole = TokenLoader(tokens, ROWS, SHAPE["block_size"]), 0, seconds_left()
    while (left := seconds_left()) > 0.3:
        set_learning_rate(optimizer, RATE * min((step + 1) / WARMUP, left / whole))
        x, y = loader.next_batch()
        with autocast(device, dtype):
            loss = model(x, y)[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    return model
