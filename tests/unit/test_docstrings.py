"""The docstrings' examples that need no KVM."""

import pytest
from doctests import cases, run

CASES = cases(kvm=False)


@pytest.mark.parametrize("example", CASES, ids=[case.name for case in CASES])
def test_example(example):
    """It prints what it says."""
    run(example)
