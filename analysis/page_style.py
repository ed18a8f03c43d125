"""The style sheet of the report: light and dark as the reader's system is set, from 320 pixels on."""

from __future__ import annotations

STYLE_SHEET = """
:root { color-scheme: light dark; --ground: #ffffff; --text: #1b1f24; --faint: #57606a; --line: #d0d7de;
  --panel: #f6f8fa; --accent: #0550ae; --mark: #fff4d6; }
@media (prefers-color-scheme: dark) { :root { --ground: #0f1318; --text: #e6edf3; --faint: #a3adb8; --line: #3b434c;
  --panel: #181d24; --accent: #7cb7ff; --mark: #3a3216; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--text); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif; }
header, main, nav, footer { max-width: 72rem; margin: 0 auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; line-height: 1.25; overflow-wrap: anywhere; margin: 1.2rem 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.08rem; margin: 1.6rem 0 .4rem; }
p, li, dd { overflow-wrap: anywhere; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.skip { position: absolute; left: -100rem; }
.skip:focus { left: 1rem; top: .5rem; background: var(--ground); padding: .5rem 1rem; z-index: 1; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; margin: .6rem 0; list-style: none; }
.lead { font-size: 1.1rem; }
.big { font-size: 2rem; font-weight: 650; line-height: 1.2; margin: .3rem 0; }
.faint { color: var(--faint); font-size: .92rem; }
.advice { padding: 0; list-style: none; }
.advice li { background: var(--mark); border-left: 4px solid #d9a400; border-radius: 4px; padding: .6rem .8rem;
  margin: .6rem 0; }
code { font-size: .92em; }
figure { margin: 0; }
figcaption { margin: .4rem 0; }
.scroll { overflow-x: auto; max-width: 100%; }
.scroll img { display: block; width: 100%; height: auto; background: #ffffff;
  border-radius: 6px; border: 1px solid var(--line); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
caption { text-align: left; color: var(--faint); padding: .3rem 0; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
.short { white-space: nowrap; }
td.long { min-width: 24rem; }
details { margin: .4rem 0 1rem; }
summary { cursor: pointer; color: var(--accent); padding: .2rem 0; }
footer { margin-top: 3rem; padding-bottom: 2rem; border-top: 1px solid var(--line); }
@media print { nav, .skip { display: none; } .scroll { overflow: visible; } .scroll img { min-width: 0 !important; } }
"""
