"""What tests/benchmarks/record.py promises about files of measurements."""

import json

import pytest
import record

from nanogpt_lib.support import machine, processor
from nanogpt_lib.support.errors import UserError


def test_a_record_says_what_it_was_measured_on(tmp_path):
    record.write_record(tmp_path / "new" / "x.json", {"seconds": 1.5})
    (kept,) = json.loads((tmp_path / "new" / "x.json").read_text()).values()
    assert kept["results"] == {"seconds": 1.5}
    about = kept["machine"]
    assert about["cores"] >= 1 and about["threads"] >= 1 and about["device"]
    assert about["cpu_class"] == processor.cpu_class()
    assert {"torch", "python", "commit", "date"} <= set(about)


def test_a_machine_replaces_the_record_of_its_own_class_alone(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    for name, seconds in (("avx2", 1), ("avx512_bf16", 2), ("avx2", 3)):
        monkeypatch.setattr(machine, "cpu_class", lambda name=name: name)
        record.write_record(path, seconds)
    kept = record.read_records(path)
    assert {n: r["results"] for n, r in kept.items()} == {"avx2": 3, "avx512_bf16": 2}


@pytest.mark.parametrize("text", ["[1]", "no JSON", '{"avx2": {"seconds": 1}}'])
def test_a_file_that_holds_something_else_is_not_overwritten(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match="not a file of benchmark records"):
        record.write_record(path, 1)
    assert path.read_text() == text
