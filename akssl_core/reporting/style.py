"""The look of the report: one style sheet, light and dark, from 320 pixels up."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --text: #1c2330; --quiet: #5b6575; --line: #dfe3ea;
  --accent: #2f6fdb; --bar: #b9c3d3; --good: #17773f; --good-back: #e3f4e9; --bad: #b3261e; --bad-back: #fbe7e5;
  --open: #7a5600; --open-back: #fbf1d9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12151b; --card: #1b2029; --text: #e6e9ef; --quiet: #9aa5b5; --line: #313947;
    --accent: #7fb0ff; --bar: #4b5667; --good: #7fdca3; --good-back: #14301f; --bad: #ff9c94; --bad-back: #3a1a18;
    --open: #f0cd7c; --open-back: #33290f;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; font-size: 16px; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 12px; }
h3 { font-size: .95rem; margin: 0 0 6px; }
p { margin: 0 0 12px; max-width: 75ch; }
a { color: var(--accent); }
header { margin-bottom: 20px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px;
  margin-top: 16px; }
.quiet, caption, figcaption { color: var(--quiet); font-size: .875rem; }
.verdict { border-radius: 10px; padding: 14px 18px; margin: 14px 0 0; font-size: 1.1rem; font-weight: 600;
  max-width: none; }
.good { color: var(--good); background: var(--good-back); }
.bad { color: var(--bad); background: var(--bad-back); }
.open { color: var(--open); background: var(--open-back); }
nav { margin-top: 12px; display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: .9rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem; }
caption { text-align: left; padding-bottom: 8px; }
th, td { text-align: left; vertical-align: top; padding: 5px 18px 5px 0; border-bottom: 1px solid var(--line);
  overflow-wrap: break-word; }
th { font-weight: 500; }
thead th { color: var(--quiet); font-weight: 500; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
table.wide { width: 100%; }
section > .scroll + .scroll, section > ul + .scroll { margin-top: 16px; }
section > .scroll + ul { margin: 10px 0 12px; }
table.numbers td { white-space: nowrap; }
table.pictures { border-collapse: separate; border-spacing: 4px; }
table.pictures th, table.pictures td { border: 0; padding: 0 2px 2px 0; vertical-align: middle; }
table.pictures thead th { font-size: .8rem; }
table.pictures tbody th { font-size: .8rem; color: var(--quiet); padding-right: 8px; }
table.pictures img { display: block; width: 96px; height: 96px; border-radius: 4px; }
.coarse { image-rendering: pixelated; }
.mate { font-size: .75rem; text-align: center; white-space: nowrap; max-width: 96px; overflow: hidden;
  text-overflow: ellipsis; color: var(--quiet); }
.same img { outline: 3px solid var(--good); outline-offset: -3px; }
.same .mate { color: var(--good); }
.other img { outline: 3px dashed var(--bad); outline-offset: -3px; }
.other .mate { color: var(--bad); }
.bars { width: 100%; table-layout: auto; }
.bars td:nth-child(2) { text-align: right; white-space: nowrap; font-weight: 600; }
.bars th:nth-child(2) { text-align: right; }
.bars td:last-child { width: 60%; padding-right: 0; vertical-align: middle; }
.track { background: var(--page); border-radius: 4px; height: 14px; min-width: 80px; }
.fill { background: var(--bar); border-radius: 4px; height: 14px; min-width: 2px; }
.fill.own { background: var(--accent); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr)); gap: 18px 14px; }
figure { margin: 0; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--quiet); font-size: 12px; font-family: inherit; }
.grid { stroke: var(--line); }
.mark { stroke: var(--quiet); stroke-dasharray: 5 4; }
.curve { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
.dot { fill: var(--accent); }
.map { position: relative; width: 100%; aspect-ratio: 3 / 2; background: var(--page); border-radius: 8px; }
.point { position: absolute; width: 9px; height: 9px; margin: -4.5px 0 0 -4.5px; border-radius: 50%;
  background: hsl(var(--hue) 65% 50% / .8); }
.point.plain { background: var(--accent); opacity: .7; }
.point:hover, .point:focus { outline: 2px solid var(--text); z-index: 1; }
.point:hover::after, .point:focus::after { content: ""; position: absolute; left: 12px; bottom: 12px; width: 72px;
  height: 72px; border: 2px solid var(--text); border-radius: 4px; background-image: var(--sprite);
  background-size: calc(100% * var(--columns)) auto; background-position: var(--at); image-rendering: pixelated; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; margin-bottom: 10px; font-size: .85rem; }
.key::before { content: ""; display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 5px;
  background: hsl(var(--hue) 65% 50%); }
.runs { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; padding: 0; margin: 0 0 14px;
  font-size: .9rem; }
.runs svg { display: inline-block; width: 28px; height: 10px; margin-right: 8px; }
.series-0 { --own: #2f6fdb; } .series-1 { --own: #d1531f; } .series-2 { --own: #17843f; } .series-3 { --own: #9340c4; }
.series-4 { --own: #b8860b; } .series-5 { --own: #0e8f9c; } .series-6 { --own: #c2256b; } .series-7 { --own: #7a7f89; }
.dashed-1 .curve { stroke-dasharray: 7 3; } .dashed-2 .curve { stroke-dasharray: 2 3; }
.dashed-0 .curve { stroke-dasharray: 8 3 2 3; }
[class^="series-"] .curve { stroke: var(--own); } [class^="series-"] .dot { fill: var(--own); }
details { margin-top: 14px; }
summary { cursor: pointer; color: var(--accent); }
details > div { margin-top: 10px; }
pre { background: var(--page); border: 1px solid var(--line); border-radius: 8px; padding: 12px; margin: 0;
  overflow-x: auto; font-size: .85rem; }
code, .value { font-family: ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.value { font-size: .85rem; display: inline-block; min-width: 8ch; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: 16px 48px; margin-bottom: 16px; }
ul { margin: 0; padding-left: 20px; }
li { margin-bottom: 4px; overflow-wrap: anywhere; }
@media (max-width: 520px) {
  main { padding: 14px 10px 40px; }
  section { padding: 14px 12px; }
  th, td { padding-right: 12px; }
  .bars td:last-child { width: 35%; }
  .track { min-width: 56px; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  table.pictures img { width: 60px; height: 60px; }
  .mate { max-width: 60px; }
}
@media print { body { background: none; } section { break-inside: avoid; } }
"""
