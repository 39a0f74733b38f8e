import { Arena } from '../core/arena.ts';
import { InvalidInputError, UnsupportedModelError } from '../core/errors.ts';
import { uniform01 } from '../core/random.ts';
import {
  exactBytes,
  recordBytes,
  SEGMENT_HEADER_BYTES,
  SEGMENT_TOKENS,
  segmentHeaderBytes,
  TIER_IDS,
  tierNamed,
} from '../kernels/layout.ts';
import { cacheReference } from '../kernels/reference-cache.ts';
import {
  createWebGpuAttention,
  type DevicePlan,
  type ShaderSources,
  subgroupsOf,
} from '../kernels/webgpu.ts';
import { type AttendItem, planAttend } from '../kernels/webgpu-plan.ts';
import type { HeadShape } from '../kernels/webgpu-prelude.ts';
import {
  COPY_DST,
  COPY_SRC,
  MAP_MODE_READ,
  MAP_READ,
  QUERY_RESOLVE,
  STORAGE,
} from '../kernels/webgpu-usage.ts';

export interface AttentionBenchOptions {
  readonly device: GPUDevice;
  readonly shaders: ShaderSources;
  readonly shape: HeadShape;
  /** Conversations in one dispatch. */
  readonly conversations: number;
  /** Tokens of each, at least 320. */
  readonly context: number;
  readonly segmentsPerSplit?: number;
  readonly subgroups?: boolean;
}

/** Shares of the tiers among compressed tokens. */
export type TierMix = Readonly<Record<string, number>>;

/** Tiers of the adkvc policy's ladder, mixed so that a cache of 8k tokens takes a quarter of f16's bytes; the result says the ratio that came out. */
export const RATIO_4: TierMix = { '8,4': 0.06, '4,4': 0.26, '4,2': 0.46, '3,2': 0.22 };

export interface AttentionBenchResult {
  readonly mix: TierMix;
  /** Cache bytes that one dispatch reads: blocks without mass, and the visible part of the exact slots. */
  readonly bytes: number;
  /** f16 bytes of the same tokens over `bytes`. */
  readonly ratio: number;
  /** Median of one dispatch, the joining of the splits included. */
  readonly milliseconds: number;
  readonly gigabytesPerSecond: number;
}

export interface AttentionBench {
  readonly device: string;
  readonly subgroups: boolean;
  readonly conversations: number;
  readonly context: number;
  readonly segmentsPerSplit: number;
  /** A plain copy kernel in the same run: bytes read and written a second. */
  readonly copyGigabytesPerSecond: number;
  readonly f16: AttentionBenchResult;
  readonly packed: AttentionBenchResult;
  /** f16's time over the packed cache's. */
  readonly speedup: number;
  /** Bytes read a second over the copy's, of both. */
  readonly shareOfCopy: { readonly f16: number; readonly packed: number };
}

/** Sinks, window and epoch: what an exact part holds at most before an epoch ends. */
const EXACT = 192;
/** Different segments; conversations repeat them in another order, each with bytes of its own. */
const SAMPLES = 6;
const RUNS = 12;
/** Dispatches between two readings of the device's clock, which Dawn rounds to 0.1 ms: enough for RUN_MS, at most MAX_PER_RUN. */
const MAX_PER_RUN = 40;
const RUN_MS = 20;
/** Milliseconds of load before anything is measured: a GPU's clock rises only under it. */
const WARM_UP_MS = 300;
/** So many bytes at least are read before any is read again, so that no last-level cache serves them. */
const WORKING_SET = 400e6;

/** Runs the decode step of one layer for many conversations at once, on f16 and packed at ratio 4, beside a copy kernel. */
export async function benchWebGpuAttention(options: AttentionBenchOptions): Promise<AttentionBench> {
  const { device, conversations, context, segmentsPerSplit = 4 } = options;
  if (!device.features.has('timestamp-query'))
    throw new UnsupportedModelError(
      'the device has no clock of its own (timestamp-query), which this measurement needs',
    );
  if (context < EXACT + SEGMENT_TOKENS)
    throw new InvalidInputError(
      `a context of ${context} tokens is too short: at least ${EXACT + SEGMENT_TOKENS}`,
      '--context',
    );
  const subgroups = options.subgroups ?? subgroupsOf(device);
  const run = (mix: TierMix) => attendMix({ ...options, segmentsPerSplit, subgroups }, mix);
  const f16 = await run({ f16: 1 });
  const packed = await run(RATIO_4);
  const copy = await copyBandwidth(device);
  const info = device.adapterInfo;
  return {
    device: [info.vendor, info.architecture, info.description].filter(Boolean).join(' '),
    subgroups,
    conversations,
    context,
    segmentsPerSplit,
    copyGigabytesPerSecond: copy,
    f16,
    packed,
    speedup: f16.milliseconds / packed.milliseconds,
    shareOfCopy: { f16: f16.gigabytesPerSecond / copy, packed: packed.gigabytesPerSecond / copy },
  };
}

async function attendMix(
  {
    device,
    shaders,
    shape,
    conversations,
    context,
    segmentsPerSplit,
    subgroups,
  }: AttentionBenchOptions & {
    segmentsPerSplit: number;
    subgroups: boolean;
  },
  mix: TierMix,
): Promise<AttentionBenchResult> {
  const { heads, kvHeads, headDim } = shape;
  const compressed = context - EXACT;
  const lengths = Array.from({ length: Math.ceil(compressed / SEGMENT_TOKENS) }, (_, i) =>
    Math.min(SEGMENT_TOKENS, compressed - i * SEGMENT_TOKENS),
  );
  const samples = new Map<number, Uint8Array[]>();
  for (const tokens of new Set(lengths))
    samples.set(
      tokens,
      Array.from({ length: SAMPLES }, (_, i) => sampleSegment(shape, tokens, mix, i)),
    );

  const exact = { kvHeads, headDim, capacity: EXACT, bits: 16 as const, mass: false };
  const items: AttendItem[] = [];
  const copies: { at: number; bytes: Uint8Array }[] = [];
  const exactSample = randomHalves(exactBytes(exact) / 2);
  let at = 0;
  let read = 0;
  const place = (bytes: Uint8Array): number => {
    const here = at;
    copies.push({ at: here, bytes });
    at += (bytes.length + 15) & ~15;
    read += bytes.length;
    return here;
  };
  for (let c = 0; c < conversations; c++)
    items.push({
      q: c * heads * headDim,
      out: c * heads * headDim,
      exact: place(exactSample),
      capacity: EXACT,
      exactBits: 16,
      visible: EXACT,
      position: context,
      segments: lengths.map((tokens, s) => place(samples.get(tokens)![(s + c) % SAMPLES]!)),
    });

  const plan = planAttend(items, 1, segmentsPerSplit);
  const queries = device.createBuffer({
    size: conversations * heads * headDim * 4,
    usage: STORAGE | COPY_DST,
  });
  device.queue.writeBuffer(
    queries,
    0,
    Float32Array.from({ length: conversations * heads * headDim }, (_, i) => 2 * uniform01(i, 1) - 1),
  );
  const out = device.createBuffer({ size: queries.size, usage: STORAGE | COPY_SRC });
  const attention = createWebGpuAttention({ device, shaders, shape, subgroups });
  const layers = Math.max(2, Math.ceil(WORKING_SET / at));
  const caches: GPUBuffer[] = [];
  const plans: DevicePlan[] = [];
  for (let layer = 0; layer < layers; layer++) {
    const cache = device.createBuffer({ size: at, usage: STORAGE | COPY_DST });
    // Bounded pieces: a queue keeps what was written until it is submitted.
    const all = new Uint8Array(at);
    for (const { at: to, bytes } of copies) all.set(bytes, to);
    for (let from = 0; from < at; from += 64e6)
      device.queue.writeBuffer(cache, from, all, from, Math.min(64e6, at - from));
    caches.push(cache);
    plans.push(attention.prepare({ plan, scale: 1 / Math.sqrt(headDim), mass: 0, cache, queries, out }));
  }
  const milliseconds = await timed(device, (pass, i) => plans[i % layers]!.attend(pass));
  for (const buffer of [...caches, queries, out]) buffer.destroy();
  for (const p of plans) p.destroy();
  return {
    mix,
    bytes: read,
    ratio: (conversations * context * kvHeads * headDim * 4) / read,
    milliseconds,
    gigabytesPerSecond: read / milliseconds / 1e6,
  };
}

/** A segment block of noise, encoded by the reference kernels. */
function sampleSegment(shape: HeadShape, tokens: number, mix: TierMix, seed: number): Uint8Array {
  const { kvHeads, headDim } = shape;
  const exact = { kvHeads, headDim, capacity: tokens, bits: 16 as const, mass: false };
  const buffer = new ArrayBuffer(4 * exactBytes(exact) + 100_000);
  const arena = new Arena({ buffer, maxBytes: buffer.byteLength, ensure: () => {} }, 16);
  const kernels = cacheReference(arena);
  const exactAt = arena.allocStatic(exactBytes(exact));
  new Uint8Array(buffer, exactAt).set(randomHalves(exactBytes(exact) / 2, seed));
  const tiersAt = arena.allocStatic(tokens);
  const block = arena.allocStatic(2 * exactBytes(exact));
  const names = Object.keys(mix);
  const total = Object.values(mix).reduce((a, b) => a + b, 0);
  let to = block + segmentHeaderBytes(kvHeads);
  for (let h = 0; h < kvHeads; h++) {
    const counts = new Uint8Array(TIER_IDS);
    for (let t = 0; t < tokens; t++) {
      let x = uniform01(seed, h, t) * total;
      const name = names.find((n) => (x -= mix[n]!) < 0) ?? names.at(-1)!;
      const tier = tierNamed(name);
      new Uint8Array(buffer)[tiersAt + t] = tier;
      counts[tier]!++;
    }
    new Uint32Array(buffer, block + SEGMENT_HEADER_BYTES, kvHeads)[h] = to - block;
    kernels.encodeRecord({ ptr: exactAt, ...exact }, h, 0, tokens, tiersAt, to, 0);
    to += recordBytes(tokens, counts, headDim);
  }
  new Uint32Array(buffer, block, 3).set([0, tokens, to - block]);
  return new Uint8Array(buffer.slice(block, to));
}

/** f16 noise in -2..2. */
function randomHalves(count: number, seed = 0): Uint8Array {
  const halves = new Uint16Array(count);
  for (let i = 0; i < count; i++) {
    const word = Math.floor(uniform01(seed, i, 3) * 65536);
    halves[i] = (word & 0x83ff) | ((12 + ((word >> 10) & 3)) << 10);
  }
  return new Uint8Array(halves.buffer);
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
  return Array.from({ length: count }, (_, i) => Number(stamps[2 * i + 1]! - stamps[2 * i]!) / 1e6 / perPass);
}
