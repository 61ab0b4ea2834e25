"""What people and programs read: complete, plain, and harmless whatever a model's names hold."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from normfold.pipeline.explaining import Explanation
from normfold.record import Applied, Comparison, Finding, Record, Refusal, Size, Timing
from normfold.report import render, to_json
from normfold.report.explanation import render as render_explanations
from normfold.report.words import (
    bytes_text,
    difference,
    failure_sentence,
    gate_sentence,
    latency_sentence,
    seconds_text,
    share,
    shown,
    verdict_words,
)

PAD = Refusal("zero-padding", "what is left of its shift would reach conv9", "place the norm behind the convolution")
SIGN = Refusal("sign", "gamma is negative in 3 of 64 channels", "retrain with positive gammas")
TIMING = Timing("ONNX Runtime", "all", 1, 0.0123, 0.0122, 0.99, 0.97, 1.01, 0.95, 200, "no difference", 0.98, 1.02)

CELLS = [Applied("lstm-step", f"cell{place}", "LSTM of 128: 75 nodes became 67") for place in range(8)]


def record() -> Record:
    filled = Record("nets/net.onnx", "ab" * 32, "latency", versions={"torch": "2.13.0", "normfold": "0.1.0"})
    filled.findings = [
        Finding(
            "stem.bn", "batch", "BatchNormalization", "n0", (), 16, outcome="deleted", into=["stem.conv.weight", "stem.conv.bias"]
        ),
        Finding(
            "mid.bn",
            "batch",
            "BatchNormalization",
            "n1",
            (),
            32,
            ["variance below 1e-10 in 2 channels"],
            "shift",
            ["mid.conv.weight"],
        ),
        *(Finding(f"late{i}.bn", "batch", "BatchNormalization", f"l{i}", (), 64, refusal=PAD) for i in range(8)),
        Finding("token", "layer", "ReduceMean", "n9", (2,), 0, refusal=SIGN),
    ]
    filled.applied = [Applied("tidy", "net"), Applied("affine", "stem.bn", "into stem.conv"), *CELLS]
    filled.before, filled.after = Size(120, 1_000_000, 4_000_000, 11), Size(110, 999_000, 3_996_000, 10)
    filled.inserted = {"bias Add": 2}
    filled.comparisons = [
        Comparison("G1", "y", "normal", 1e-15, 1e-12, True),
        Comparison("G3", "y", "normal", 1e-6, 4e-6, True),
        Comparison("G3", "y", "large", 3e-6, 4e-6, True, "channel 3"),
    ]
    filled.timings = [TIMING]
    filled.note("state_dict found under 'model'")
    filled.warn("the opset is new")
    filled.outputs = {"nets/net.normfold.onnx": "cd" * 32}
    filled.seconds = {"load": 0.5, "rewrite": 1.0}
    return filled


def printed(filled: Record, width: int = 140, *, planned: bool = False, **options: Any) -> str:
    file = io.StringIO()
    render(filled, Console(file=file, width=width, highlight=False, **options), planned=planned)
    return file.getvalue()


def flat(text: str) -> str:
    return " ".join(text.split())


EVERYTHING = [
    "nets/net.onnx objective latency",
    "sha256 abababababababab",
    "torch 2.13.0",
    "state_dict found under 'model'",
    "11: 1 deleted, 1 shift left, 9 kept",
    "zero-padding (8) late0.bn, late1.bn, late2.bn, late3.bn",
    "late5.bn and 2 more: what is left of its shift would reach conv9",
    "what to do: place the norm behind the convolution",
    "gamma is negative in 3 of 64 channels",
    "Inserted nodes 2 bias Add",
    "Rewritten beside them lstm-step, cell0: LSTM of 128: 75 nodes became 67",
    "cell5: LSTM of 128: 75 nodes became 67 and 2 more Verification",
    "Verification passed",
    "G3 (in the runtime): 2 comparisons over 2 kinds of input; the worst used 75 % of what is allowed",
    "12.3 ms before, 12.2 ms after, 0.99x the time [0.97, 1.01] at 95 %: no difference",
    "the opset is new",
    "Written nets/net.normfold.onnx sha256 cdcdcdcdcdcdcdcd",
    "1.5 s: load 500 ms, rewrite 1 s",
    "variance below 1e-10 in 2 channels",
]


@pytest.mark.parametrize("width", [200, 140, 80])
def test_everything_is_said_at_every_width(width: int) -> None:
    text = flat(printed(record(), width))
    for part in EVERYTHING:
        assert part in text, part


def test_every_layer_has_its_row() -> None:
    lines = [flat(line) for line in printed(record(), 200).splitlines()]
    assert "stem.bn batch 16 deleted, into stem.conv.weight, bias" in lines
    assert "mid.bn batch 32 variance below 1e-10 in 2 channels shift left, scale into mid.conv.weight" in lines
    assert "late7.bn batch 64 kept: zero-padding" in lines
    assert "token layer (ReduceMean) 2 ? kept: sign" in lines
    assert "parameters 1,000,000 999,000 -1,000" in lines
    assert "nodes 120 110 -10 (-8 %)" in lines
    assert "weights 3.8 MiB 3.8 MiB -3.9 KiB" in lines


@pytest.mark.parametrize("width", [60, 40, 25])
def test_narrow_terminals_lose_columns_not_facts(width: int) -> None:
    text = printed(record(), width)
    assert max(len(line) for line in text.splitlines()) <= width
    squeezed = "".join(text.split())
    for part in ("deleted,intostem.conv.weight,bias", "kept:zero-padding", "variancebelow1e-10in2channels", "nodifference"):
        assert part in squeezed, part


def test_colour_only_where_there_is_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" not in printed(record())
    assert "\x1b[32m" in printed(record(), force_terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in printed(record(), force_terminal=True, color_system="standard")


def test_no_line_ends_in_blanks_for_nothing() -> None:
    assert not any(line.endswith(" ") and not line.strip() for line in printed(record()).splitlines())


def test_plain_ascii_where_the_terminal_knows_no_more() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    render(record(), Console(file=file, width=120))
    file.flush()
    assert b"stem.bn" in raw.getvalue()


def test_names_cannot_steer_the_terminal() -> None:
    filled = record()
    evil = "\x1b[2J[red]x[/red]\0\r\n"
    filled.source = filled.findings[0].name = filled.findings[0].into[0] = filled.notes[0] = filled.warnings[0] = evil
    filled.findings[2].refusal = Refusal("code", evil, evil)
    filled.findings[1].health = [evil]
    filled.comparisons[0] = Comparison("G1", evil, evil, 2.0, 1.0, False, evil)
    filled.outputs = {evil: "00"}
    for width in (140, 50):
        text = printed(filled, width)
        assert "\x1b" not in text
        assert "\0" not in text
        assert "\r" not in text
        assert "[red]x[/red]" in text


def test_inspect_says_what_would_be() -> None:
    filled = record()
    filled.comparisons, filled.timings, filled.outputs = [], [], {}
    text = printed(filled, planned=True)
    assert "Would be rewritten beside them" in text
    assert "tidy" not in text
    assert "affine, stem.bn" not in text
    assert "11: `normfold optimize` gives 1 deleted, 1 shift left, 9 kept" in flat(text)
    assert text.count("would be") == 2
    for word in ("outcome", "after", "Verification", "Nothing was written", "Latency"):
        assert word not in text


def test_layers_with_one_remedy_stand_together() -> None:
    filled = record()
    filled.findings[2].refusal = Refusal(PAD.code, "another reason", PAD.fix)
    text = flat(printed(filled, 200))
    assert "zero-padding (8) late0.bn: another reason late1.bn, late2.bn" in text
    assert text.count(PAD.fix) == 1


def test_what_was_not_done_is_said() -> None:
    filled = record()
    filled.comparisons, filled.outputs = [], {}
    text = flat(printed(filled))
    assert "Verification not made: nothing is known" in text
    assert "Nothing was written" in text
    assert "none found" in flat(printed(Record("a.onnx", objective="norms")))


def test_a_failure_is_named() -> None:
    filled = record()
    filled.comparisons += [
        Comparison("G3", "logits", "denormal", 2e-3, 1e-5, False, "channel 7"),
        Comparison("certificate", "h", "", math.nan, 1e-11, False),
    ]
    text = flat(printed(filled))
    assert "Verification FAILED" in text
    assert "first failure: G3 of logits, channel 7 on denormal inputs: error 0.002, allowed 1e-05" in text
    filled.comparisons = [Comparison("G3", "y", "", 1.0, 2.0, True), Comparison("reference", "y", "", 2.0, 1.0, False)]
    assert "Verification cannot tell" in flat(printed(filled))
    assert "1 of 1 comparison failed; the worst used more than all of what is allowed" in text


# ---- sentences ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"verdict": "faster", "ratio": 0.5}, "2.00 times as fast"),
        ({"verdict": "slower", "ratio": 1.034}, "slower, 3.4 % more time"),
        ({"verdict": "too noisy to tell"}, "too noisy to tell (before against itself: [0.98, 1.02])"),
        ({}, "no difference"),
    ],
)
def test_verdicts_in_words(changes: dict[str, Any], expected: str) -> None:
    assert verdict_words(replace(TIMING, **changes)) == expected


def test_the_latency_sentence() -> None:
    assert latency_sentence(TIMING).startswith("ONNX Runtime, default level (all), 1 thread: ")
    narrow = replace(TIMING, level="disabled", threads=2, ratio=0.9951, low=0.991, high=0.9992)
    assert latency_sentence(narrow).startswith("ONNX Runtime, level disabled, 2 threads: ")
    assert "0.995x the time [0.991, 0.999] at 95 %" in latency_sentence(narrow)


@pytest.mark.parametrize(
    "error, allowed, expected",
    [
        (0.0, 0.0, 0.0),
        (1.0, 4.0, 0.25),
        (1.0, 0.0, math.inf),
        (math.inf, 1.0, math.inf),
        (math.nan, 1.0, math.inf),
        (1.0, math.nan, math.inf),
    ],
)
def test_share(error: float, allowed: float, expected: float) -> None:
    assert share(Comparison("G1", "y", "", error, allowed, False)) == expected


def test_sentences_about_gates() -> None:
    passed = Comparison("G1", "y", "normal", 1e-20, 1e-12, True)
    assert gate_sentence("G1", [passed]).endswith(
        "1 comparison over 1 kind of input; the worst used less than 0.1 % of what is allowed"
    )
    assert (
        gate_sentence("X", [Comparison("X", "y", "", 1.0, 2.0, True)])
        == "X: 1 comparison; the worst used 50 % of what is allowed"
    )
    assert failure_sentence(Comparison("G1", "y", "", 1.0, 0.5, False)) == "G1 of y: error 1, allowed 0.5"


def test_small_words() -> None:
    assert [bytes_text(n) for n in (0, 1023, 1024, 5 << 20, 3 << 40)] == ["0 B", "1,023 B", "1.0 KiB", "5.0 MiB", "3,072.0 GiB"]
    assert [seconds_text(s) for s in (0.0, 2e-7, 3.5e-5, 0.0123, 0.5, 1.234, 250.0)] == [
        "0 us",
        "0.2 us",
        "35 us",
        "12.3 ms",
        "500 ms",
        "1.23 s",
        "250 s",
    ]
    assert [difference(*pair) for pair in ((5, 5), (100, 90), (0, 3), (1000, 1001))] == ["no change", "-10 (-10 %)", "+3", "+1"]
    assert shown("a\tb\x1bü") == "a\\tb\\x1bü"


# ---- JSON ---------------------------------------------------------------------------------------------------------------


def test_json_holds_the_whole_record_in_a_stable_order() -> None:
    content = json.loads(to_json(record()))
    assert list(content) == ["schema", "passed", *record().as_dict()]
    assert content["schema"] == 1
    assert content["passed"] is True
    assert content["findings"][0]["into"] == ["stem.conv.weight", "stem.conv.bias"]
    assert content["findings"][2]["refusal"] == {"code": PAD.code, "reason": PAD.reason, "fix": PAD.fix}
    assert content["timings"][0]["verdict"] == "no difference"
    assert list(content["versions"]) == ["normfold", "torch"]
    assert to_json(record()) == to_json(record())


def test_json_survives_odd_numbers() -> None:
    filled = record()
    filled.comparisons = [
        Comparison("G3", "y", "", math.inf, math.nan, False),
        Comparison("G3", "y", "", np.float64(2.5), -math.inf, False),
    ]
    filled.findings[0].axes = (np.int64(2),)
    content = json.loads(to_json(filled), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [(item["error"], item["allowed"]) for item in content["comparisons"]] == [("inf", "nan"), (2.5, "-inf")]
    assert content["findings"][0]["axes"] == [2]
    assert content["passed"] is False


def test_explanations_that_are_alike_stand_once() -> None:
    steps = [Finding("cell.ln", "layer", "LayerNormalization", f"n{step}", (1,), 8, refusal=SIGN) for step in range(3)]
    other = Finding("cell.ln", "layer", "LayerNormalization", "n9", (1,), 8, refusal=PAD)
    file = io.StringIO()
    render_explanations([Explanation(item) for item in (*steps, other)], Console(file=file, width=100, highlight=False))
    text = flat(file.getvalue())
    assert "cell.ln, 3 times LayerNormalization, 8 channels would be kept: sign" in text
    assert "cell.ln LayerNormalization, 8 channels would be kept: zero-padding" in text
    assert text.count("cell.ln") == 2
