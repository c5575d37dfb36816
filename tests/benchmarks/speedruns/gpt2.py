"""Entry: GPT-2's architecture and recipe, with AdamW and a cosine, at a size for five minutes."""

import math

import torch

from nanogpt_lib.device import autocast, choose_dtype
from nanogpt_lib.loader import TokenLoader
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.optimizer import make_optimizer, set_learning_rate

SHAPE = dict(block_size=256, n_layer=4, n_head=4, n_embd=192, bias=False, attention="manual")
ROWS, RATE, WARMUP, DROPOUT = 8, 3e-3, 20, 0.1


def train(tokens, vocab_size, seconds_left):
    """Train until the time is up; the rate follows the clock."""
    torch.manual_seed(1337)
    model = GPT(GPTConfig(vocab_size=vocab_size, dropout=DROPOUT, **SHAPE))
    optimizer = make_optimizer(model, learning_rate=RATE, weight_decay=0.1, betas=(0.9, 0.99))
    loader = TokenLoader(tokens, ROWS, SHAPE["block_size"])
    device, step, whole = torch.device("cpu"), 0, seconds_left()
    dtype = choose_dtype(device, "auto")
    while (left := seconds_left()) > 0.3:
        done = 1 - left / whole
        rate = RATE * min((step + 1) / WARMUP, 0.05 + 0.475 * (1 + math.cos(math.pi * done)))
        set_learning_rate(optimizer, rate)
        x, y = loader.next_batch()
        with autocast(device, dtype):
            loss = model(x, y)[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    return model
