"""Draws docs/step.svg, the picture of one denoising step: ``python docs/step_picture.py``."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 940, 470
INK, PALE, RUN, SKIP, SEAM = "#1f2933", "#f5f7fa", "#c6e5d3", "#f7d9c4", "#cfe0f5"


def box(x: int, y: int, width: int, height: int, fill: str, *lines: str) -> str:
    """A box with its text in the middle; the first line is bold."""
    middle = y + height / 2 - 8 * (len(lines) - 1) + 4
    texts = [
        f'<text x="{x + width / 2:g}" y="{middle + 16 * number:g}" text-anchor="middle"'
        f"{' font-weight=' + chr(34) + 'bold' + chr(34) if number == 0 else ''}>{escape(line)}</text>"
        for number, line in enumerate(lines)
    ]
    frame = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{INK}"/>'
    return "\n".join([frame, *texts])


def arrow(points: str, label: str = "", x: int = 0, y: int = 0) -> str:
    """A line through ``points`` with a head at its end, and a label at ``x, y``."""
    line = f'<polyline points="{points}" fill="none" stroke="{INK}" marker-end="url(#head)"/>'
    return line + (f'\n<text x="{x}" y="{y}" font-style="italic">{escape(label)}</text>' if label else "")


def picture() -> str:
    """The whole drawing."""
    parts = [
        box(20, 20, 210, 64, PALE, "host", "a pipeline, Omni, a loop", "refresh, session, step"),
        arrow("230,52 288,52"),
        box(290, 20, 290, 64, SEAM, "clock", "Step(index, total, branch)", "told, or read from the scheduler"),
        arrow("580,52 638,52"),
        box(640, 20, 280, 64, SEAM, "session of the request", "one slot per transformer, span and branch",
            "thrown away with the run"),
        '<rect x="20" y="120" width="900" height="120" rx="6" fill="none" stroke="#9aa5b1" stroke-dasharray="5 4"/>',
        '<text x="32" y="138">the model\'s own forward, untouched; each block\'s call is wrapped</text>',
        arrow("30,190 58,190"),
        box(60, 160, 110, 60, RUN, "block 0", "runs"),
        arrow("170,190 208,190", "entry", 172, 182),
        f'<rect x="210" y="146" width="540" height="84" rx="6" fill="#ffffff" stroke="{INK}"/>',
        '<text x="224" y="166" font-weight="bold">a span: run or skipped as one</text>',
        *(box(230 + 104 * number, 178, 90, 36, PALE, f"block {name}")
          for number, name in enumerate(("1", "2", "3", "...", "n-2"))),
        arrow("750,190 788,190", "exit", 756, 182),
        box(790, 160, 110, 60, RUN, "block n-1", "runs"),
        arrow("125,84 125,118", "transformer(...)", 132, 106),
        arrow("240,230 240,288", "at the span's entry: Probe", 248, 264),
        box(60, 290, 300, 64, SEAM, "gate.should_run(step, probe)", "looks at the streams, or at none",
            "Decision(run, reason, difference)"),
        arrow("360,308 428,308", "run", 380, 302),
        box(430, 290, 210, 64, RUN, "the blocks run", "predictor.observe", "(step, exit - entry)"),
        arrow("330,354 330,400 428,400", "skip", 350, 394),
        box(430, 374, 210, 64, SKIP, "the blocks hand on", "the last one gives", "entry + predictor.predict(step)"),
        arrow("640,322 708,322"),
        arrow("640,406 674,406 674,340 708,340"),
        box(710, 290, 210, 64, SEAM, "gate.observe", "(step, probe, decision)", "only now it may remember"),
        arrow("815,354 815,398"),
        box(710, 400, 210, 38, PALE, "summary: one row"),
    ]  # fmt: skip
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="13" fill="{INK}">\n'
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("step.svg")
    target.write_text(picture(), encoding="utf-8")
