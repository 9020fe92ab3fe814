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
// What the reads of a run give, the first of each output's size after that of the output before it (the host reads other things, too): all steps of its
// trace, on buffers that begin as NaNs.
async function reads({ trace, outputs }, text) {
  const { STORAGE, UNIFORM, COPY_DST, COPY_SRC, MAP_READ } = GPUBufferUsage;
  const words = (values, usage) => {
    const made = device.createBuffer({ size: 4 * values.length, usage: usage | COPY_DST });
    device.queue.writeBuffer(made, 0, new Uint32Array(values));
    return made;
  };
  const buffers = trace.buffers.map((bytes) => words(new Uint32Array(Math.ceil(bytes / 4)).fill(0x7fc0dead), STORAGE | COPY_SRC));
  const pipelines = new Map();
  const found = [];
  for (const step of trace.steps) {
    if (step.do === 'write') {
      device.queue.writeBuffer(buffers[step.buffer], step.offset, new Uint32Array(step.words));
      continue;
    }
    const encoder = device.createCommandEncoder();
    let read;
    if (step.do === 'clear') encoder.clearBuffer(buffers[step.buffer], step.offset, step.bytes);
    if (step.do === 'copy') encoder.copyBufferToBuffer(buffers[step.from], step.from_offset, buffers[step.to], step.to_offset, step.bytes);
    if (step.do === 'read') {
      read = device.createBuffer({ size: step.bytes, usage: MAP_READ | COPY_DST });
      encoder.copyBufferToBuffer(buffers[step.buffer], step.offset, read, 0, step.bytes);
    }
    if (step.do === 'dispatch') {
      if (!pipelines.has(step.shader)) {
        const module = device.createShaderModule({ code: await text(step.shader) });
        pipelines.set(step.shader, await device.createComputePipelineAsync({ layout: 'auto', compute: { module } }));
      }
      const pipeline = pipelines.get(step.shader);
      const parts = step.bindings.map(([buffer, offset, size]) => ({ buffer: buffers[buffer], offset, size }));
      const entries = [{ buffer: words(step.params, UNIFORM) }, ...parts].map((resource, binding) => ({ binding, resource }));
      const group = device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
      const pass = encoder.beginComputePass();
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(...step.groups);
      pass.end();
    }
    device.queue.submit([encoder.finish()]);
    if (read) {
      await read.mapAsync(1);
      found.push(read.getMappedRange().slice(0));
    }
  }
  buffers.forEach((buffer) => buffer.destroy());
  const size = { f32: 4, u32: 4, pairs: 8, f16: 2, u16: 2 };
  let next = 0;
  return outputs.map((output) => {
    const bytes = Math.ceil((size[output.kind] * output.expected.length) / 4) * 4;
    while (next < found.length && found[next].byteLength !== bytes) next++;
    return next < found.length ? values(found[next++], output) : [];
  });
}

function half(bits) {
  const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

// The numbers of an output; pairs of f32 put together.
function values(bytes, { kind, expected }) {
  const floats = kind === 'f32' || kind === 'pairs' ? new Float32Array(bytes) : undefined;
  if (kind === 'pairs') return expected.map((_, i) => floats[2 * i] + floats[2 * i + 1]);
  const all = floats ?? (kind === 'u32' ? new Uint32Array(bytes) : new Uint16Array(bytes));
  return expected.map((_, i) => (kind === 'f16' ? half(all[i]) : all[i]));
}

// The largest error over its tolerance; NaN counts as infinite, and so does a difference where none is allowed.
function worst(found, { expected, tolerance }) {
  const ratio = (value, i) => (value === expected[i] ? 0 : Math.abs(value - expected[i]) / tolerance[i]);
  return found.map(ratio).reduce((most, one) => (one <= most ? most : Number.isNaN(one) ? Infinity : one), 0);
}

let wrong = 0;
let blind = false;
for (const file of runs) {
  const run = JSON.parse(await readFile(file, 'utf8'));
  const text = (shader) => readFile(join(dirname(file), '..', 'web', `${shader}.wgsl`), 'utf8');
  device.pushErrorScope('validation');
  const found = await reads(run, text);
  const error = await device.popErrorScope();
  const ratios = found.map((numbers, at) => (numbers.length ? worst(numbers, run.outputs[at]) : Infinity));
  const ratio = error ? Infinity : Math.max(...ratios);
  wrong += !(ratio <= 1);
  const count = run.outputs.reduce((sum, output) => sum + output.expected.length, 0);
  console.log(`${ratio <= 1 ? 'ok  ' : 'FAIL'} ${run.name}: ${count} values, the worst at ${ratio.toFixed(3)} of its tolerance ${error?.message ?? ''}`);
  for (const [at, output] of run.outputs.entries()) {
    if (ratios[at] <= 1) continue;
    const first = output.expected.findIndex((_, i) => !(worst([found[at]?.[i]], { expected: [output.expected[i]], tolerance: [output.tolerance[i]] }) <= 1));
    console.log(`     output ${at} of ${run.outputs.length}, at ${first} of ${output.expected.length}: ${found[at]?.[first]}, expected ${output.expected[first]}`);
  }
  // One value off by twice its tolerance, or by 1, must be seen.
  for (const [at, output] of run.outputs.entries()) {
    const planted = output.expected.map((value, i) => (i === 1 ? value + (2 * output.tolerance[i] || 1) : value));
    blind ||= output.expected.length > 1 && worst(planted, output) <= 1;
    blind ||= worst(planted.map(() => NaN), run.outputs[at]) <= 1;
  }
}
if (blind) console.log('FAIL a planted value was accepted');
device.destroy();
console.log(`tint: ${runs.length - wrong} runs agree, ${wrong} do not; ${files.length - failed} passed, ${failed} failed`, gpu ? '' : '');
process.exitCode = failed || wrong || blind || !seen || !(files.length + runs.length) ? 1 : 0;
