// node tint.mjs FILE.wgsl ...: compiles each file with Dawn's Tint and builds the pipeline of its entry point. Exit 1 when one fails, or when a
// shader broken on purpose passes.
import { create, globals } from 'webgpu';
import { readFile } from 'node:fs/promises';
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

const files = process.argv.slice(2);
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
device.destroy();
console.log(`tint: ${files.length - failed} passed, ${failed} failed`, gpu ? '' : '');
process.exitCode = failed || !seen || !files.length ? 1 : 0;
