"""The style sheet of the report: one set of names for the colours, light and dark values for each."""

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #fbfaf8; --surface: #ffffff; --ink: #1d2127; --muted: #5b636e; --grid: #e3e1dc;
  --baseline: #6b7685; --dmao: #0b7a75; --event: #a8550a;
  --level0: #8f3d08; --level1: #dd8a45; --level2: #f4cfa9; --level3: #eceae5;
  --level4: #b5dfda; --level5: #4fb3ab; --level6: #0a625e;
  --level-ink0: #ffffff; --level-ink1: #241405; --level-ink2: #3b2206; --level-ink3: #4c525a;
  --level-ink4: #08312f; --level-ink5: #04211f; --level-ink6: #ffffff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --surface: #1b1f24; --ink: #e8eaed; --muted: #a3abb5; --grid: #32383f;
    --baseline: #9aa5b4; --dmao: #4cc2b8; --event: #e79a52;
    --level0: #f0a45e; --level1: #b26425; --level2: #6a4320; --level3: #2b3036;
    --level4: #1c4d4a; --level5: #25837c; --level6: #6fd8cd;
    --level-ink0: #231303; --level-ink1: #ffffff; --level-ink2: #fbe6d0; --level-ink3: #b4bbc4;
    --level-ink4: #d4f1ee; --level-ink5: #ffffff; --level-ink6: #05211f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; padding: 2.5rem clamp(1rem, 4vw, 3rem) 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, "DejaVu Sans", sans-serif;
}
header, main { max-width: 62rem; margin: 0 auto; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 0 0 .9rem; }
h3 { font-size: 1rem; margin: 0 0 .2rem; }
p { margin: 0 0 .8rem; max-width: 46rem; }
header p, figcaption, .absent { color: var(--muted); }
section {
  margin-top: 1.5rem; padding: 1.4rem 1.6rem 1.2rem; background: var(--surface);
  border: 1px solid var(--grid); border-radius: 10px;
}
section > :last-child { margin-bottom: .2rem; }
figure { margin: 0; }
figure svg { display: block; width: 100%; min-width: 40rem; height: auto; }
figcaption { margin-top: .6rem; font-size: .9rem; max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-bottom: .9rem; }
th, td { padding: .38rem 0; padding-left: 2.2rem; text-align: right; border-bottom: 1px solid var(--grid); }
tbody th { text-align: left; font-weight: 400; padding-left: 0; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-weight: 600; }
thead th:last-child, td:last-child { color: var(--muted); font-weight: 400; }
th.baseline { color: var(--baseline); }
th.dmao { color: var(--dmao); }
.legend {
  display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; list-style: none; margin: .8rem 0 0; padding: 0;
  font-size: .9rem;
}
.key {
  display: inline-block; width: 1em; height: 1em; margin-right: .45em; vertical-align: -.12em;
  border-radius: 3px;
}
.level0 { background: var(--level0); }
.level1 { background: var(--level1); }
.level2 { background: var(--level2); }
.level3 { background: var(--level3); }
.level4 { background: var(--level4); }
.level5 { background: var(--level5); }
.level6 { background: var(--level6); }
article + article { margin-top: 1.1rem; padding-top: 1.1rem; border-top: 1px solid var(--grid); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.1rem; margin: 0; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
code { font: .88em ui-monospace, "DejaVu Sans Mono", monospace; }
ul.absent { margin: 0; padding-left: 1.2rem; }
@media print { section { break-inside: avoid; } }
"""
