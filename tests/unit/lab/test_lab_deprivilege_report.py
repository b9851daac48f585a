"""The report of `kvmpy lab deprivilege`, also where only a part could be run."""

from __future__ import annotations

from typing import Any

import pytest

from kvmpy.guests import image
from kvmpy.lab import deprivilege as lab
from kvmpy.lab.deprivilege_store import Store
from kvmpy.lab.show import deprivilege as deprivilege_show
from kvmpy.report.blocks import Picture
from kvmpy.report.table import Table

_RIGHT = lab.Sight(8, 0x1000, 0x2000, 0x28, True, False, 1, 0)
_WRONG = lab.Sight(9, 0x9000, 0xA000, 0x50, False, True, 0, 1)


def made_up_result(**values: Any) -> lab.Result:
    ways: dict[lab.Way, lab.Cost] = {
        "ring1": lab.Cost({"cli": 1.0, "sti": 1.0}, 0.0),
        "patched": lab.Cost({"cli": 1.0, "sti": 1.0, "patch": 2.0}, 0.0),
        "ring0": lab.Cost({}, 0.0),
    }
    known: dict[str, Any] = {
        "module": "kvm_intel", "verdict": "", "emulator": None, "paging": "EPT", "repeats": 32,
        "costs": {name: dict(ways) for name in lab.OPERATIONS},
        "sights": {"ring1": _WRONG, "patched": _RIGHT, "ring0": _RIGHT},
        "limit_stops": True, "failures": {}, "caveats": (),
        "stores": (Store(64, True, 1, "page", True, "", ""),),
    }  # fmt: skip
    return lab.Result(**(known | values))


def table(result: lab.Result, title: str) -> Table:
    blocks = deprivilege_show.blocks(result)
    return next(block for block in blocks if isinstance(block, Table) and block.title == title)


def test_every_operation_is_one_of_the_guest() -> None:
    symbols = image.load("lab-deprivilege").symbols
    assert [name for name in lab.OPERATIONS if f"op.{name}" not in symbols] == []


def test_what_differs_is_marked() -> None:
    rows = table(made_up_result(), "What the kernel sees").rows
    assert rows[0] == ("PUSH CS", "0x8", "0x9 !", "0x8")
    assert rows[-2][1:] == ("comes", "is lost !", "comes")
    assert rows[-1][1:] == ("waits", "comes !", "waits")


def test_costs() -> None:
    rows = table(made_up_result(), "Traps to the monitor, for one of each").rows
    assert rows[0] == ("system call", "2", "4", "0", "0")


def test_a_way_that_is_missing_is_a_dash() -> None:
    result = made_up_result()
    del result.costs["hlt"]["ring0"]
    assert table(result, "Traps to the monitor, for one of each").rows[-1][3:] == ("-", "-")


@pytest.mark.parametrize(
    "missing", [{}, {"costs": {}, "sights": {}}, {"sights": {"ring0": _RIGHT}}]
)
def test_pictures_fit(missing: dict[str, Any]) -> None:
    blocks = list(deprivilege_show.blocks(made_up_result(**missing)))
    pictures = [block for block in blocks if isinstance(block, Picture)]
    assert pictures
    for picture in pictures:
        assert max(map(len, picture.text.splitlines())) <= 79


def test_what_cannot_be_shown_is_said() -> None:
    result = made_up_result(sights={}, costs={}, caveats=("no ring 1 here.",))
    blocks = list(deprivilege_show.blocks(result))
    assert "Not shown here: no ring 1 here." in blocks


def test_a_store_that_could_not_be_tried() -> None:
    store = Store(32, True, 1, "page", False, "", "the guest shut down")
    rows = table(made_up_result(stores=(store,)), "A store past the barrier").rows
    assert rows == (("32-bit, ring 1", "page, U/S = 0", "not here: the guest shut down"),)
