// node tint.mjs FILE.wgsl ... FILE.json ...: compiles each .wgsl with Dawn's Tint and builds the pipeline of its entry point; runs the shader that
// each .json names (in ../web beside it) on its inputs and compares the values. Exit 1 when one fails, or when a shader broken on purpose
// or a value wrong on purpose passes.
import { create, globals } from 'webgpu';
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
Object.assign(globalThis, globals);

const gpu = create(['backend=vulkan']); // must outlive everything made from it
const adapter = await gpu.requestAdapter();
if (!adapter) throw new Error('no adapter: is SwiftShader there and VK_ICD_FILENAMES set?');
const wanted = ['subgroups', 'shader-f16'];
const device = await adapter.requestDevice({ requiredFeatures: wanted.filter((name) => adapter.features.has(name)) });

async function errors(code) {
  device.pushErrorScope('validation');
  const module = device.createShaderModule({ code });
  const { messages } = await module.getCompilationInfo();
  const found = messages.filter((m) => m.type === 'error').map((m) => `${m.lineNum}: ${m.message}`);
  if (!found.length) device.createComputePipeline({ layout: 'auto', compute: { module } });
  const error = await device.popErrorScope();
  return error && !found.length ? [error.message] : found;
}

const files = process.argv.slice(2).filter((file) => file.endsWith('.wgsl'));
const runs = process.argv.slice(2).filter((file) => file.endsWith('.json'));
let failed = 0;
for (const file of files) {
  const found = await errors(await readFile(file, 'utf8'));
  failed += found.length > 0;
  console.log(found.length ? `FAIL ${file}\n  ${found.join('\n  ')}` : `ok   ${file.split('/').pop()}`);
}
// naga accepts a barrier in non-uniform control flow, Tint must not: else this check sees nothing.
const planted = `@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@compute @workgroup_size(4) fn main(@builtin(local_invocation_index) i: u32) { if x[i] > 0u { workgroupBarrier(); } }`;
const seen = (await errors(planted)).length > 0;
if (!seen) console.log('FAIL the planted barrier was accepted');
// The values of a run: pairs of f32 put together, or f32.
async function values(run, code) {
  const module = device.createShaderModule({ code });
  const pipeline = await device.createComputePipelineAsync({ layout: 'auto', compute: { module } });
  const { STORAGE, UNIFORM, COPY_DST, COPY_SRC, MAP_READ } = GPUBufferUsage;
  const buffer = (words, usage) => {
    const made = device.createBuffer({ size: 4 * words.length, usage: usage | COPY_DST | COPY_SRC });
    device.queue.writeBuffer(made, 0, new Uint32Array(words));
    return made;
  };
  const buffers = [buffer(run.params, UNIFORM), ...run.bindings.map((words) => buffer(words, STORAGE))];
  const entries = buffers.map((made, binding) => ({ binding, resource: { buffer: made } }));
  const group = device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
  const out = buffers[run.out + 1];
  const read = device.createBuffer({ size: out.size, usage: MAP_READ | COPY_DST });
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  pass.setPipeline(pipeline);
  pass.setBindGroup(0, group);
  pass.dispatchWorkgroups(...run.groups);
  pass.end();
  encoder.copyBufferToBuffer(out, 0, read, 0, out.size);
  device.queue.submit([encoder.finish()]);
  await read.mapAsync(1);
  const words = new Float32Array(read.getMappedRange().slice(0));
  return run.expected.map((_, i) => (run.pairs ? words[2 * i] + words[2 * i + 1] : words[i]));
}

// The largest error over its tolerance; NaN counts as infinite.
function worst(found, { expected, tolerance }) {
  const ratios = found.map((value, i) => Math.abs(value - expected[i]) / tolerance[i]);
  return ratios.reduce((most, ratio) => (ratio <= most ? most : Number.isNaN(ratio) ? Infinity : ratio), 0);
}

let wrong = 0;
let blind = false;
for (const file of runs) {
  const run = JSON.parse(await readFile(file, 'utf8'));
  const code = await readFile(join(dirname(file), '..', 'web', `${run.shader}.wgsl`), 'utf8');
  const found = await values(run, code);
  const ratio = worst(found, run);
  wrong += ratio > 1;
  console.log(`${ratio > 1 ? 'FAIL' : 'ok  '} ${run.shader}: ${found.length} values, the worst at ${ratio.toFixed(3)} of its tolerance`);
  // One value off by twice its tolerance must be seen.
  blind ||= worst(found.map((value, i) => (i === 1 ? run.expected[i] + 2 * run.tolerance[i] : value)), run) <= 1;
}
if (blind) console.log('FAIL a planted value was accepted');
device.destroy();
console.log(`tint: ${runs.length - wrong} runs agree, ${wrong} do not; ${files.length - failed} passed, ${failed} failed`, gpu ? '' : '');
process.exitCode = failed || wrong || blind || !seen || !files.length || !runs.length ? 1 : 0;
