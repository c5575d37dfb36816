"""Pytest runs notebooks in smoke size: the same code, shorter loops."""

import os

os.environ.setdefault("NANOGPT_SMOKE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models: threads only wait for each other
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never wait for a network
