"""How a page looks: one column of calm type, light and dark, from a phone's width up, on paper too."""

STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfb; --card: #ffffff; --ink: #1d1e20; --muted: #5b5f66; --line: #dcdde1;
  --bad: #b3261e; --good: #1b6e3c; --calm: #2f66a9; }
@media (prefers-color-scheme: dark) { :root { --paper: #141517; --card: #1b1c1f; --ink: #e9e9eb; --muted: #a3a7ae;
  --line: #383b41; --bad: #ff8a80; --good: #7bd88f; --calm: #8ab4f8; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; overflow-wrap: anywhere; background: var(--paper); color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
.over { margin: 0; color: var(--muted); font-size: .8125rem; letter-spacing: .02em; }
h1 { margin: .15rem 0 1.25rem; font-size: 1.75rem; line-height: 1.2; font-weight: 650; letter-spacing: -.01em; }
h2 { margin: 3rem 0 .35rem; font-size: 1.125rem; line-height: 1.3; font-weight: 650; }
p { margin: 0 0 .75rem; max-width: 44rem; } .note { color: var(--muted); font-size: .875rem; }
.verdict { border-left: .25rem solid var(--muted); padding: .1rem 0 .1rem 1rem; }
.verdict p:first-child { font-size: 1.25rem; line-height: 1.4; margin: 0; }
.verdict p + p { color: var(--muted); margin: .4rem 0 0; }
.verdict.found { border-color: var(--bad); } .verdict.good { border-color: var(--good); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .75rem 0 0; font-size: .9375rem; }
th, td { text-align: left; padding: .5rem .9rem .5rem 0; border-bottom: 1px solid var(--line); vertical-align: baseline; }
th { color: var(--muted); font-size: .8125rem; font-weight: 500; }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; } th:last-child, td:last-child { padding-right: 0; }
table.pairs { max-width: 40rem; }
.i { color: var(--muted); white-space: nowrap; font-size: .875em; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); column-gap: 2.5rem; }
figure { margin: 0; min-width: 0; } figure svg { display: block; width: 100%; max-width: 29rem; height: auto; margin: .5rem 0; }
svg * { stroke-linejoin: round; stroke-linecap: butt; } svg text { font-family: inherit; }
figcaption { color: var(--muted); font-size: .875rem; } figcaption strong { color: var(--ink); font-weight: 500; }
ol.rows { list-style: none; margin: .75rem 0 0; padding: 0; border-top: 1px solid var(--line); }
ol.rows li { padding: .7rem 0; border-bottom: 1px solid var(--line); }
ol.rows .meta { display: flex; flex-wrap: wrap; gap: 0 1.25rem; margin: 0 0 .15rem; color: var(--muted); font-size: .8125rem;
  font-variant-numeric: tabular-nums; }
ol.rows .text { margin: 0; max-width: none; font-size: .9375rem; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) minmax(0, 1fr); gap: .5rem 1.5rem; margin: .75rem 0 0;
  font-size: .9375rem; }
dt { color: var(--muted); } dd { margin: 0; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .8125rem; }
details { margin: 1.25rem 0 0; } .after { margin: 1rem 0 0; } summary { cursor: pointer; color: var(--muted); font-size: .875rem; }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .9rem;
  line-height: 1.45; }
.hide { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media (max-width: 40rem) {
  main { padding: 1.25rem 1rem 3rem; } h1 { font-size: 1.4375rem; } .verdict p:first-child { font-size: 1.125rem; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; } dd { margin-bottom: .75rem; } .i { display: block; }
  table.wide thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table.wide, table.wide tbody { display: block; width: 100%; }
  table.wide tr { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); column-gap: 1.5rem; padding: .6rem 0; border-bottom: 1px solid var(--line); }
  table.wide td { display: flex; justify-content: space-between; gap: 1rem; padding: .05rem 0; border: 0; text-align: right; }
  table.wide td::before { content: attr(data-head); color: var(--muted); text-align: left; flex: none; }
  table.wide td:first-child { grid-column: 1 / -1; display: block; text-align: left; font-weight: 500; }
  table.wide td:first-child::before { content: none; }
}
@media print { main { max-width: none; padding: 0; } figure, li, tr { break-inside: avoid; } }
"""
