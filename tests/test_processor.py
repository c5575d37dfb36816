"""What support/processor.py promises: the public API, no errors, environment variables count."""

import pytest
import torch

from nanogpt_lib.device import choose_dtype
from nanogpt_lib.support import processor
from nanogpt_lib.support.processor import cpu_class, cpu_has, cpu_multiplies_bfloat16

LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


@pytest.fixture
def pretend(monkeypatch):
    """A function that makes this machine look like another one."""

    def machine(name="x86_64", width="AVX512", **features):
        for limit in LIMITS:
            monkeypatch.delenv(limit, raising=False)
        monkeypatch.setattr(processor.platform, "machine", lambda: name)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: width)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)

    return machine


def test_bfloat16_is_multiplied_where_the_processor_has_instructions_for_it(pretend):
    cpu = torch.device("cpu")
    for features, dtype in [
        (dict(avx512_bf16=True), torch.bfloat16),
        (dict(avx512_bf16=False, amx_bf16=True), torch.bfloat16),
        (dict(avx2=True, avx512_f=True, avx512_bf16=False), torch.float32),
        ({}, torch.float32),
    ]:
        pretend(**features)
        assert choose_dtype(cpu) == dtype
    pretend("arm64", bf16=True, avx512_bf16=True)
    assert choose_dtype(cpu) == torch.float32


@pytest.mark.parametrize("limit", ["AVX2", "avx2_vnni", "AVX512_CORE"])
def test_a_limit_of_the_environment_counts_as_the_processor_it_describes(
    limit, pretend, monkeypatch
):
    pretend(avx512_bf16=True)
    assert cpu_multiplies_bfloat16()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert cpu_multiplies_bfloat16()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert not cpu_multiplies_bfloat16()
    pretend(avx512_bf16=True, width="AVX2")  # as ATEN_CPU_CAPABILITY=avx2 makes it
    assert not cpu_multiplies_bfloat16()


def test_whatever_question_a_pytorch_does_not_know_the_answer_is_no(pretend, monkeypatch):
    pretend()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert cpu_has("avx512_bf16", "amx_tile") and cpu_multiplies_bfloat16()
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert not cpu_multiplies_bfloat16()
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not cpu_multiplies_bfloat16()
    assert choose_dtype(torch.device("cpu")) == torch.float32


def test_figures_are_named_by_the_class_of_processor(pretend):
    for width, features, expected in [
        ("AVX512", dict(avx512_bf16=True), "avx512_bf16"),
        ("AVX512", {}, "avx512"),
        ("AVX2", dict(avx512_bf16=True), "avx2"),
        ("DEFAULT", {}, "other"),
    ]:
        pretend(width=width, **features)
        assert cpu_class() == expected
    pretend("aarch64")
    assert cpu_class() == "arm"
