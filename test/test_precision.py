"""Which type the model computes in."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinkjepa_ros.jepa import precision

X86 = "processor\t: 0\nflags\t\t: fpu avx512f {} ht\nbugs\t\t: amx_bf16\n"


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (X86.format("avx512_bf16"), ("avx512_bf16",)),
        (X86.format("amx_bf16 avx512_bf16"), ("avx512_bf16", "amx_bf16")),
        ("Features\t: fp asimd bf16 i8mm\n", ("bf16",)),
        (X86.format("avx2"), ()),
        ("", ()),
    ],
)
def test_instructions_are_read_from_the_list_of_flags(text, flags) -> None:
    assert precision.cpu_flags(text) == flags


@given(st.text())
def test_any_cpuinfo_is_read_without_an_error(text) -> None:
    assert set(precision.cpu_flags(text)) <= set(precision.INSTRUCTIONS)


def test_a_processor_without_the_instructions_computes_in_float32(monkeypatch) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: ())
    choice = precision.choose("cpu")
    assert choice.dtype == torch.float32 and "avx512_bf16" in choice.reason


@pytest.mark.parametrize(("bfloat16_s", "dtype"), [(0.6, torch.bfloat16), (0.95, torch.float32), (3.0, torch.float32)])
def test_the_instructions_have_to_pay(monkeypatch, bfloat16_s, dtype) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: ("avx512_bf16",))
    monkeypatch.setattr(precision, "probe", lambda width: {torch.float32: 1.0, torch.bfloat16: bfloat16_s})
    choice = precision.choose("cpu")
    assert choice.dtype == dtype and f"{bfloat16_s:.2f} of the time" in choice.reason


def test_the_probe_times_both_types() -> None:
    times = precision.probe(64)
    assert set(times) == {torch.float32, torch.bfloat16} and all(0 < t < 1 for t in times.values())


def test_a_type_that_was_asked_for_is_taken_and_an_unknown_one_refused() -> None:
    assert precision.choose("cpu", "bfloat16").dtype == torch.bfloat16
    assert precision.choose("cpu", "float32").name == "float32"
    with pytest.raises(ValueError, match="auto, float32, bfloat16"):
        precision.choose("cpu", "float16")
