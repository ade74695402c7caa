"""The style sheet of a report: dark and light, wide and narrow, screen and paper."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--card:#f6f7f9;--fg:#1b1f24;--dim:#57606a;--rule:#d0d7de;
--link:#0550ae;--loss:#0b5cad;--undone:#6a737d;--band:#0b5cad33;
--restart:#0a6a78;--rollback:#7a3db8;--incident:#9a4b00;--bad:#b3202a;--good:#17703a;--on:#fff;
--productive:#2c8a4b;--lost:#c6303a;--restoring:#b98900;--starting:#d1661b;--stalled:#7a3db8;
--unknown:#7d8590;--checkpointing:#2f6fd0;--queued:#a7b0ba}
@media screen and (prefers-color-scheme:dark){:root{
--bg:#0f1318;--card:#181d24;--fg:#e6e9ed;--dim:#a3adb8;--rule:#343c46;--link:#7db6ff;--loss:#6cb0ff;--undone:#9aa4af;--band:#6cb0ff33;--restart:#4cc3d3;
--rollback:#c79bf5;--incident:#f0a35a;--bad:#ff8087;--good:#63cf87;--on:#0f1318;
--productive:#46b36b;--lost:#f0636b;--restoring:#dcb13c;--starting:#f08a45;--stalled:#b98af0;
--unknown:#8b949e;--checkpointing:#6ba3f5;--queued:#59636e}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1040px;padding:24px 24px 48px;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
h1{font-size:26px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:19px;margin:36px 0 8px;padding-top:12px;border-top:1px solid var(--rule)}
h3{font-size:15px;margin:0}
p{margin:6px 0}a{color:var(--link)}
:focus-visible{outline:2px solid var(--link);outline-offset:2px}
.dim,figcaption,caption{color:var(--dim)}
.text{overflow-wrap:anywhere}
code,pre{font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--card);padding:10px 12px;
border-radius:6px;margin:6px 0;max-height:none}
nav{margin:8px 0 0}nav a{display:inline-block;margin-right:14px;padding:3px 0}
.state{display:inline-block;padding:1px 10px;border-radius:12px;border:1px solid currentColor;
font-size:14px;font-weight:600;vertical-align:middle}
.state.good,.good{color:var(--good)}.state.bad,.bad{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:8px;
margin:16px 0 0;padding:0}
.tiles div{background:var(--card);border-radius:8px;padding:8px 12px}
.tiles dt{color:var(--dim);font-size:13px}
.tiles dd{margin:0;font-size:18px;font-weight:600;overflow-wrap:anywhere}
figure{margin:8px 0}
svg{width:100%;height:auto;display:block}
svg text{font:12px system-ui,sans-serif;fill:var(--dim)}
svg .label{fill:var(--fg)}
svg.narrow{display:none}
.grid{stroke:var(--rule);stroke-width:.7}.axis{stroke:var(--dim)}
.loss{fill:none;stroke:var(--loss);stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}
.undone{fill:none;stroke:var(--undone);stroke-width:1.8;stroke-linecap:round;stroke-dasharray:3 3}
.band{fill:var(--band)}.save{stroke:var(--good);stroke-width:2;fill:none}
.nan{fill:var(--bad)}svg .nan-label{fill:var(--bad);font-weight:600}
.restart{--tone:var(--restart)}.rollback{--tone:var(--rollback)}.incident{--tone:var(--incident)}
.mark{stroke:var(--tone);stroke-width:1;stroke-dasharray:4 3}
.back{stroke:var(--tone);fill:none;stroke-width:1.5}
.badge{fill:var(--tone);stroke:var(--tone);stroke-width:1.5}
svg .in-badge{fill:var(--on);font-size:11px;font-weight:700}
.incident .badge{fill:var(--bg)}svg .incident .in-badge{fill:var(--tone)}
.number{display:inline-block;min-width:22px;height:22px;line-height:20px;text-align:center;
font-size:12px;font-weight:700;border-radius:11px;border:1.5px solid var(--tone);margin-right:6px;
padding:0 4px;background:var(--tone);color:var(--on)}
.rollback .number{border-radius:3px}.incident .number{background:none;color:var(--tone)}
.key{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px;color:var(--dim);margin:4px 0 0;
padding:0;list-style:none}
.swatch{display:inline-block;width:12px;height:12px;border-radius:2px;margin-right:6px;
vertical-align:-1px;background:var(--of)}
.bar{display:flex;height:26px;border-radius:5px;overflow:hidden;background:var(--card);gap:1px}
.bar span{background:var(--of);min-width:1px}
.bar.small{height:10px;border-radius:3px;min-width:90px}
.track{position:relative;height:12px;background:var(--card);border-radius:3px;min-width:120px}
.track span{position:absolute;top:0;bottom:0;background:var(--of);border-right:1px solid var(--bg)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px;margin:8px 0}
caption{text-align:left;padding:2px 0}
th,td{text-align:left;vertical-align:top;padding:6px 10px 6px 0;border-bottom:1px solid var(--rule)}
th{color:var(--dim);font-weight:600;font-size:13px}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tr.sum td,tr.sum th{font-weight:700;border-bottom:0;color:var(--fg)}
article{background:var(--card);border-radius:8px;padding:10px 14px;margin:8px 0;
break-inside:avoid}
article dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 14px;margin:6px 0 0}
article dt{color:var(--dim)}article dd{margin:0;overflow-wrap:anywhere}
summary{cursor:pointer;padding:4px 0;color:var(--link)}
footer{margin-top:40px;padding-top:12px;border-top:1px solid var(--rule);color:var(--dim);
font-size:13px}
@media (max-width:640px){body{padding:14px 14px 32px}h1{font-size:22px}
svg.wide{display:none}svg.narrow{display:block}
.tiles{grid-template-columns:1fr 1fr}
nav a{padding:9px 0}
table.cards,table.cards tbody,table.cards tr,table.cards td,table.cards th,
table.cards caption{display:block}
table.cards thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
table.cards tr{border-bottom:1px solid var(--rule);padding:8px 0}
table.cards td,table.cards tbody th{border:0;padding:1px 0;text-align:left;white-space:normal}
table.cards td.n{display:inline-block;margin-right:14px}
table.cards td[data-label]::before{content:attr(data-label) ": ";color:var(--dim)}
article dl{gap:2px 10px}}
@media print{:root{color-scheme:light}body{max-width:none;padding:0;font-size:11pt}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}nav{display:none}
h2{break-after:avoid}tr,figure{break-inside:avoid}a{color:inherit;text-decoration:none}
svg.wide{display:block}svg.narrow{display:none}.scroll{overflow:visible}
details::details-content{content-visibility:visible;block-size:auto}}
"""
