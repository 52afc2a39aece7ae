"""How a page looks: one palette in two schemes, and the style sheet that uses it.

`PALETTE` maps a colour's name to (light, dark). Figures are drawn in the light one; `drawing`
replaces each by its variable, so every value of the light column must be a colour of its own.
"""

from __future__ import annotations

from probgen.views.palette import PALETTE


def _variables(scheme: int) -> str:
    return " ".join(f"--{name}: {pair[scheme]};" for name, pair in PALETTE.items())


CSS = (
    f":root {{ {_variables(0)} --digits: none; }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(1)} --digits: invert(1); }} }}\n"
    """
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 0 16px 64px; max-width: 940px;
  background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  overflow-wrap: break-word;
}
header { padding: 40px 0 8px; }
h1 { font-size: clamp(1.55rem, 1.2rem + 1.9vw, 2.3rem); line-height: 1.18; margin: 0 0 12px;
  letter-spacing: -0.015em; text-wrap: balance; }
h2 { font-size: 1.28rem; line-height: 1.25; margin: 0 0 8px; letter-spacing: -0.005em; }
p { margin: 0 0 12px; max-width: 68ch; }
.lead { font-size: 1.08rem; color: var(--muted); }
.small { font-size: .88rem; color: var(--muted); }
a { color: var(--blue); }
nav { display: flex; flex-wrap: wrap; gap: 6px 16px; font-size: .9rem; padding-top: 4px; }
nav a { text-decoration: none; padding: 4px 0; }
nav a:hover { text-decoration: underline; }
section { border-top: 1px solid var(--line); padding-top: 24px; margin-top: 32px; }
code, pre { font: .92em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
:not(pre) > code { background: var(--card); padding: .1em .3em; border-radius: 4px; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin: 0;
  padding: 12px 14px; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: break-word; }
.blocks { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr));
  gap: 20px 28px; align-items: start; }
.blocks > * { min-width: 0; }
.blocks > .wide, .blocks > p { grid-column: 1 / -1; }
.blocks > p { margin: 0; }
figure { margin: 0; }
figcaption { color: var(--muted); font-size: .88rem; line-height: 1.45; margin-top: 8px;
  max-width: 68ch; }
.drawing svg { display: block; width: 100%; height: auto; max-width: 520px; }
.drawing svg * { stroke-linejoin: round; stroke-linecap: butt; }
.wide .drawing svg { max-width: 100%; margin: 0 auto; }
.formula { color: var(--ink); }
figure.formula > div { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 14px 16px; }
.formula .line + .line { margin-top: 10px; }
svg.formula { display: block; max-width: 100%; height: auto; }
dl.tiles { display: grid; margin: 0; gap: 1px; background: var(--line); overflow: hidden;
  border: 1px solid var(--line); border-radius: 10px;
  grid-template-columns: repeat(12, 1fr); }
.tile { background: var(--card); padding: 12px 14px; grid-column: span 3; }
.tile.main { padding: 16px 14px; grid-column: span 6; }
.tile dt { color: var(--muted); font-size: .84rem; }
.tile dd { margin: 2px 0 0; }
.tile .value { font-size: 1.06rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile.main .value { font-size: clamp(1.5rem, 1.2rem + 1.4vw, 2rem); letter-spacing: -0.01em;
  white-space: nowrap; }
.tile .unit { color: var(--muted); font-size: .88rem; }
.tile .note { color: var(--muted); font-size: .84rem; line-height: 1.4; margin-top: 2px; }
@media (max-width: 700px) { .tile { grid-column: span 6; } .tile.main { grid-column: span 12; } }
.strips { display: grid; gap: 3px; max-width: 720px; }
.strips.labelled { grid-template-columns: max-content 1fr; column-gap: 10px; }
.strips img { display: block; width: 100%; height: auto; image-rendering: pixelated; }
.strips.ink { border: 1px solid var(--line); border-radius: 8px; padding: 8px;
  background: #fff; }
.strips.ink, .strips.ink .label { filter: none; }
.strips .label { color: var(--muted); font-size: .8rem; line-height: 1.2; align-self: center;
  font-variant-numeric: tabular-nums; }
.strips.ink img { filter: var(--digits); }
@media (prefers-color-scheme: dark) { .strips.ink { background: #000; } }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
caption { text-align: left; color: var(--muted); font-size: .88rem; padding-bottom: 6px; }
th, td { text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th { color: var(--muted); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 500; }
td .column { display: none; }
@media (max-width: 560px) {
  .many thead { position: absolute; width: 1px; height: 1px; overflow: hidden;
    clip-path: inset(50%); }
  .many table, .many tbody, .many tr, .many th, .many td { display: block; }
  .many caption { display: block; }
  .many tr { padding: 8px 0; border-bottom: 1px solid var(--line); }
  .many tbody th, .many td { padding: 2px 0; border: 0; }
  .many tbody th { font-weight: 600; }
  .many td, .many td.number { display: flex; gap: 12px; text-align: left; }
  .many td > span { flex: 1 1 60%; min-width: 0; overflow-wrap: anywhere; }
  .many td > .column { display: block; flex: 0 0 36%; color: var(--muted); }
}
.number { text-align: right; font-variant-numeric: tabular-nums; }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
@media print { nav { display: none; } section { break-inside: avoid; } }
"""
)
