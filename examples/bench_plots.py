"""System calls inside a guest, measured and plotted: a script in cells, as notebooks have them.

    python examples/bench_plots.py [RECORD.json [FOLDER]]

Without a record (of `kvmpy bench syscall --save RECORD.json`) it measures 64-bit mode for some
seconds. The pictures go to FOLDER, or to one that is removed again. An editor that knows `# %%`
runs the cells one by one; in Jupyter, `display(SVG(pictures["native"]))` shows one in place.
"""

# %% Measure, or read what was measured elsewhere
import sys
import tempfile
from pathlib import Path
from statistics import median

import kvmpy
from kvmpy.bench.cells import every_cell
from kvmpy.bench.document import Report

if len(sys.argv) > 1:
    report = Report.from_json(Path(sys.argv[1]).read_bytes())
else:
    cells = [cell for cell in every_cell() if cell.mode == "long64"]
    report = kvmpy.bench.syscall.run(cells, quick=True)
print(f"{report.disclosure.cpu_model}: {report.disclosure.verdict}", file=sys.stderr)

# %% A row is plain data: samples per call, in ticks or ns, with the VM each was taken in
records = [
    {"mode": row.mode, "path": row.path, "rung": row.level, "vm": vm, "value": value}
    for row in report.rows
    if row.outcome == "native"
    for vm, group in enumerate(kvmpy.bench.figures.by_vm(row))
    for value in group
]  # pandas.DataFrame(records) would take them from here
print(f"{len(records)} native batches", file=sys.stderr)

# %% Statistics: the median with its interval, and how many batches were disturbed
figures = kvmpy.bench.figures.figures(report)
for figure in figures:
    if figure.summary:
        middle, width = figure.summary.median, figure.summary.interval.half_width
        name = f"{figure.mode} {figure.label} [{figure.kind}]"
        print(f"{name:<48} {middle:10.1f} {figure.row.unit} +-{width:.1%}", file=sys.stderr)

# %% One picture for each class: an interpreted ring never stands beside a native one
pictures = {
    kind: kvmpy.bench.svg.distributions(items)
    for kind, items in kvmpy.bench.figures.by_class(figures)
    if kind != "fails"
}
with tempfile.TemporaryDirectory() as removed:
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else removed)
    for kind, picture in pictures.items():
        (folder / f"{kind}.svg").write_text(picture)
        print(f"{folder / kind}.svg", file=sys.stderr)

# %% Do the VMs agree? Their medians, relative to that of all
for figure in figures:
    if figure.kind == "calibration" and figure.summary:
        medians = [median(group) for group in kvmpy.bench.figures.by_vm(figure.row)]
        spread = (max(medians) - min(medians)) / figure.summary.median
        print(f"{figure.label}: VM medians within {spread:.1%}", file=sys.stderr)

print("Each class of rows has a picture of its own.")
