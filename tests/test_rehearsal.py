"""The other processor: what depends on the CPU runs once more as on one with AVX2 only.

Tests marked `processor` are those. The three variables below limit PyTorch's own loops, oneDNN and
MKL; a whole rehearsal, notebooks included, is `make test-avx2`.
"""

import os
import re
import subprocess
import sys

import pytest

from conftest import ROOT
from nanogpt_lib.support.processor import cpu_is_x86

AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
SAYS = """
import torch
from nanogpt_lib.device import choose_dtype
from nanogpt_lib.support.weight_formats import works
print(torch.backends.cpu.get_cpu_capability(), choose_dtype(torch.device("cpu")))
print(works("bfloat16"))
x = torch.randn(3, 8, dtype=torch.bfloat16)
try:
    torch.ops.mkldnn._reorder_linear_weight(x, 1)
except (RuntimeError, AttributeError) as error:
    print("refused")
"""

pytestmark = pytest.mark.skipif(not cpu_is_x86(), reason="the limits are of x86")


def rehearse(*command: str) -> subprocess.CompletedProcess:
    """Run Python as on a processor with AVX2 only."""
    env = {**os.environ, **AVX2}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=env
    )


def test_the_rehearsed_processor_has_no_bfloat16_and_refuses_it():
    done = rehearse("-c", SAYS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["AVX2", "torch.float32", "False", "refused"]


def test_what_depends_on_the_processor_holds_with_avx2_only():
    marked = [
        str(path)
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        if "pytest.mark.processor" in path.read_text(encoding="utf-8")
    ]
    options = ("-m", "processor", "-p", "no:cacheprovider", "-p", "no:xdist")
    done = rehearse("-m", "pytest", *options, *marked)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 80
