"""Frozen values behave as the standard library's frozen dataclasses: each test runs with both."""

import copy
import dataclasses
import inspect
import pickle
from typing import ClassVar

import pytest

from kvmpy import record as records, values

BOTH = pytest.mark.parametrize("dataclass", [dataclasses.dataclass, values.dataclass])
SLOTS = pytest.mark.parametrize("slots", [False, True])


@values.dataclass(frozen=True, slots=True)
class Slotted:
    """To be pickled, which takes a module's class."""

    a: int
    b: bytes = b""


@values.dataclass(frozen=True)
class Plain:
    """As above, without slots."""

    a: int
    b: bytes = b""


def point(dataclass, slots=False, **options):
    @dataclass(frozen=True, slots=slots, **options)
    class Point:
        """A point."""

        origin: ClassVar[int] = 0
        x: int
        y: int = 2

        @property
        def sum(self) -> int:
            return self.x + self.y

    return Point


@BOTH
@SLOTS
def test_a_value(dataclass, slots):
    """Made by position and keyword, compared, hashed, printed, matched."""
    Point = point(dataclass, slots)
    value = Point(1)
    assert (value.x, value.y, value.sum, Point.origin) == (1, 2, 3, 0)
    assert value == Point(y=2, x=1) != Point(1, 3)
    assert value != (1, 2)
    assert hash(value) == hash(Point(1, 2))
    assert repr(value).endswith("Point(x=1, y=2)")
    assert Point.__match_args__ == ("x", "y")
    assert hasattr(value, "__dict__") is not slots
    match value:
        case Point(1, y=y):
            assert y == 2
        case _:
            pytest.fail("does not match")


@BOTH
@SLOTS
def test_wrong_arguments(dataclass, slots):
    """Are TypeErrors that name the class and the field."""
    Point = point(dataclass, slots)
    with pytest.raises(TypeError, match=r"Point.__init__\(\) missing 1 .*'x'"):
        Point()
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        Point(1, z=3)
    assert list(inspect.signature(Point).parameters) == ["x", "y"]
    assert inspect.signature(Point).parameters["y"].default == 2


@BOTH
@SLOTS
def test_frozen(dataclass, slots):
    """No attribute can be set or deleted, be it a field or not."""
    value = point(dataclass, slots)(1)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'x'"):
        value.x = 5
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'x'"):
        del value.x
    if not (slots and dataclass is dataclasses.dataclass):  # before 3.12 that is a TypeError
        with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'z'"):
            value.z = 5


@BOTH
def test_a_class_that_only_inherits(dataclass):
    """Has what it adds, and still may not change a field."""

    class Named(point(dataclass)):
        pass

    value = Named(1)
    value.name = "a"
    assert value.name == "a"
    del value.name
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.x = 5
    assert value == Named(1) != point(dataclass)(1)


@BOTH
@SLOTS
def test_inheritance(dataclass, slots):
    """Fields come after those of the base; one that is declared again keeps its place."""
    Point = point(dataclass, slots)

    @dataclass(frozen=True, slots=slots)
    class Solid(Point):
        z: int = 3
        y: int = 7

    value = Solid(1)
    assert repr(value).endswith("Solid(x=1, y=7, z=3)")
    assert value != Point(1, 7)
    assert dataclasses.astuple(value) == (1, 7, 3)


@BOTH
@SLOTS
def test_as_the_standard_library_sees_it(dataclass, slots):
    """fields(), replace(), asdict(), is_dataclass(), and ours for either."""
    Point = point(dataclass, slots)
    value = Point(1)
    assert dataclasses.is_dataclass(Point)
    assert [(f.name, f.default) for f in dataclasses.fields(value)] == [
        ("x", dataclasses.MISSING), ("y", 2),
    ]  # fmt: skip
    assert dataclasses.asdict(value) == {"x": 1, "y": 2}
    assert dataclasses.replace(value, x=4) == values.replace(value, x=4) == Point(4)
    assert values.names(Point) == values.names(value) == ("x", "y")
    with pytest.raises(TypeError):
        values.replace(value, z=4)


@SLOTS
def test_a_standard_dataclass_inherits(slots):
    """As a user's own exits and records may."""

    @dataclasses.dataclass(frozen=True)
    class Solid(point(values.dataclass, slots)):
        z: int = 3

    assert dataclasses.astuple(Solid(1)) == (1, 2, 3)
    assert Solid(1) == Solid(1, 2, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Solid(1).x = 5

    @dataclasses.dataclass(frozen=True, repr=False)
    class Mine(records.Record):
        c_name = "struct kvm_mp_state"
        mp_state: int = 0

    assert Mine.from_c(Mine(2).to_c()) == Mine(2)
    assert repr(Mine(2)) == "Mine(mp_state=2)"


@BOTH
def test_own_methods_stay(dataclass):
    """A class's own __eq__ and __repr__ are kept, and repr=False and eq=False leave the base's."""

    @dataclass(frozen=True)
    class Own:
        a: int

        def __eq__(self, other):
            return True

        def __repr__(self):
            return "own"

    assert Own(1) == 5
    assert repr(Own(1)) == "own"
    assert hash(Own(1)) == hash(Own(1))
    plain = point(dataclass, eq=False, repr=False)
    assert plain(1) != plain(1)
    assert repr(plain(1)).startswith("<")


@BOTH
def test_order(dataclass):
    """As tuples, among values of one class."""
    Point = point(dataclass, order=True)
    assert Point(1, 5) < Point(2, 1) <= Point(2, 1)
    assert sorted([Point(2), Point(1)])[0] == Point(1)
    with pytest.raises(TypeError):
        assert Point(1) < 3
    with pytest.raises(TypeError):
        assert point(dataclass)(1) < point(dataclass)(2)


@BOTH
@SLOTS
def test_post_init_and_no_fields(dataclass, slots):
    """__post_init__ sees the fields; two without fields are equal."""

    @dataclass(frozen=True, slots=slots)
    class Checked:
        a: int

        def __post_init__(self):
            if self.a < 0:
                raise ValueError("negative")

    @dataclass(frozen=True, slots=slots)
    class Empty:
        pass

    with pytest.raises(ValueError, match="negative"):
        Checked(-1)
    assert Empty() == Empty()
    assert hash(Empty()) == hash(Empty())
    assert repr(Empty()).endswith("Empty()")


@pytest.mark.parametrize("value", [Slotted(1, b"x"), Plain(1)])
def test_copies(value):
    """Pickled, copied and deep-copied they are equal."""
    for again in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
        assert again == value
        assert type(again) is type(value)
