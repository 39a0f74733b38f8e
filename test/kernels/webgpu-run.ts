import type { Arena } from '../../src/core/arena.ts';
import { createWebGpuAttention, type WebGpuAttention } from '../../src/kernels/webgpu.ts';
import type { StreamDivision } from '../../src/kernels/webgpu-attend-stream.ts';
import { planAttend } from '../../src/kernels/webgpu-plan.ts';
import { plainArena } from '../helpers/plain-memory.ts';
import { readBack, shaders, uploaded } from '../helpers/webgpu.ts';
import { MASS_UNIT } from './attend-truth.ts';
import { type BuiltCache, type CacheCase, isPlain, u32At } from './cache-cases.ts';

const made = new Map<string, WebGpuAttention>();
/** Compiling takes longer than running: one set of kernels for each shape. */
export function attentionOf(
  device: GPUDevice,
  c: CacheCase,
  subgroups: boolean,
  stream?: StreamDivision,
): WebGpuAttention {
  const plain = isPlain(c);
  const key = JSON.stringify([c.heads, c.kvHeads, c.headDim, subgroups, stream, plain]);
  const found =
    made.get(key) ??
    createWebGpuAttention({
      device,
      shaders: shaders(),
      shape: c,
      subgroups,
      plain,
      ...(stream && { stream }),
    });
  made.set(key, found);
  return found;
}

export interface Ran {
  readonly out: Float32Array;
  /** The arena's bytes as the device left them. */
  readonly arena: Arena;
}

/** Attention of the case's rows [from, from + rows) on the device, over a copy of the arena. */
export async function attendOnDevice(
  device: GPUDevice,
  arena: Arena,
  c: CacheCase,
  built: BuiltCache,
  options: {
    subgroups: boolean;
    stream?: StreamDivision;
    mass?: boolean;
    massMode?: 'sum' | 'max';
    segmentsPerSplit?: number;
    from?: number;
    rows?: number;
    /** Addresses of queries, as `AttendArgs` has them. */
    gaps?: { segmentQueries: readonly number[]; sinkQueries: number; sinks: number };
  },
): Promise<Ran> {
  const { from = 0, rows = c.rows, segmentsPerSplit = 2, subgroups, mass = false } = options;
  const width = c.heads * c.headDim;
  device.pushErrorScope('validation');
  const attention = attentionOf(device, c, subgroups, options.stream);
  const cache = uploaded(device, new Uint8Array(arena.memory.buffer));
  const out = uploaded(device, new Uint8Array(rows * width * 4).fill(0xff));
  const plan = planAttend(
    [
      {
        q: built.q / 4 + from * width,
        gaps: options.gaps && {
          segments: options.gaps.segmentQueries.map((at) => at / 4 + from * width),
          sinks: options.gaps.sinks,
          sinkQueries: options.gaps.sinkQueries / 4 + from * width,
        },
        out: 0,
        exact: built.exact.ptr,
        capacity: built.exact.capacity,
        exactBits: built.exact.bits,
        visible: c.visible + from,
        position: 1000 + from,
        segments: [...u32At(arena, built.segments, built.segmentCount)],
      },
    ],
    rows,
    segmentsPerSplit,
  );
  const queries = uploaded(device, new Uint8Array(arena.memory.buffer));
  const scale = 1 / Math.sqrt(c.headDim);
  const prepared = attention.prepare({
    plan,
    scale,
    mass: mass ? (options.massMode === 'max' ? -MASS_UNIT : MASS_UNIT) : 0,
    cache,
    queries,
    out,
  });
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  prepared.attend(pass);
  pass.end();
  device.queue.submit([encoder.finish()]);
  const error = await device.popErrorScope();
  if (error) throw new Error(error.message);
  const result = new Float32Array(await readBack(device, out)).slice(0, rows * width);
  const after = plainArena(0);
  const bytes = await readBack(device, cache);
  prepared.destroy();
  for (const buffer of [cache, queries, out]) buffer.destroy();
  return { out: result, arena: Object.assign(after, { memory: { ...after.memory, buffer: bytes } }) };
}
