// node check.mjs PAGE_DIR EXPECTED.json SHOT_DIR: opens the page in headless Chromium, once with WebGPU (SwiftShader) and once without, and compares
// its numbers with those of the native CPU path (tests/browser.rs). Exit 1 when one is off, when the first result takes longer than 5 s, or when a
// number wrong on purpose passes. Screenshots go to SHOT_DIR.
import { chromium } from 'playwright-core';
import http from 'node:http';
import { readFile } from 'node:fs/promises';
import path from 'node:path';

const [root, expected_file, shots] = process.argv.slice(2);
const expected = JSON.parse(await readFile(expected_file, 'utf8'));
const FIRST_RESULT = 5000;

// Each check gives what is wrong, in words. `within` fails for NaN (null in JSON) and for what is not there.
const within = (what, found, wanted, tolerance) =>
  typeof found === 'number' && Math.abs(found - wanted) <= tolerance ? [] : [`${what} is ${found}, expected ${wanted} within ${tolerance}`];
const same = (what, found, wanted) => {
  if (!Array.isArray(found) || found.length !== wanted.length) return [`${what} has ${found?.length} elements, expected ${wanted.length}`];
  const at = wanted.findIndex((value, i) => found[i] !== value);
  return at < 0 ? [] : [`${what}[${at}] is ${found[at]}, expected ${wanted[at]}`];
};

function bessel(found, wanted) {
  return wanted.functions.flatMap((function_, i) => {
    const { name, largest_error_eps, samples } = found.functions[i];
    return [
      // The library's bound for f32 is 8 eps (3 are measured); two values within it are within 16 of each other.
      ...(name === function_.name && largest_error_eps <= 8 ? [] : [`${name}: the largest error is ${largest_error_eps} eps, expected at most 8`]),
      ...function_.samples.flatMap(([v, x, value], j) => within(`${name}(${v}, ${x})`, samples[j]?.[2], value, 16 * 2 ** -23 * Math.max(Math.abs(value), Math.hypot(v, x)))),
    ];
  });
}

// Integers, and thresholds that are medians of the same f16: nothing rounds differently.
function emoji(found, wanted) {
  const row = found.shown?.row;
  const of = (list) => list.slice(row * wanted.nearest, (row + 1) * wanted.nearest);
  return [
    ...same('ids', found.ids, wanted.ids),
    ...same('distances', found.distances, wanted.distances),
    ...same('the ids shown', found.shown?.ids, of(wanted.ids)),
    ...same('the distances shown', found.shown?.distances, of(wanted.distances)),
    ...within('recall at 1', found.recall_at_1, wanted.recall_at_1, 0),
    ...within('recall at 10', found.recall_at_10, wanted.recall_at_10, 0),
  ];
}

// EM from the same seeds, in f32 of another order of sums. It ends when a row's mean log-likelihood grows by less than 1e-4 nats: a device may stop an
// iteration earlier, where rows between two components still move.
function mixture(found, wanted) {
  const differing = wanted.assigned.filter((component, row) => found.assigned[row] !== component).length;
  return [
    ...within('log-likelihood', found.log_likelihood, wanted.log_likelihood, 1e-3),
    ...(found.components.length === wanted.components.length ? [] : [`${found.components.length} components`]),
    ...wanted.components.flatMap(({ weight, kappa }, k) => [
      ...within(`kappa ${k}`, found.components[k]?.kappa, kappa, 1e-2 * kappa),
      ...within(`weight ${k}`, found.components[k]?.weight, weight, 1e-3),
    ]),
    ...(differing <= 0.01 * wanted.assigned.length ? [] : [`${differing} rows are in another component, expected at most 1 %`]),
    ...within('purity', found.purity, wanted.purity, 5e-3),
    ...within('nmi', found.nmi, wanted.nmi, 5e-3),
  ];
}

// Attention is within 1e-5 of its row's largest element. A latent whose code lies on a rounding boundary may go either way: in 2 bits that is a third of
// its range for one of some 400000, thousandths of the error.
function cache(found, wanted) {
  return [
    ...wanted.attention.flatMap((value, i) => within(`attention[${i}]`, found.attention[i], value, 2e-5)),
    ...within('error of f16', found.relative_error_f16, wanted.relative_error_f16, 1e-5),
    ...(found.points.length === wanted.points.length ? [] : [`${found.points.length} points`]),
    ...wanted.points.flatMap(({ bits, rank, bytes, relative_error }, i) => [
      ...within(`bytes at ${bits} bits, rank ${rank}`, found.points[i]?.bytes, bytes, 0),
      ...within(`error at ${bits} bits, rank ${rank}`, found.points[i]?.relative_error, relative_error, 1e-3 * relative_error),
    ]),
  ];
}

const families = { bessel, emoji, mixture, cache };
const compare = (found, wanted) => Object.entries(families).flatMap(([id, check]) => (found[id] ? check(found[id], wanted[id]).map((wrong) => `${id}: ${wrong}`) : [`${id}: no result`]));

// Wrong on purpose, each a little: a comparison that lets one pass sees nothing.
const planted = {
  'another neighbour': (f) => (f.emoji.ids[700] ^= 1),
  'a distance': (f) => (f.emoji.distances[5000] += 1),
  'a neighbour shown': (f) => (f.emoji.shown.ids[3] ^= 1),
  'a log-likelihood': (f) => (f.mixture.log_likelihood += 0.01),
  'a kappa': (f) => (f.mixture.components[5].kappa *= 1.03),
  'rows of another component': (f) => f.mixture.assigned.fill(0, 0, 200),
  'NaN for a weight': (f) => (f.mixture.components[0].weight = null),
  'an element of attention': (f) => (f.cache.attention[20] += 1e-3),
  'an error of a cache': (f) => (f.cache.points[7].relative_error *= 1.01),
  'bytes of a cache': (f) => (f.cache.points[0].bytes += 1),
  'a point less': (f) => f.cache.points.pop(),
  'ln K': (f) => (f.bessel.functions[1].samples[9][2] *= 1.0001),
  'the error of ln I': (f) => (f.bessel.functions[0].largest_error_eps = 9),
  'a family that is not there': (f) => delete f.mixture,
};

const types = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.json': 'application/json', '.wasm': 'application/wasm' };
const server = http.createServer(async (request, response) => {
  const name = path.normalize(new URL(request.url, 'http://x').pathname).replace(/\/$/, '/index.html');
  try {
    const body = await readFile(path.join(root, name));
    response.writeHead(200, { 'content-type': types[path.extname(name)] ?? 'application/octet-stream' }).end(body);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((done) => server.listen(0, '127.0.0.1', done));

let failed = 0;
const report = (wrong) => {
  failed += wrong.length;
  for (const one of wrong) console.log(`FAIL ${one}`);
};

async function visit(name, flags, host, query, wanted, check) {
  const args = ['--no-sandbox', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', ...flags];
  const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', headless: true, args });
  try {
    const page = await browser.newPage({ viewport: { width: 1200, height: 900 } });
    const complaints = [];
    page.on('console', (message) => ['error', 'warning'].includes(message.type()) && complaints.push(`console: ${message.text()}`));
    page.on('pageerror', (error) => complaints.push(`page: ${error.message}`));
    await page.goto(`http://${host}:${server.address().port}/${query}`);
    await page.waitForFunction(() => globalThis.__result !== undefined, null, { timeout: 400000 });
    const result = await page.evaluate(() => globalThis.__result);
    const notice = await page.locator('#notice').innerText().catch(() => '');
    await page.screenshot({ path: path.join(shots, `${name}.png`), fullPage: true });
    await page.setViewportSize({ width: 390, height: 844 });
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    await page.screenshot({ path: path.join(shots, `${name}-phone.png`), fullPage: true });
    for (const one of complaints) console.log(`${name}: ${one}`);
    const ms = (x) => `${Math.round(x)} ms`;
    console.log(`${name}: ${result.device?.device}, adapter ${JSON.stringify(result.device?.adapter)}; first result ${ms(result.first_result_milliseconds)}, all ${ms(result.finished_milliseconds)}; ` +
      Object.entries(result.families).map(([id, family]) => `${id} ${ms(family.milliseconds)}`).join(', '));
    const wrong = [...result.errors, ...compare(result.families, wanted), ...check(result, notice)];
    if (overflow > 0) wrong.push(`the page is ${overflow} pixels wider than a phone`);
    if (!(result.first_result_milliseconds < FIRST_RESULT)) wrong.push(`the first result took ${result.first_result_milliseconds} ms, expected less than ${FIRST_RESULT}`);
    report(wrong.map((one) => `${name}: ${one}`));
    if (!wrong.length) console.log(`ok   ${name}: the numbers are those of the native CPU path`);
    return result;
  } finally {
    await browser.close();
  }
}

const short = { ...expected, mixture: expected.mixture_short };
try {
  const gpu = await visit('webgpu', ['--enable-unsafe-webgpu'], '127.0.0.1', '?device=gpu&iterations=6', short, (result, notice) => [
    ...(result.device.cpu === false && result.device.adapter ? [] : ['it did not run on WebGPU']),
    ...(notice === '' ? [] : [`it says "${notice}"`]),
  ]);
  // Of an origin that is not secure (plain http, not the loopback) a browser hides WebGPU.
  await visit('cpu', ['--host-resolver-rules=MAP page.test 127.0.0.1'], 'page.test', '', expected, (result, notice) => [
    ...(result.device.cpu === true && result.device.webgpu === false ? [] : ['it did not run on the CPU']),
    ...(notice.includes('no WebGPU') ? [] : [`it does not say that there is no WebGPU, but "${notice}"`]),
  ]);
  for (const [what, spoil] of Object.entries(planted)) {
    const copy = structuredClone(gpu.families);
    spoil(copy);
    if (compare(copy, short).length <= compare(gpu.families, short).length) report([`wrong on purpose, and passed: ${what}`]);
  }
} finally {
  server.close();
}
console.log(failed ? `${failed} failed` : `ok   ${Object.keys(planted).length} numbers wrong on purpose were seen`);
process.exit(failed ? 1 : 0);
