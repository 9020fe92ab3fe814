// Opens a device in the worker, runs each family and shows what it found. `?device=auto|gpu|cpu`, `?iterations=N` at most for the mixture; `globalThis.__result` has the numbers at the end.
import { colour, scatter, tradeoff } from './charts.js';

const query = new URLSearchParams(location.search);
const $ = (id) => document.getElementById(id);
const worker = new Worker('worker.js', { type: 'module' });
const pending = new Map();
worker.addEventListener('message', ({ data: { id, value, error } }) => {
  const [resolve, reject] = pending.get(id);
  pending.delete(id);
  error === undefined ? resolve(value) : reject(new Error(error));
});
worker.addEventListener('error', (event) => {
  const reason = new Error(`the worker failed: ${event.message ?? 'it cannot be loaded'}`);
  for (const [, reject] of pending.values()) reject(reason);
  pending.clear();
});
let calls = 0;
const call = (method, ...args) =>
  new Promise((resolve, reject) => {
    const id = calls++;
    pending.set(id, [resolve, reject]);
    worker.postMessage({ id, method, args });
  });

const bytes = async (name) => {
  const response = await fetch(`data/${name}`);
  if (!response.ok) throw new Error(`data/${name}: ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
};
// All of it at once, while the device opens.
const data = Object.fromEntries(
  ['emoji_features_512.npy', 'emoji_labels_512.npy', 'emoji_names_512.json', 'wordnet_minilm_4k.npy', 'wordnet_labels_4k.npy', 'wordnet_label_names.json', 'smollm2_kv_layer08.safetensors', 'golden_bessel.csv'].map((name) => {
    const coming = bytes(name);
    coming.catch(() => {}); // whoever awaits it says so
    return [name, coming];
  }),
);
const json = async (name) => JSON.parse(new TextDecoder().decode(await data[name]));

const time = (ms) => (ms < 1000 ? `${ms < 10 ? ms.toFixed(1) : ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(2)} s`);
const whole = (x) => x.toLocaleString('en');
const percent = (x, digits = 2) => `${+(100 * x).toPrecision(digits)} %`;
const element = (tag, text, name) => {
  const made = document.createElement(tag);
  made.textContent = text ?? '';
  if (name) made.className = name;
  return made;
};
const table = (into, head, rows) => {
  const line = (cells, tag) => {
    const row = element('tr');
    row.append(...cells.map((cell) => element(tag, cell)));
    return row;
  };
  into.replaceChildren(line(head, 'th'), ...rows.map((row) => line(row, 'td')));
};

const result = { device: null, first_result_milliseconds: null, families: {}, wall_milliseconds: {}, errors: [] };

// Runs `work` in the section `id`, and shows its time or its failure.
async function run(id, work) {
  const section = $(id);
  const busy = section.querySelector('.busy');
  busy.hidden = false;
  busy.className = 'busy on';
  busy.textContent = 'Computing';
  try {
    const start = performance.now();
    const found = await work();
    result.families[id] = found;
    result.wall_milliseconds[id] = performance.now() - start;
    section.querySelector('.body').hidden = false;
    section.querySelector('.time').textContent = time(found.milliseconds);
    busy.hidden = true;
    return found;
  } catch (error) {
    result.errors.push(`${id}: ${error.message}`);
    busy.className = 'busy failed';
    busy.textContent = error.message;
    return null;
  }
}

function device(found) {
  result.device = found;
  const { adapter, cpu, choice, webgpu } = found;
  const name = adapter && (adapter.description || [adapter.vendor, adapter.architecture, adapter.device].filter(Boolean).join(' '));
  $('device').classList.add(cpu ? 'cpu' : 'gpu');
  $('device-name').textContent = cpu ? 'CPU, in WebAssembly on one thread' : name || 'A GPU that does not tell its name';
  $('device-detail').textContent = cpu ? '' : `WebGPU${adapter.software ? ', a software adapter' : ''}`;
  const say = !webgpu
    ? 'This browser has no WebGPU: running on the CPU in WebAssembly.'
    : !adapter
      ? 'This browser has WebGPU but no adapter for it: running on the CPU in WebAssembly.'
      : cpu && choice !== 'cpu'
        ? `WebGPU has only a software adapter here (${name}), slower than the CPU path: running on the CPU in WebAssembly.`
        : cpu
          ? 'Running on the CPU in WebAssembly, as asked.'
          : '';
  $('notice').hidden = say === '';
  $('notice').textContent = say;
}

async function emoji() {
  const [labels, names] = [new DataView((await data['emoji_labels_512.npy']).slice(-512 * 8).buffer), await json('emoji_names_512.json')];
  const half = names.length;
  // Rows are the drawings of one vendor, then of the other, both in the order of the names.
  const drawing = (row) => ({
    glyph: names[row % half][0].split('-').map((code) => String.fromCodePoint(parseInt(code, 16))).join(''),
    name: names[row % half][1].replaceAll(/[_-]/g, ' '),
    by: labels.getInt32(8 * row + 4, true) === 0 ? 'Google' : 'Twitter',
  });
  const found = await call('emoji', await data['emoji_features_512.npy'], await data['emoji_labels_512.npy']);
  const show = async (row) => {
    const { ids, distances, milliseconds } = await call('search', row, 11);
    const { glyph, name, by } = drawing(row);
    for (const button of $('picker').children) button.setAttribute('aria-selected', String(+button.value === row));
    $('query').replaceChildren(element('span', glyph, 'glyph'), element('span', `${name}, as ${by} draws it: searched in ${time(milliseconds)}`));
    $('tiles').replaceChildren(
      ...ids.flatMap((id, at) => {
        if (id === row) return [];
        const of = drawing(id);
        const tile = element('li', '', id % half === row % half ? 'same' : '');
        tile.append(element('span', of.glyph, 'glyph'), element('span', of.name, 'name'), element('span', `${of.by}, ${distances[at]} bits`, 'by'));
        return [tile];
      }).slice(0, 10),
    );
    return { row, ids, distances, names: ids.map((id) => drawing(id).name), milliseconds };
  };
  $('picker').replaceChildren(
    ...names.map((_, row) => {
      const { glyph, name } = drawing(row);
      const button = element('button', glyph);
      Object.assign(button, { type: 'button', value: row, title: name });
      button.setAttribute('role', 'option');
      button.addEventListener('click', () => show(row).catch((error) => ($('query').textContent = error.message)));
      return button;
    }),
  );
  $('emoji').querySelector('.body').hidden = false;
  const shown = await show(Math.max(0, names.findIndex(([, name]) => name === 'smiley')));
  $('picker').querySelector('[aria-selected=true]')?.scrollIntoView({ block: 'nearest', inline: 'center' });
  $('emoji-facts').textContent = `All ${found.drawings} searched at once, binarized and indexed first: ${time(found.milliseconds)}. The same emoji by the other vendor is the nearest for ${percent(found.recall_at_1, 3)}, among the ten nearest for ${percent(found.recall_at_10, 3)}.`;
  return { ...found, shown };
}

async function mixture() {
  const components = Math.min(64, Math.max(2, $('components').valueAsNumber || 16));
  const iterations = Number(query.get('iterations')) || 200;
  const names = await json('wordnet_label_names.json');
  const found = await call('mixture', await data['wordnet_minilm_4k.npy'], await data['wordnet_labels_4k.npy'], components, iterations);
  $('mixture').querySelector('.body').hidden = false;
  const draw = (only) => scatter($('scatter'), found.points, found.assigned, components, only);
  draw(null);
  addEventListener('resize', () => draw(null));
  const order = found.components.map((_, k) => k).sort((a, b) => found.components[b].size - found.components[a].size);
  $('legend').replaceChildren(
    ...order.map((k) => {
      const { labels, size, kappa } = found.components[k];
      const item = element('li');
      const dot = element('i');
      dot.style.background = colour(k, components);
      item.append(dot, element('span', labels.slice(0, 2).map((label) => names[label]).join(', ')), element('small', `${size} · κ ${kappa.toFixed(0)}`));
      item.addEventListener('pointerenter', () => draw(k));
      item.addEventListener('pointerleave', () => draw(null));
      return item;
    }),
  );
  $('mixture-facts').textContent = `${found.iterations} iterations of EM in ${time(found.milliseconds_fit)}; ${found.log_likelihood.toFixed(2)} nats a row. Against the 45 lexicographer files: purity ${found.purity.toFixed(3)}, normalised mutual information ${found.nmi.toFixed(3)}.`;
  return found;
}

async function cache() {
  const found = await call('cache', await data['smollm2_kv_layer08.safetensors']);
  const share = (bytes) => bytes / found.bytes_uncompressed;
  const series = [8, 4, 2].map((bits) => ({
    name: `${bits} bits`,
    points: found.points.filter((p) => p.bits === bits).map((p) => ({ x: share(p.bytes), y: p.relative_error, label: `rank ${p.rank}` })),
  }));
  series.push({ name: 'uncompressed f16', points: [{ x: 1, y: found.relative_error_f16 }] });
  tradeoff($('tradeoff'), series, 'memory, of what f16 takes', 'error of the output of attention');
  const chosen = found.points.filter((p) => p.bits === 4);
  table($('points'), ['rank, 4 bits', 'memory', 'error', 'append', 'attend'], [
    ['f16, whole', '100 %', percent(found.relative_error_f16), '', time(found.milliseconds_attention)],
    ...chosen.map((p) => [p.rank, percent(share(p.bytes)), percent(p.relative_error), time(p.milliseconds_append), time(p.milliseconds_attend)]),
  ]);
  $('cache-facts').textContent = `${found.q_heads} query heads on ${found.kv_heads} key heads of ${found.head_dim}, the last ${found.queries} of ${whole(found.tokens)} positions; ${whole(found.bytes_uncompressed)} bytes uncompressed. The first 4 and the last 32 to 63 tokens of a cache stay exact. Calibrated in ${time(found.milliseconds_calibration)}.`;
  return found;
}

async function bessel() {
  const found = await call('bessel', await data['golden_bessel.csv']);
  const names = { log_iv: 'ln I', log_kv: 'ln K' };
  table($('functions'), ['function', 'points', 'largest error, in units of f32 rounding (2⁻²³)'], found.functions.map((f) => [names[f.name], whole(found.points), f.largest_error_eps.toFixed(2)]));
  return found;
}

$('fit').addEventListener('submit', async (event) => {
  event.preventDefault();
  const button = $('fit').querySelector('button');
  button.disabled = true;
  await run('mixture', mixture);
  button.disabled = false;
});

const choice = query.get('device') ?? 'auto';
try {
  device(await call('open', choice));
  result.opened_milliseconds = performance.now();
  for (const [id, work] of Object.entries({ bessel, emoji, mixture, cache })) {
    await run(id, work);
    // Since the page's navigation began.
    result.first_result_milliseconds ??= result.families[id] && performance.now();
  }
} catch (error) {
  result.errors.push(`open: ${error.message}`);
  $('device-name').textContent = 'No device';
  $('notice').hidden = false;
  $('notice').textContent = error.message;
}
result.finished_milliseconds = performance.now();
globalThis.__result = result;
