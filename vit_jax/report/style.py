"""The style sheet of report.html."""

# Colours have a contrast of at least 4.5 to 1 on their ground, in light and in dark. Charts are
# drawn on white, so they keep a white card in the dark. On paper, boxes do not scroll.
CSS = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --text: #1c2024; --quiet: #5a636d; --line: #d5dae0; --box: #f4f6f8;
  --accent: #00578a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171a; --text: #e6e9ec; --quiet: #a3adb8; --line: #3a4149; --box: #1f2429;
    --accent: #7cc4f5;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--ground); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1, h2, h3 { line-height: 1.25; text-wrap: balance; overflow-wrap: anywhere; }
h1 { margin: 0 0 .5rem; font-size: 1.9rem; }
h2 { margin: 3rem 0 .75rem; font-size: 1.35rem; }
h3 { margin: 1.75rem 0 .5rem; font-size: 1.05rem; }
p, li, dd, figcaption { overflow-wrap: anywhere; }
p, ul { max-width: 46rem; margin: .75rem 0; text-wrap: pretty; }
ul { padding-left: 1.25rem; }
.quiet, figcaption { color: var(--quiet); font-size: .9rem; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { font-size: .9em; overflow-wrap: anywhere; }
pre { margin: .75rem 0; padding: .9rem 1rem; font-size: .85rem; line-height: 1.5; }
pre code { font-size: inherit; overflow-wrap: normal; }
.scroll { overflow-x: auto; margin: .75rem 0; }
.tall { width: fit-content; max-width: 100%; max-height: 36rem; overflow-y: auto; }
pre.scroll, .tall { background: var(--box); border: 1px solid var(--line); border-radius: .6rem; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; font-size: .95rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .8rem; text-align: left; vertical-align: top; }
tr > :first-child { padding-left: .2rem; }
.tall tr > :first-child { padding-left: .8rem; }
thead th { border-bottom: 2px solid var(--line); color: var(--quiet); font-weight: 600; }
tbody th { font-weight: 500; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.tall thead th { position: sticky; top: 0; background: var(--box); }
.number { text-align: right; }
.best > * { color: var(--accent); font-weight: 700; }
.facts th, .facts td { overflow-wrap: anywhere; }
.facts th { min-width: 8rem; color: var(--quiet); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .75rem; }
dl { margin: 1rem 0; }
dl > div {
  padding: .8rem 1rem; background: var(--box); border: 1px solid var(--line);
  border-radius: .6rem;
}
dt { color: var(--quiet); font-size: .85rem; }
dd { margin: .1rem 0 0; font-size: 1.2rem; font-weight: 600; line-height: 1.35; }
dd small { display: block; color: var(--quiet); font-size: .85rem; font-weight: 400; }
dl > .main { border-color: var(--accent); }
.main dd { font-size: 1.7rem; color: var(--accent); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.pair { gap: 0 1rem; }
figure { min-width: 0; margin: .75rem 0; }
figure .scroll { margin: 0 0 .5rem; padding: .5rem; background: #ffffff; }
figure .scroll { border: 1px solid var(--line); border-radius: .6rem; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
summary { cursor: pointer; color: var(--accent); }
@media (max-width: 30rem) {
  h1 { font-size: 1.5rem; }
  dl { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  table { font-size: .82rem; }
  th, td { padding: .4rem .32rem; }
  dl > .main { grid-column: 1 / -1; }
}
@media print {
  :root {
    color-scheme: light;
    --ground: #ffffff; --text: #000000; --quiet: #444444; --line: #bbbbbb; --box: #ffffff;
    --accent: #000000;
  }
  @page { margin: 15mm; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  h2 { margin-top: 1.5rem; }
  h2, h3 { break-after: avoid; }
  figure, tr, dl > div { break-inside: avoid; }
  .scroll, .tall { max-height: none; overflow: visible; }
  th, td { padding: .2rem .4rem; overflow-wrap: anywhere; }
  table { font-size: 8.5pt; }
  thead th, .tall thead th { position: static; }
  img { min-width: 0 !important; max-height: 200mm; object-fit: contain; }
  .pair { grid-template-columns: 1fr 1fr; }
  pre code { white-space: pre-wrap; overflow-wrap: anywhere; }
  details:not([open]) { display: none; }
}
"""
