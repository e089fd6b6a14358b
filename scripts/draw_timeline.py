"""Draw docs/timeline.svg from a heal: make demo | python -m scripts.draw_timeline."""

from __future__ import annotations

import re
import sys
from html import escape

from scripts.say import ROOT

COLOURS = {
    "FAULT": "#d1242f",
    "CHECK": "#bf8700",
    "UNHEALTHY": "#d1242f",
    "HEAL": "#8250df",
    "START": "#0969da",
    "HEALTHY": "#1a7f37",
    "SERVED": "#1a7f37",
}
WORDS = {
    "FAULT": ("the model’s process is frozen", "/api/version and /api/tags still return 200"),
    "CHECK": ("the probe: stalled", "one check is certain"),
    "UNHEALTHY": ("Docker: unhealthy", "sent as an event"),
    "HEAL": ("autoheal: ends the stuck process", "triggered by the event, not by polling"),
    "START": ("the container runs again", ""),
    "HEALTHY": ("Docker: healthy", "the health check passes"),
    "SERVED": ("a user who waited is answered", "other models never stopped"),
}
ROW, WIDTH = 62, 640


def main() -> None:
    rows = re.findall(r"^\s+([\d.]+) s\s+([A-Z]+)\s", sys.stdin.read(), re.M)
    height = ROW * len(rows) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="system-ui, sans-serif">',
        "<title>A frozen model is detected and healed: seconds since the fault</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="12" fill="#ffffff" stroke="#d0d7de"/>',
        f'<line x1="150" y1="45" x2="150" y2="{height - 55}" stroke="#d0d7de" stroke-width="4"/>',
    ]
    for i, (seconds, what) in enumerate(rows):
        y = 45 + ROW * i
        title, detail = map(escape, WORDS[what])
        parts += [
            f'<text x="130" y="{y + 8}" text-anchor="end" font-size="24" fill="#1f2328" '
            f'font-variant-numeric="tabular-nums">{seconds} s</text>',
            f'<circle cx="150" cy="{y}" r="11" fill="{COLOURS[what]}"/>',
            f'<text x="180" y="{y + 3}" font-size="24" font-weight="600" fill="{COLOURS[what]}">'
            f"{title}</text>",
            f'<text x="180" y="{y + 27}" font-size="19" fill="#59636e">{detail}</text>',
        ]
    target = ROOT / "docs/timeline.svg"
    target.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
