// Opens pages of the built book in Chromium: light, dark and 375 px wide. Called by audit.py.
//   node audit.js SITE SHOTS CHROMIUM page.html ...
// Fails on raw TeX, MathJax errors, requests to another host, missing files, console errors,
// pages wider than the screen, images without a real alt text, and axe violations (WCAG 2.1 A, AA).
const fs = require('fs');
const http = require('http');
const path = require('path');
const {chromium} = require('playwright-core');
const axe = fs.readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');

const [site, shots, executablePath, ...pages] = process.argv.slice(2);
const VIEWS = [
  {name: 'light', viewport: {width: 1280, height: 900}, colorScheme: 'light'},
  {name: 'dark', viewport: {width: 1280, height: 900}, colorScheme: 'dark'},
  {name: 'phone', viewport: {width: 375, height: 740}, colorScheme: 'light'},
];
const TYPES = {
  '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.json': 'application/json',
  '.svg': 'image/svg+xml', '.png': 'image/png', '.woff': 'font/woff', '.woff2': 'font/woff2',
};
// background-networking and the like: a browser that calls home is not the page's request
const FLAGS = ['--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
  '--disable-background-networking', '--disable-component-update',
  ...(process.getuid && process.getuid() === 0 ? ['--no-sandbox'] : [])];

const server = http.createServer((request, response) => {
  const file = path.join(site, decodeURIComponent(request.url.split('?')[0]));
  fs.readFile(file, (error, data) => {
    if (error) { response.writeHead(404); response.end(); return; }
    response.writeHead(200, {'Content-Type': TYPES[path.extname(file)] || 'application/octet-stream'});
    response.end(data);
  });
});

// Runs in the page.
function look() {
  const article = document.querySelector('article') || document.querySelector('main') || document.body;
  const raw = [];
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (parent.closest('pre, code, script, style, mjx-container')) continue;
    if (/\\\(|\\\[|\\begin\{|\$\$/.test(walker.currentNode.data)) {
      raw.push(walker.currentNode.data.trim().slice(0, 60));
    }
  }
  const untypeset = [...document.querySelectorAll('.math')]
    .filter((e) => !e.querySelector('mjx-container')).map((e) => e.textContent.slice(0, 60));
  const errors = [...document.querySelectorAll('mjx-merror, [data-mjx-error]')]
    .map((e) => e.getAttribute('data-mjx-error') || e.textContent.slice(0, 60));
  const images = [...article.querySelectorAll('img')].filter((e) => {
    const alt = (e.getAttribute('alt') || '').trim();
    const file = /[0-9a-f]{16,}/.test(alt) || /\.(png|svg|jpe?g|gif)$/i.test(alt);
    return !alt || file;
  }).map((e) => `${e.getAttribute('src')} alt="${e.getAttribute('alt') || ''}"`);
  const wide = document.documentElement.scrollWidth - window.innerWidth;
  return {
    raw, untypeset, errors, images, wide: wide > 0 ? [`${wide} px`] : [],
    formulas: document.querySelectorAll('mjx-container').length,
    theme: document.documentElement.dataset.theme,
  };
}

async function visit(browser, base, page, view) {
  const context = await browser.newContext(view);
  const tab = await context.newPage();
  const external = new Set(), missing = new Set(), complaints = [];
  await tab.route('**/*', (route) => {
    const url = route.request().url();
    if (url.startsWith(base) || url.startsWith('data:') || url.startsWith('blob:')) return route.continue();
    external.add(url);
    return route.abort();
  });
  tab.on('response', (r) => { if (r.status() >= 400) missing.add(`${r.status()} ${r.url().slice(base.length)}`); });
  tab.on('console', (m) => { if (m.type() === 'error') complaints.push(m.text().slice(0, 160)); });
  tab.on('pageerror', (e) => complaints.push(`exception: ${e.message.slice(0, 160)}`));
  await tab.goto(base + page, {waitUntil: 'load'});
  await tab.evaluate(async () => {
    if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
    await document.fonts.ready;
    for (const e of document.querySelectorAll('img')) e.loading = 'eager';
    await Promise.all([...document.images].map((e) => e.decode().catch(() => {})));
  });
  const seen = await tab.evaluate(look);
  await tab.screenshot({path: path.join(shots, `${page.replace(/\.html$/, '').replace(/\W+/g, '_')}-${view.name}.png`), fullPage: true});
  await tab.addScriptTag({content: axe});
  const violations = await tab.evaluate(async () => {
    const result = await axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']});
    return result.violations.map((v) => `${v.id} (${v.impact}) x${v.nodes.length}: ` +
      v.nodes.slice(0, 3).map((n) => n.target.join(' ')).join(' | ').slice(0, 200));
  });
  await context.close();
  const theme = view.colorScheme === seen.theme ? [] : [`data-theme is ${seen.theme}`];
  const findings = {
    'raw TeX': seen.raw, 'formula not typeset': seen.untypeset, 'MathJax error': seen.errors,
    'alt text': seen.images, 'wider than the screen': seen.wide, 'theme': theme,
    'request to another host': [...external], 'missing file': [...missing],
    'console error': complaints, 'axe': violations,
  };
  let bad = 0;
  for (const [kind, list] of Object.entries(findings)) {
    for (const what of new Set(list)) { bad += 1; console.log(`  ${page} [${view.name}] ${kind}: ${what}`); }
  }
  console.log(`${bad ? 'FAILED' : 'ok    '} ${page} [${view.name}], ${seen.formulas} formulas`);
  return bad;
}

(async () => {
  fs.mkdirSync(shots, {recursive: true});
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const base = `http://127.0.0.1:${server.address().port}/`;
  const browser = await chromium.launch({executablePath, args: FLAGS});
  let passed = 0, failed = 0;
  for (const page of pages) {
    for (const view of VIEWS) {
      if (await visit(browser, base, page, view)) failed += 1; else passed += 1;
    }
  }
  await browser.close();
  server.close();
  console.log(`audit: ${passed} passed, ${failed} failed`);
  process.exit(failed || !passed ? 1 : 0);
})().catch((error) => { console.error(error); process.exit(2); });
