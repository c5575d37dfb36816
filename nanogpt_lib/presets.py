"""The named presets of train.py: values for the settings in config.py.

A preset applies only if it is named on the command line, or no argument is given at all
(arguments.py).
"""

GPT2_124M = dict(data="data/fineweb", hellaswag_every=250)  # the rest: the plain defaults

# Sizes: GPT-2 paper, table 2. Peak learning rates: GPT-3 paper, table 2.1 (floor: a tenth).
PRESETS: dict[str, dict] = {
    "quickstart": dict(
        data="data/pydocs", out="runs/quickstart",
        n_layer=4, n_head=4, n_embd=256, block_size=64, bias=False, vocab_multiple=1,
        attention="manual",  # faster: on a CPU in bfloat16 SDPA's backward pass is slow
        batch_size=32, total_batch_size=32 * 64, minutes=2.0, max_steps=440,
        optimizer="muon", learning_rate=4e-3, min_lr=1e-4, muon_learning_rate=0.03,
        muon_method="halley", schedule="wsd", warmup_steps=20, weight_decay=0.0,
        eval_every=110, eval_tokens=65_536, save_every=220, sample_every=220,
        sample_prompt="The ", sample_tokens=200, log_every=44,
    ),
    # the model that the chapters examine (notebooks/recorded): like quickstart, longer context
    "recorded": dict(
        data="data/pydocs", out="runs/recorded",
        n_layer=4, n_head=4, n_embd=256, block_size=256, bias=False, vocab_multiple=1,
        attention="manual", dropout=0.1,
        batch_size=8, total_batch_size=8 * 256, max_steps=6000,
        optimizer="muon", learning_rate=3e-3, min_lr=1e-4, muon_learning_rate=0.02,
        warmup_steps=100, weight_decay=0.1,
        eval_every=250, eval_tokens=200_000, save_every=500, sample_every=500,
        sample_prompt="The ", sample_tokens=400, log_every=100,
    ),
    # model, data and batch size of nanoGPT's README example for a laptop; our own hyperparameters
    "shakespeare-char": dict(
        data="data/shakespeare", out="runs/shakespeare-char",
        n_layer=4, n_head=4, n_embd=128, block_size=64, bias=False, vocab_multiple=1,
        attention="manual",
        batch_size=12, total_batch_size=12 * 64, max_steps=1000,
        optimizer="muon", learning_rate=6e-3, min_lr=1e-4, muon_learning_rate=0.03, beta1=0.85,
        muon_method="halley", warmup_steps=20, weight_decay=0.0,
        eval_every=250, eval_tokens=110_592, save_every=500, sample_every=500,
        sample_prompt="\n", sample_tokens=200, log_every=50,
    ),
    # nanoGPT's config/train_shakespeare_char.py: three minutes on an A100
    "shakespeare-char-gpu": dict(
        data="data/shakespeare", out="runs/shakespeare-char-gpu",
        n_layer=6, n_head=6, n_embd=384, block_size=256, bias=False, vocab_multiple=1, dropout=0.2,
        batch_size=64, total_batch_size=64 * 256, max_steps=5000,
        learning_rate=1e-3, min_lr=1e-4, warmup_steps=100, beta2=0.99,
        eval_every=250, eval_tokens=110_592, save_every=1000, sample_every=1000,
        sample_prompt="\n", sample_tokens=500,
    ),
    "gpt2-124m": dict(GPT2_124M, out="runs/gpt2-124m"),
    "gpt2-350m": dict(
        GPT2_124M, out="runs/gpt2-350m", n_layer=24, n_head=16, n_embd=1024,
        batch_size=32, learning_rate=3e-4, min_lr=3e-5,
    ),
    "gpt2-774m": dict(
        GPT2_124M, out="runs/gpt2-774m", n_layer=36, n_head=20, n_embd=1280,
        batch_size=16, learning_rate=2.5e-4, min_lr=2.5e-5,
    ),
    "gpt2-1558m": dict(
        GPT2_124M, out="runs/gpt2-1558m", n_layer=48, n_head=25, n_embd=1600,
        batch_size=8, learning_rate=2e-4, min_lr=2e-5,
    ),
    # the modern model (modern.py); as many tokens as in modded-nanogpt's logs; not measured yet
    "modern-124m": dict(
        GPT2_124M, out="runs/modern-124m", model="modern", n_head=6, bias=False,
        batch_size=32, max_steps=3250, optimizer="muon", learning_rate=4e-3, min_lr=0.0,
        muon_learning_rate=0.02, schedule="wsd", warmup_steps=100, weight_decay=0.0,
    ),
    "gpt3-125m": dict(GPT2_124M, out="runs/gpt3-125m", block_size=2048, batch_size=32),
    "finetune-shakespeare": dict(
        data="data/shakespeare_gpt2", out="runs/finetune-shakespeare", init_from="gpt2",
        batch_size=4, total_batch_size=32 * 1024, max_steps=40,
        learning_rate=3e-5, min_lr=3e-5, warmup_steps=0,
        eval_every=10, eval_tokens=32_768, save_every=20, sample_every=20,
        sample_prompt="\n", log_every=1,
    ),
    # GPT-2 learns to answer, on Dolly (data/conversations.py); not measured yet
    "finetune-chat": dict(
        data="data/dolly", out="runs/finetune-chat", init_from="gpt2", loss_on="answers",
        batch_size=8, total_batch_size=32 * 1024, max_steps=300,
        learning_rate=3e-5, min_lr=3e-6, warmup_steps=20, weight_decay=0.0,
        eval_every=50, eval_tokens=65_536, save_every=100, sample_every=0, log_every=10,
    ),
    # the recorded model learns to answer; see chapter 11
    "finetune-tasks": dict(
        data="data/tasks", out="runs/finetune-tasks", init_from="notebooks/recorded/model",
        n_layer=4, n_head=4, n_embd=256, block_size=256, bias=False, vocab_multiple=1,
        attention="manual", loss_on="answers",
        batch_size=8, total_batch_size=8 * 256, minutes=5.0, max_steps=1000,
        optimizer="muon", learning_rate=2e-3, min_lr=1e-5, muon_learning_rate=0.006,
        muon_method="halley", schedule="wsd", warmup_steps=30, weight_decay=0.0,
        eval_every=100, eval_tokens=32_768, save_every=500, sample_every=0,
        sample_prompt="¶▸What is 12 plus 30?◂", sample_tokens=8, log_every=20,
    ),
}  # fmt: skip

# Final validation loss in nats per token by the number of steps, as measured; for --minutes.
EXPECTED: dict[str, list[tuple[int, float]]] = {
    "quickstart": [(120, 2.12), (232, 1.62), (436, 1.42), (1107, 1.29)],
}
