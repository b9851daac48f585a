"""The docstrings' examples that need no KVM; and that every public method has one."""

import pytest
from doctests import cases, public_members, run

CASES = cases(kvm=False)


@pytest.mark.parametrize("example", CASES, ids=[case.name for case in CASES])
def test_example(example):
    """It prints what it says."""
    run(example)


def test_every_public_method_has_an_example():
    """Whoever reads help() finds a line that works."""
    missing = [name for name, member in public_members() if ">>>" not in (member.__doc__ or "")]
    assert missing == []
