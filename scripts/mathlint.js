// Typesets formulas with the MathJax that the book ships, in node, without a browser.
// stdin: {"mathjax": folder, "tex": the book's own tex settings, "formulas": [{where, tex, display}]}
// stdout: one line a formula that does not typeset; the exit code is 1 if there is one.
const path = require('path');
const {mathjax, tex, formulas} = JSON.parse(require('fs').readFileSync(0, 'utf8'));
const load = ['input/tex-full', 'adaptors/liteDOM', 'output/svg'];
// `noundefined` paints an unknown macro red without an error, `noerrors` shows its source: neither.
const removed = [...new Set([...((tex.packages || {})['[-]'] || []), 'noundefined', 'noerrors'])];
const packages = {...tex.packages, '[-]': removed};
require(path.join(mathjax, 'node-main.js')).init({loader: {load, versionWarnings: false}, tex: {...tex, packages}}).then((MathJax) => {
  let bad = 0;
  for (const {where, tex, display} of formulas) {
    let error = null;
    try {
      const svg = MathJax.startup.adaptor.outerHTML(MathJax.tex2svg(tex, {display}));
      const found = svg.match(/data-mjx-error="([^"]*)"/) || svg.match(/data-mml-node="(merror)"/);
      error = found && found[1];
    } catch (e) {
      error = e.message;
    }
    if (error) {
      bad += 1;
      console.log(`${where}: ${error}: ${tex.slice(0, 100)}`);
    }
  }
  console.log(`${formulas.length} formulas, ${bad} errors`);
  process.exitCode = bad ? 1 : 0;
}).catch((e) => { console.error(e); process.exitCode = 2; });
