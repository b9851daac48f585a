"""The experiments: what system calls and VM exits cost, measured and disclosed.

Made by native/names_stub.py: do not edit.
"""

from . import (
    cells as cells,
    compare as compare,
    counters as counters,
    disclosure as disclosure,
    document as document,
    exits as exits,
    failures as failures,
    figures as figures,
    hostcall as hostcall,
    html as html,
    judgement as judgement,
    lab as lab,
    proof as proof,
    pyperf as pyperf,
    record as record,
    references as references,
    shift as shift,
    stats as stats,
    svg as svg,
    syscall as syscall,
    tables as tables,
)
