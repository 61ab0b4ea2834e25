"""Why a loop over time does not become one LSTM, GRU or RNN."""

from __future__ import annotations

from normfold.record import Refusal

_WORDS = {
    "not-a-cell": (
        "it stands in a loop over time whose step is not the equations of an LSTM, GRU or RNN",
        "write the step as nn.LSTM, nn.GRU or nn.RNN computes it, where that is what is meant",
    ),
    "cell-state-affine": (
        "it stands in a loop over time where the cell state is scaled or shifted between the steps, which no LSTM does",
        "train with norms on the input and the hidden state alone; a swap of the norm on the cell state with retraining would do",
    ),
    "peephole": (
        "it stands in a loop over time whose gates read the cell state (peepholes), which torch's LSTM does not have",
        "retrain without peepholes",
    ),
    "coupled-gates": (
        "it stands in a loop over time whose forget gate is 1 - i, which torch's LSTM does not have",
        "use a GRU, or retrain with a forget gate of its own",
    ),
    "step-operation": (
        "it stands in a loop over time whose step does something that no LSTM, GRU or RNN does",
        "take that operation out of the recurrent path",
    ),
    "batch-mixing": (
        "it stands in a loop over time in which rows of the batch read each other",
        "check that this is meant: the result for one sample depends on the others",
    ),
    "step-parameters": (
        "it stands in a loop over time whose steps have parameters of their own (statistics per step): no single layer is it",
        "share the statistics over time (one BatchNorm for all steps), or fold step by step with --clone-budget",
    ),
    "loop-length": (
        "it stands in a loop of which it is not seen that it walks through a sequence, one element a step, to its end",
        "run the loop as often as the sequence is long, with nothing else that can end it, and take element t at step t",
    ),
    "empty-sequence": (
        "it stands in a loop of open length that may make no step, after which no layer gives what the loop does",
        "export with a fixed length, or as a Scan, which takes no empty sequence; an LSTM or RNN needs a start for each row",
    ),
    "state-read": (
        "it stands in a loop over time of which something is read that an LSTM does not give (a gate, or c before the last step)",
        "read h of the steps, and c behind the last one only",
    ),
}

RECURRENT = {code: Refusal(code, reason, fix) for code, (reason, fix) in _WORDS.items()}


def refusal(code: str, detail: str) -> Refusal:
    """The refusal of that code, with what was met."""
    plain = RECURRENT[code]
    return Refusal(code, f"{plain.reason}: {detail}" if detail else plain.reason, plain.fix)
