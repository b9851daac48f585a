"""What Python sees of the C sources, read from their headers: the one place that declares it.

In a header ``API`` stands before every function, structure and enumeration that Python uses,
and means nothing to the compiler. Every object-like macro that is a number comes along. Of a
structure Python sees the members that cffi can read; the compiler has the last word on where they
are ("...;").
"""

import re
from pathlib import Path

_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_NUMBER = re.compile(r"^#define ((?:SHIM|VIRTIO|MEASURE)_\w+)[ \t]+(?!\s)(.+)$", re.MULTILINE)
#: Members that need headers or compilers' extensions of their own.
_OPAQUE = re.compile(r"_Atomic|\bpthread_|\btimer_t\b|\[\]")


def declarations(*paths: Path) -> str:
    """What cffi is told of headers, each of which knows those before it."""
    known: set[str] = set()
    return "".join(_of_one(path, known) for path in paths)


def _of_one(path: Path, known: set[str]) -> str:
    text = _COMMENT.sub("", path.read_text())
    found = [f"#define {name} ...\n" for name, _ in _NUMBER.findall(text)]
    items = [_item(text, match.end()) for match in re.finditer(r"^API\s+", text, re.MULTILINE)]
    defined = {match[1] for item in items if (match := re.match(r"struct (\w+) \{", item))}
    named = {name for item in items for name in re.findall(r"struct (\w+)", item)}
    unseen = sorted(name for name in named - defined if not name.startswith("kvm_"))
    found += [f"struct {name};\n" for name in unseen]
    known |= defined
    return "".join(found) + "\n".join(_visible(item, known) for item in items) + "\n"


def _item(text: str, start: int) -> str:
    """From ``start`` to the semicolon that ends a declaration."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if text[at] == ";" and depth == 0:
            return text[start : at + 1]
    raise SystemExit(f"a declaration has no end: {text[start : start + 60]!r}")


def _visible(item: str, known: set[str]) -> str:
    match = re.match(r"(struct \w+) \{(.*)\};$", item, re.DOTALL)
    if match is None:
        return item
    members, depth, begun = [], 0, 0
    for at, character in enumerate(match[2]):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == ";" and depth == 0:
            members.append(" ".join(match[2][begun : at + 1].split()))
            begun = at + 1
    # An array's length is the compiler's to say, as a structure's size is.
    kept = [re.sub(r"\[\w+\]", "[...]", m) for m in members if _is_known(m, known)]
    return f"{match[1]} {{ {' '.join(kept)} ...; }};"


def _is_known(member: str, known: set[str]) -> bool:
    held = re.match(r"(?:const )?struct (\w+) [^*]", member)
    return not _OPAQUE.search(member) and (held is None or held[1] in known)
