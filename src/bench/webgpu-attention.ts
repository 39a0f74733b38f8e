import { InvalidInputError, UnsupportedModelError } from '../core/errors.ts';
import { SEGMENT_TOKENS } from '../kernels/layout.ts';
import {
  createWebGpuAttention,
  type ShaderSources,
  subgroupsOf,
  type WebGpuAttention,
} from '../kernels/webgpu.ts';
import { planAttend } from '../kernels/webgpu-plan.ts';
import type { HeadShape } from '../kernels/webgpu-prelude.ts';
import {
  COPY_DST,
  COPY_SRC,
  MAP_MODE_READ,
  MAP_READ,
  QUERY_RESOLVE,
  STORAGE,
} from '../kernels/webgpu-usage.ts';
import { attentionData, EXACT, RATIO_4, referenceOutput, type TierMix } from './webgpu-attention-data.ts';
import { type AttentionVariant, parseVariant } from './webgpu-attention-variants.ts';

export interface AttentionBenchOptions {
  readonly device: GPUDevice;
  readonly shaders: ShaderSources;
  readonly shape: HeadShape;
  /** Conversations in one dispatch. */
  readonly conversations: number;
  /** Tokens of each, at least 320. */
  readonly context: number;
  /** What attends, as `parseVariant` reads it. */
  readonly variants: readonly string[];
  /** Told what was measured, variant by variant. */
  readonly onResult?: (result: AttentionBenchResult) => void;
}

/** One cache's figures. */
export interface MixResult {
  /** Cache bytes that one dispatch reads. */
  readonly bytes: number;
  /** f16 bytes of the same tokens over `bytes`. */
  readonly ratio: number;
  /** Median of one dispatch, the joining of the splits included. */
  readonly milliseconds: number;
  readonly gigabytesPerSecond: number;
  /** Bytes read a second over the copy kernel's. */
  readonly shareOfCopy: number;
  /** Of two conversations, from the reference kernels' output. */
  readonly largestDifference: number;
}

export interface AttentionBenchResult {
  readonly variant: string;
  readonly f16: MixResult;
  readonly packed: MixResult;
  /** f16's time over the packed cache's, in the same kernel. */
  readonly speedup: number;
}

export interface AttentionBench {
  readonly device: string;
  readonly subgroups: boolean;
  readonly conversations: number;
  readonly context: number;
  /** Nanoseconds that all readings of the device's clock are multiples of: 65,536 would say that Dawn rounds them. */
  readonly clockStep: number;
  /** A plain copy kernel in the same run: bytes read and written a second. */
  readonly copyGigabytesPerSecond: number;
  readonly results: readonly AttentionBenchResult[];
  /** Variants that this device is too small for, and why. */
  readonly skipped: readonly string[];
}

const RUNS = 12;
/** Dispatches between two readings of the clock, which a browser rounds to 0.1 ms: enough for RUN_MS, at most MAX_PER_RUN. */
const MAX_PER_RUN = 40;
const RUN_MS = 20;
/** Milliseconds of load before anything is measured: a GPU's clock rises only under it. */
const WARM_UP_MS = 300;
/** So many bytes at least are read before any is read again, so that no last-level cache serves them. */
const WORKING_SET = 400e6;
/** As far as one conversation goes in buffers of its own. */
const MOST_LAYERS = 256;

/** Runs the decode step of one layer for many conversations at once, on f16 and packed at ratio 4, beside a copy kernel. */
export async function benchWebGpuAttention(options: AttentionBenchOptions): Promise<AttentionBench> {
  const { device, conversations, context } = options;
  if (!device.features.has('timestamp-query'))
    throw new UnsupportedModelError(
      'the device has no clock of its own (timestamp-query), which this measurement needs',
    );
  if (context < EXACT + SEGMENT_TOKENS)
    throw new InvalidInputError(
      `a context of ${context} tokens is too short: at least ${EXACT + SEGMENT_TOKENS}`,
      '--context',
    );
  const variants = options.variants.map(parseVariant);
  const copy = await copyBandwidth(device);
  const f16 = placed(options, { f16: 1 });
  const packed = placed(options, RATIO_4);
  const results: AttentionBenchResult[] = [];
  const skipped: string[] = [];
  for (const variant of variants) {
    // Compiled once: a driver takes seconds for it.
    const attention = attentionOf(options, variant);
    if (typeof attention === 'string') {
      skipped.push(`${variant.name}: ${attention}`);
      continue;
    }
    const one = await attendMix(options, attention, f16, variant, copy);
    const other = await attendMix(options, attention, packed, variant, copy);
    const speedup = one.milliseconds / other.milliseconds;
    const result = { variant: variant.name, f16: one, packed: other, speedup };
    options.onResult?.(result);
    results.push(result);
  }
  for (const { caches, queries, out } of [f16, packed])
    for (const buffer of [...caches, queries, out]) buffer.destroy();
  const info = device.adapterInfo;
  return {
    device: [info.vendor, info.architecture, info.description].filter(Boolean).join(' '),
    subgroups: subgroupsOf(device),
    ...{ conversations, context, clockStep: await clockStep(device) },
    ...{ copyGigabytesPerSecond: copy, results, skipped },
  };
}

/** A variant's kernels, or why the device cannot have them. */
function attentionOf(
  { device, shaders, shape }: AttentionBenchOptions,
  { stream }: AttentionVariant,
): WebGpuAttention | string {
  try {
    return createWebGpuAttention({
      ...{ device, shaders, shape, subgroups: subgroupsOf(device) },
      ...(stream && { stream }),
    });
  } catch (error) {
    if (error instanceof UnsupportedModelError) return error.message;
    throw error;
  }
}

/** The caches of a mix on the device, as many layers as a working set wants. */
function placed({ device, shape, conversations, context }: AttentionBenchOptions, mix: TierMix) {
  const data = attentionData(shape, mix, conversations, context);
  const { bytes, queries } = data;
  const upload = (all: Uint8Array<ArrayBuffer>): GPUBuffer => {
    const buffer = device.createBuffer({ size: all.length, usage: STORAGE | COPY_DST });
    // Bounded pieces: a queue keeps what was written until it is submitted.
    for (let from = 0; from < all.length; from += 64e6)
      device.queue.writeBuffer(buffer, from, all, from, Math.min(64e6, all.length - from));
    return buffer;
  };
  const layers = Math.max(2, Math.min(MOST_LAYERS, Math.ceil(WORKING_SET / bytes.length)));
  const checked = [...new Set([0, conversations - 1])];
  return {
    ...{ data, checked, expected: checked.map((c) => referenceOutput(shape, data, c)) },
    caches: Array.from({ length: layers }, () => upload(bytes)),
    queries: upload(new Uint8Array(queries.buffer)),
    out: device.createBuffer({ size: queries.byteLength, usage: STORAGE | COPY_SRC }),
  };
}

async function attendMix(
  { device, shape, conversations, context }: AttentionBenchOptions,
  attention: WebGpuAttention,
  { data, caches, queries, out, checked, expected }: ReturnType<typeof placed>,
  { segmentsPerSplit }: AttentionVariant,
  copy: number,
): Promise<MixResult> {
  const { heads, kvHeads, headDim } = shape;
  const plan = planAttend(data.items, 1, segmentsPerSplit);
  const scale = 1 / Math.sqrt(headDim);
  const plans = caches.map((cache) => attention.prepare({ plan, scale, mass: 0, cache, queries, out }));
  const milliseconds = await timed(device, (pass, i) => plans[i % plans.length]!.attend(pass));
  const width = heads * headDim;
  const result = new Float32Array(await bytesOf(device, out));
  let largestDifference = 0;
  for (const [i, c] of checked.entries())
    for (let j = 0; j < width; j++) {
      const apart = Math.abs(result[c * width + j]! - expected[i]![j]!);
      // No number is as wrong as can be.
      if (!(apart <= largestDifference)) largestDifference = apart;
    }
  for (const p of plans) p.destroy();
  const gigabytesPerSecond = data.read / milliseconds / 1e6;
  return {
    bytes: data.read,
    ratio: (conversations * context * kvHeads * headDim * 4) / data.read,
    ...{ milliseconds, gigabytesPerSecond, shareOfCopy: gigabytesPerSecond / copy },
    largestDifference,
  };
}

async function bytesOf(device: GPUDevice, buffer: GPUBuffer): Promise<ArrayBuffer> {
  const mapped = device.createBuffer({ size: buffer.size, usage: MAP_READ | COPY_DST });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, mapped, 0, buffer.size);
  device.queue.submit([encoder.finish()]);
  await mapped.mapAsync(MAP_MODE_READ);
  const bytes = mapped.getMappedRange().slice(0);
  mapped.destroy();
  return bytes;
}

const COPY_SHADER = `
@group(0) @binding(0) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> target_: array<vec4<u32>>;
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
  let i = id.y * groups.x * 256u + id.x;
  if (i < arrayLength(&source)) { target_[i] = source[i]; }
}`;
const COPY_BYTES = 256 * 1024 * 1024;

/** Bytes read and written a second, 1e9, by a kernel that copies 256 MiB. */
async function copyBandwidth(device: GPUDevice): Promise<number> {
  const bytes = Math.min(COPY_BYTES, device.limits.maxStorageBufferBindingSize);
  const [source, target] = [0, 1].map(() => device.createBuffer({ size: bytes, usage: STORAGE })) as [
    GPUBuffer,
    GPUBuffer,
  ];
  const pipeline = device.createComputePipeline({
    layout: 'auto',
    compute: { module: device.createShaderModule({ code: COPY_SHADER }) },
  });
  const group = device.createBindGroup({
    layout: pipeline.getBindGroupLayout(0),
    entries: [source, target].map((buffer, binding) => ({ binding, resource: { buffer } })),
  });
  const groups = bytes / 16 / 256;
  const milliseconds = await timed(device, (pass) => {
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, group);
    pass.dispatchWorkgroups(Math.min(groups, 1024), Math.ceil(groups / 1024));
  });
  source.destroy();
  target.destroy();
  return (2 * bytes) / milliseconds / 1e6;
}

/** Median in milliseconds of one recorded dispatch by the device's own clock, over RUNS passes, after some that warm the device up. */
async function timed(
  device: GPUDevice,
  record: (pass: GPUComputePassEncoder, run: number) => void,
): Promise<number> {
  const once = (await passes(device, 1, 1, record))[0]!;
  const perRun = Math.max(1, Math.min(MAX_PER_RUN, Math.floor(RUN_MS / Math.max(once, 0.01))));
  const warmUp = Math.max(0, Math.ceil(WARM_UP_MS / Math.max(once * perRun, 1)) - 1);
  const times = await passes(device, warmUp + RUNS, perRun, record);
  return times.slice(warmUp).sort((a, b) => a - b)[RUNS >> 1]!;
}

/** Milliseconds of a dispatch in each of `count` passes of `perPass`. */
async function passes(
  device: GPUDevice,
  count: number,
  perPass: number,
  record: (pass: GPUComputePassEncoder, run: number) => void,
): Promise<number[]> {
  const stamps = await stampsOf(device, count, perPass, record);
  return Array.from({ length: count }, (_, i) => Number(stamps[2 * i + 1]! - stamps[2 * i]!) / 1e6 / perPass);
}

/** The greatest common divisor of what the device's clock says at the beginnings and ends of many empty passes. */
async function clockStep(device: GPUDevice): Promise<number> {
  let step = 0n;
  for (let stamp of await stampsOf(device, 64, 0, () => {}))
    while (stamp !== 0n) [step, stamp] = [stamp, step % stamp];
  return Number(step);
}

/** Nanoseconds at the beginning and at the end of each pass. */
async function stampsOf(
  device: GPUDevice,
  count: number,
  perPass: number,
  record: (pass: GPUComputePassEncoder, run: number) => void,
): Promise<BigUint64Array> {
  const querySet = device.createQuerySet({ type: 'timestamp', count: 2 * count });
  const resolved = device.createBuffer({ size: count * 16, usage: QUERY_RESOLVE | COPY_SRC });
  const mapped = device.createBuffer({ size: count * 16, usage: MAP_READ | COPY_DST });
  for (let i = 0; i < count; i++) {
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass({
      timestampWrites: { querySet, beginningOfPassWriteIndex: 2 * i, endOfPassWriteIndex: 2 * i + 1 },
    });
    for (let j = 0; j < perPass; j++) record(pass, i * perPass + j);
    pass.end();
    device.queue.submit([encoder.finish()]);
  }
  const encoder = device.createCommandEncoder();
  encoder.resolveQuerySet(querySet, 0, 2 * count, resolved, 0);
  encoder.copyBufferToBuffer(resolved, 0, mapped, 0, count * 16);
  device.queue.submit([encoder.finish()]);
  await mapped.mapAsync(MAP_MODE_READ);
  const stamps = new BigUint64Array(mapped.getMappedRange().slice(0));
  for (const buffer of [resolved, mapped]) buffer.destroy();
  querySet.destroy();
  return stamps;
}
