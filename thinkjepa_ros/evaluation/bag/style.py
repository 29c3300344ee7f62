"""The looks of a report: readable on a desk and on a phone, by day and by night. Colours of rows have one place."""

from __future__ import annotations

#: Rows that have a colour of their own, in every chart and table (docs use the same: blue guided, red unguided).
ROW_CLASSES = {
    "guided": "guided",
    "unguided": "unguided",
    "hold": "hold",
    "constant velocity": "velocity",
    "damped velocity": "damped",
    "ridge on past joints": "ridge",
}
#: Colours of what has no row name: a series of another kind takes the next.
OTHERS = ("ridge", "velocity", "damped", "hold")

STYLE = """
:root { --ink: #1b1f27; --soft: #5b6472; --line: #d9dee6; --back: #ffffff; --card: #f5f7fa; --good: #19713b;
  --bad: #b3261e; --guided: #1f6fd1; --unguided: #d1432b; --hold: #6b7280; --velocity: #8a63b8; --damped: #b7791f;
  --ridge: #1f8f8a; --event: #d1432b22; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #a2abb9; --line: #353c48; --back: #14171d; --card: #1d2129; --good: #6fd08c;
    --bad: #ff8a7d; --guided: #6aaeff; --unguided: #ff8b73; --hold: #a5adba; --velocity: #bfa1ea; --damped: #e3b45f;
    --ridge: #57c9c3; --event: #ff8b7333; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--back); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 16px 16px 48px; overflow-wrap: anywhere; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 12px 0 4px; }
h2 { font-size: 1.2rem; margin: 36px 0 8px; padding-top: 12px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 20px 0 4px; }
p { margin: 6px 0; max-width: 78ch; }
.lead { font-size: 1.12rem; }
.soft, .caption, figcaption { color: var(--soft); font-size: .9rem; }
.caption { margin: 14px 0 4px; }
.table { margin: 10px 0; }
.bad { color: var(--bad); }
.good { color: var(--good); }
.alarm { color: var(--back); background: var(--bad); border-radius: 4px; padding: 1px 8px; font-weight: 700; }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .85rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 10px; margin: 6px 0;
  white-space: pre-wrap; }
bdi { unicode-bidi: isolate; }
a { color: var(--guided); }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 280px), 1fr)); gap: 8px 20px;
  margin: 12px 0; }
.facts dt { color: var(--soft); font-size: .82rem; }
.facts dd { margin: 0; }
.whole { grid-template-columns: 1fr; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; overflow-wrap: normal; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: 6px 10px; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; background: var(--card); white-space: normal; }
th:first-child { text-align: left; font-weight: 600; position: sticky; left: 0; background: var(--back); }
thead th:first-child { background: var(--card); }
td small { display: block; color: var(--soft); font-size: .78rem; }
td > bdi { display: inline-block; white-space: normal; text-align: left; min-width: 24ch; max-width: 70ch; }
.charts { columns: 2 380px; column-gap: 28px; }
.charts > figure { break-inside: avoid; margin-top: 0; padding-top: 8px; }
figure { margin: 12px 0; }
figure h3 { margin: 0 0 2px; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, "DejaVu Sans", sans-serif; }
svg text.value { fill: var(--ink); }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .wanted { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 5 4; fill: none; }
svg .curve { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
svg .thin { stroke-width: 1.3; }
svg .mark { stroke: currentColor; stroke-width: 3; }
svg .whisker { stroke: var(--ink); stroke-width: 1.2; }
svg .fill { fill: currentColor; }
svg .event { fill: var(--event); }
.key { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: .88rem; margin: 4px 0; padding: 0; list-style: none; }
.key li::before { content: ""; display: inline-block; width: 18px; height: 4px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; background: currentColor; }
.key li span { color: var(--ink); }
.key li.wanted { color: var(--soft); }
.narrow { display: none; }
.guided { color: var(--guided); } .unguided { color: var(--unguided); } .hold { color: var(--hold); }
.velocity { color: var(--velocity); } .damped { color: var(--damped); } .ridge { color: var(--ridge); }
.predicted { color: #e07b00; } .true { color: #2fae55; } .baseline { color: #8d949f; } .now { color: #c9ced6; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 12px; }
.strip figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  overflow: hidden; }
.strip img { display: block; width: 100%; height: auto; }
.strip figcaption { padding: 8px 10px; }
.strip figcaption b { color: var(--ink); }
details { margin: 10px 0; }
summary { cursor: pointer; padding: 6px 0; font-weight: 600; }
@media (max-width: 640px) {
  body { font-size: 15px; }
  main { padding: 8px 12px 40px; }
  h1 { font-size: 1.3rem; }
  th, td { padding: 6px 8px; }
  .facts { grid-template-columns: 1fr 1fr; gap: 6px 12px; }
  .facts.whole { grid-template-columns: 1fr; }
  tbody th { white-space: normal; min-width: 84px; }
  .strip { grid-auto-flow: column; grid-template-columns: none; grid-auto-columns: 88%; overflow-x: auto;
    scroll-snap-type: x proximity; padding-bottom: 8px; }
  .strip figure { scroll-snap-align: start; }
  .wide { display: none; }
  .narrow { display: block; } }
@media print { .scroll { overflow: visible; } details > * { display: block; } }
"""
