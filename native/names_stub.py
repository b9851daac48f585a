"""Writes the ``__init__.pyi`` of each package whose names are imported when first used: what type
checkers and editors read instead of the table in its ``__init__.py``.

    python native/names_stub.py

tests/unit/test_public_names.py fails when one of them is not what its table gives.
"""

import ast
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "kvmpy"
entries = runpy.run_path(str(ROOT / "lazy.py"))["entries"]


def stub(source: str) -> str | None:
    """The text of the stub for an ``__init__.py``; None if it has no table."""
    tree = ast.parse(source)
    table = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and getattr(node.targets[0], "id", "") == "_TABLE"
        and isinstance(node.value, ast.Constant)
    ]
    if not table:
        return None
    head = (ast.get_docstring(tree) or "").splitlines()[0]
    lines = [f'"""{head}', "", "Made by native/names_stub.py: do not edit.", '"""', ""]
    modules: dict[str, list[str]] = {}
    for name, (module, attribute) in entries(table[0]).items():
        if attribute:
            modules.setdefault(f".{module}", []).append(f"{name} as {name}")
        else:
            folder, _, leaf = module.rpartition(".")
            modules.setdefault(f".{folder}", []).append(f"{leaf} as {name}")
    for module, names in sorted(modules.items()):
        lines += [f"from {module} import (", *(f"    {name}," for name in sorted(names)), ")"]
    if "__version__" in source:
        lines += ["", "__version__: str"]
    return "\n".join(lines) + "\n"


def stubs() -> dict[Path, str]:
    """Every stub by its path."""
    found = {}
    for init in sorted(ROOT.rglob("__init__.py")):
        text = stub(init.read_text())
        if text is not None:
            found[init.with_suffix(".pyi")] = text
    return found


if __name__ == "__main__":
    for path, text in stubs().items():
        path.write_text(text)
