"""Train a small GPT with one process: python train_one.py"""

import torch

from nanogpt_lib.loader import TokenLoader
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.places import dataset

stream = TokenStream(dataset("pydocs"), "train")
loader = TokenLoader(stream, batch_size=16, block_size=32)
torch.manual_seed(1337)
model = GPT(GPTConfig(block_size=32, vocab_size=96, n_layer=1, n_head=2, n_embd=32))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

for step in range(5):
    x, y = loader.next_batch()
    _, loss = model(x, y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.6f}")
