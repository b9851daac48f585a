"""What ``import kvmpy`` offers, name by name, is what is recorded: nothing changes by accident."""

import json
import runpy
from pathlib import Path

API = Path(__file__).resolve().parent.parent / "api"


def test_public_names_and_signatures_are_the_recorded_ones():
    recorded = json.loads((API / "names.json").read_text())
    offered = runpy.run_path(str(API / "names.py"))["offered"]()
    assert sorted(offered) == sorted(recorded)
    for name, members in recorded.items():
        assert offered[name] == members, name
