// node mutate.mjs KERNELS_TEST_BINARY [--each N] [--seed S] [--only TEXT] [--jobs J] [--json FILE]: breaks shaders one token at a time and shows that the
// tests see it. Of every file below shaders/ N tokens are drawn: a bound, an operator, a constant, a stride. Each broken text runs through the parity cases
// of its kernels (tests/common: ORTHANT_MUTANT). A mutant is dead when a case fails, or none ends in two minutes; one that no compiler takes counts for
// nothing. Prints the share of the dead by file, and every survivor. Exit 1 where a survivor is not in `.ci/survivors.txt`.
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const [binary, ...rest] = process.argv.slice(2);
const option = (name, otherwise) => (rest.includes(`--${name}`) ? rest[rest.indexOf(`--${name}`) + 1] : otherwise);
const [each, seed, only, jobs] = [Number(option('each', 3)), Number(option('seed', 1)), option('only', ''), Number(option('jobs', 2))];
const here = dirname(fileURLToPath(import.meta.url));
const shaders = join(here, '..', 'shaders');

const swapped = {
  '+': '-', '-': '+', '*': '+', '/': '*', '%': '+', '<': '<=', '<=': '<', '>': '>=', '>=': '>', '==': '!=', '!=': '==',
  '&&': '||', '||': '&&', '&': '|', '|': '&', '^': '|', '<<': '>>', '>>': '<<', '+=': '-=', '-=': '+=', '*=': '+=', '|=': '&=',
};

// Every token of a text that can be broken: where, what stands there, what will.
function tokens(text) {
  const found = [];
  let at = 0;
  for (const line of text.split('\n')) {
    const code = line.replace(/\/\/.*/, '');
    // A workgroup's array of one element more changes nothing.
    const skipped = /^\s*(@group|@compute|@builtin|enable|alias|struct|override|var<workgroup>)/.test(code);
    if (!skipped) {
      for (const m of code.matchAll(/ (\+=|-=|\*=|\|=|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%<>&|^]) /g)) {
        found.push({ at: at + m.index + 1, from: m[1], to: swapped[m[1]] });
      }
      // Not the digits of a name or of a type, nor the index of a binding.
      for (const m of code.matchAll(/(?<![\w.@(]|@\w+\()(\d+(?:\.\d*)?(?:e[-+]?\d+)?|0x[\da-f]+)(u|i|f|lf|lu)?(?![\w.])/g)) {
        const [literal, number, suffix = ''] = m;
        const whole = /^\d+$/.test(number) && suffix !== 'f';
        const value = Number(number);
        found.push({ at: at + m.index, from: literal, to: whole ? `${value + 1}${suffix}` : `(${literal} * 1.5${suffix} + 0.5${suffix})` });
      }
      for (const m of code.matchAll(/\b(min|max)\(/g)) found.push({ at: at + m.index, from: m[1], to: m[1] === 'min' ? 'max' : 'min' });
      for (const m of code.matchAll(/if \((?!\()/g)) found.push({ at: at + m.index + 4, from: '', to: 'true || ' });
    }
    at += line.length + 1;
  }
  return found;
}

// A repeatable order.
function draw(list, count, salt) {
  let state = (seed * 2654435761 + [...salt].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) >>> 0, 7)) >>> 0;
  const keyed = list.map((token) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return { ...token, key: state };
  });
  return keyed.sort((a, b) => a.key - b.key).slice(0, count);
}

const scratch = await mkdtemp(join(tmpdir(), 'mutants-'));
const files = (await readdir(shaders, { recursive: true })).filter((file) => file.endsWith('.wgsl') && file.includes(only)).sort();
const mutants = [];
for (const file of files) {
  const text = await readFile(join(shaders, file), 'utf8');
  for (const token of draw(tokens(text), each, file)) {
    const line = text.slice(0, token.at).split('\n').length;
    const broken = text.slice(0, token.at) + token.to + text.slice(token.at + token.from.length);
    const shown = text.split('\n')[line - 1].trim();
    mutants.push({ file, line, name: `${file}: ${token.from || 'if'} -> ${token.to}: ${shown}`, broken });
  }
}

function run(mutant, number) {
  return new Promise((done) => {
    const path = join(scratch, `${number}.wgsl`);
    writeFile(path, `${mutant.file}\n${mutant.broken}`).then(() => {
      const child = spawn(binary, [], { env: { ...process.env, ORTHANT_MUTANT: path, RAYON_NUM_THREADS: '1' }, stdio: ['ignore', 'pipe', 'ignore'] });
      let said = '';
      child.stdout.on('data', (part) => (said += part));
      const timer = setTimeout(() => child.kill('SIGKILL'), 120_000);
      child.on('close', (code) => {
        clearTimeout(timer);
        done({ outcome: code === 0 ? 'alive' : code === 3 ? 'invalid' : 'dead', by: code === null ? 'time' : said.trim() });
      });
    });
  });
}

const known = new Set((await readFile(join(here, 'survivors.txt'), 'utf8').catch(() => '')).split('\n').filter((line) => line && !line.startsWith('#')));
let next = 0;
async function worker() {
  while (next < mutants.length) {
    const number = next++;
    Object.assign(mutants[number], await run(mutants[number], number));
    if (mutants[number].outcome === 'alive') console.log(`${known.has(mutants[number].name) ? 'known' : 'ALIVE'} ${mutants[number].name}  (line ${mutants[number].line})`);
  }
}
await Promise.all(Array.from({ length: jobs }, worker));
await rm(scratch, { recursive: true });
const count = (list, outcome) => list.filter((mutant) => mutant.outcome === outcome).length;
for (const file of files) {
  const own = mutants.filter((mutant) => mutant.file === file);
  const [dead, alive] = [count(own, 'dead'), count(own, 'alive')];
  console.log(`${String(dead).padStart(4)} of ${String(dead + alive).padStart(4)}  ${file}`);
}
const [dead, alive, invalid] = ['dead', 'alive', 'invalid'].map((outcome) => count(mutants, outcome));
console.log(`mutants: ${dead} of ${dead + alive} seen (${((100 * dead) / (dead + alive)).toFixed(1)} %), ${invalid} that no compiler takes`);
if (option('json')) await writeFile(option('json'), JSON.stringify(mutants.map(({ broken, ...rest }) => rest), null, 1));
process.exitCode = !dead || mutants.some((mutant) => mutant.outcome === 'alive' && !known.has(mutant.name)) ? 1 : 0;
