"""How a report looks, on screens and on paper: a style sheet without fonts or pictures from elsewhere."""

STYLE = """
:root { color-scheme: light dark; --paper: #faf8f5; --card: #ffffff; --ink: #21242a; --soft: #666b73;
  --rule: #e5e0d8; --copper: #a9502a; --teal: #20788a; --warn: #a3262a; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --card: #1e2125; --ink: #e9e6e1; --soft: #9a9fa8;
  --rule: #33373d; --copper: #e39063; --teal: #63bccb; --warn: #ef8a86; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 28px 64px; }
h1 { font-size: 2.1rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 12px; padding-top: 14px; border-top: 2px solid var(--copper); }
section { margin-top: 40px; }
p { margin: 0 0 8px; overflow-wrap: anywhere; }
a { color: var(--copper); }
.title { font-size: 1.12rem; }
.muted { color: var(--soft); }
.warn { color: var(--warn); }
.status { display: inline-block; padding: 1px 10px; margin-right: 4px; border-radius: 12px; font-size: 0.92rem;
  border: 1px solid var(--copper); color: var(--copper); }
.facts { display: flex; flex-wrap: wrap; gap: 10px 36px; margin: 20px 0 0; }
dt { color: var(--soft); font-size: 0.82rem; }
dd { margin: 0; font-size: 1.06rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin-bottom: 12px; }
table { border-collapse: collapse; font-size: 0.94rem; }
th, td { padding: 5px 26px 5px 0; text-align: left; border-bottom: 1px solid var(--rule); vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; font-size: 0.86rem; }
tbody th { font-weight: 400; }
.numbers th + th, .numbers td { text-align: right; padding: 5px 0 5px 34px; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.numbers td:nth-child(2) { font-weight: 600; }
code { font: 0.9em/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
.all { columns: 2 380px; column-gap: 48px; margin: 0 0 16px; }
.all div { display: flex; gap: 16px; justify-content: space-between; padding: 3px 0; break-inside: avoid;
  border-bottom: 1px solid var(--rule); }
.all dt, .all dd { font-size: 0.94rem; overflow-wrap: anywhere; }
.all dd { text-align: right; }
.all dt code { color: var(--soft); }
.all .changed code { color: var(--copper); font-weight: 600; }
figure { margin: 0; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px;
  border: 1px solid var(--rule); }
.result { display: flex; flex-wrap: wrap; gap: 16px 48px; align-items: flex-start; }
.result > * { min-width: 0; }
.result > .picture { flex: 1 1 420px; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); gap: 18px 14px; }
.strip img { width: 100%; }
figcaption { font-size: 0.88rem; margin-top: 5px; font-variant-numeric: tabular-nums; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 16px; }
.panel { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 12px 8px; }
.panel figcaption { display: flex; justify-content: space-between; gap: 12px; margin: 0 0 4px; }
svg { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid, .axis, .border { fill: none; stroke: var(--rule); }
.axis { stroke: var(--soft); }
.border { stroke: var(--soft); stroke-dasharray: 3 3; }
.line { fill: none; stroke: var(--copper); stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round; }
.band { fill: var(--copper); opacity: 0.2; }
.norms .line { stroke: var(--teal); }
.norms .band { fill: var(--teal); }
@media (max-width: 600px) { main { padding: 24px 16px 40px; } h1 { font-size: 1.6rem; }
  .strip { grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); }
  th, td { padding-right: 14px; } .numbers th + th, .numbers td { padding-left: 18px; } }
@page { margin: 16mm 14mm; }
@media print { :root { --paper: #fff; --card: #fff; --ink: #000; --soft: #555; --rule: #ccc; --copper: #a9502a;
  --teal: #20788a; } body { font-size: 12px; } main { max-width: none; padding: 0; } section { margin-top: 24px; }
  .panel, .picture, tr { break-inside: avoid; } h2, section > p { break-after: avoid; }
  .result > .picture { flex-basis: 300px; } .strip { grid-template-columns: repeat(5, 1fr); }
  .panels { grid-template-columns: repeat(3, 1fr); } .all { columns: 2; } }
"""
