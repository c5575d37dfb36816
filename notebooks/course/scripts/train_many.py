"""Train a small GPT with several processes: torchrun --nproc_per_node=2 train_many.py"""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nanogpt_lib.loader import TokenLoader
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.places import dataset

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
stream = TokenStream(dataset("pydocs"), "train")
loader = TokenLoader(stream, batch_size=16 // size, block_size=32, rank=rank, world_size=size)
torch.manual_seed(1337)
model = GPT(GPTConfig(block_size=32, vocab_size=96, n_layer=1, n_head=2, n_embd=32))
model = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

for step in range(5):
    x, y = loader.next_batch()
    _, loss = model(x, y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    total = loss.detach()
    dist.all_reduce(total)
    if rank == 0:
        print(f"step {step}: loss {total.item() / size:.6f}")
dist.destroy_process_group()
