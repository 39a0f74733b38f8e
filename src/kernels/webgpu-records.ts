import { Arena } from '../core/arena.ts';
import { checkNeverFiner, checkNotMixed } from './cache-math.ts';
import type { RecordKernels } from './kernels.ts';
import {
  countTiers,
  exactKAt,
  exactMassAt,
  exactVAt,
  massBytes,
  RECORD_HEADER_BYTES,
  type RecordParts,
  recordCounts,
  recordParts,
  recordTiers,
  TIERS,
} from './layout.ts';
import type { CopyRun, DecayRange, EncodeJob, WebGpuCacheKernels } from './webgpu-cache.ts';
import { WebGpuMemory } from './webgpu-memory.ts';
import type { CommandStream } from './webgpu-stream.ts';

export interface WebGpuRecords extends RecordKernels {
  readonly memory: WebGpuMemory;
  fetch(ranges: readonly { readonly at: number; readonly bytes: number }[]): Promise<void>;
}

export interface WebGpuRecordsOptions {
  readonly stream: CommandStream;
  readonly kernels: WebGpuCacheKernels;
  readonly headDim: number;
  readonly maxBytes: number;
}

/** Names the arithmetic: a state is only continued bit for bit on the same kind of device. */
export const webGpuNumerics = ({ adapterInfo: a }: GPUDevice): string =>
  ['webgpu/4', a.vendor, a.architecture].filter((part) => part !== '').join(' ');

/**
 * What a cache needs of its kernels, on a GPU: each call records what is to be done. Maps and counts of records, which the caller determines, are written
 * here at once, so that the cache can be read without waiting; codes, means and mass lie on the device until they are fetched.
 */
export function createWebGpuRecords({
  stream,
  kernels,
  headDim: shapeDim,
  maxBytes,
}: WebGpuRecordsOptions): WebGpuRecords {
  const memory = new WebGpuMemory(stream, maxBytes, kernels);
  // Address 0 stands for "none" in the interface.
  const arena = new Arena(memory, 16);
  memory.onFlush = () => arena.recycle();
  const u8 = (): Uint8Array => new Uint8Array(memory.buffer);

  const copy = (from: number, to: number, bytes: number): void => {
    if (bytes === 0) return;
    const run: CopyRun = { from, to, bytes };
    memory.change('copy', [{ at: from, bytes }], [{ at: to, bytes }], run);
  };

  /** Writes what the caller determines of a record: which tiers, how many tokens of each, and which token has which. */
  const describe = (tokens: number, ids: Uint8Array, out: number, headDim: number): RecordParts => {
    if (headDim !== shapeDim) throw new Error(`records of ${headDim} channels, kernels for ${shapeDim}`);
    const bytes = u8();
    const counts = countTiers(ids);
    const parts = recordParts(tokens, counts, headDim);
    if (parts.bytes === 0) return parts;
    checkNotMixed(ids);
    let present = 0;
    let at = out + RECORD_HEADER_BYTES;
    for (let id = 0; id < TIERS.length; id++)
      if (counts[id]! > 0) {
        present |= 1 << id;
        bytes[at++] = counts[id]!;
      }
    bytes[out] = present & 255;
    bytes[out + 1] = present >> 8;
    if (parts.map !== 0) {
      bytes.fill(0, out + parts.map, out + parts.map + ((tokens + 1) >> 1));
      ids.forEach((id, t) => {
        bytes[out + parts.map + (t >> 1)]! |= id << ((t & 1) * 4);
      });
    }
    return parts;
  };
  const record = (
    job: Omit<EncodeJob, 'plain'>,
    parts: RecordParts,
    reads: readonly { at: number; bytes: number }[],
  ): number => {
    const writes = [{ at: job.target, bytes: parts.bytes }];
    if (job.massTo) writes.push({ at: job.massTo, bytes: massBytes(parts.cells) });
    memory.change('encode', reads, writes, { ...job, plain: parts.plain });
    return parts.bytes;
  };

  return {
    memory,
    arena,
    numerics: webGpuNumerics(stream.device),
    copyBytes: copy,
    hostWrote: (at, bytes) => memory.hostWrote(at, bytes),
    fetch: (ranges) => memory.fetch(ranges),

    moveExact(e, from, to, count) {
      const move = (at: number, unit: number): void => {
        // Pieces that do not overlap their place, one after the other.
        for (let done = 0; done < count; done += from - to)
          copy(
            e.ptr + at + (from + done) * unit,
            e.ptr + at + (to + done) * unit,
            Math.min(from - to, count - done) * unit,
          );
      };
      for (let h = 0; h < e.kvHeads; h++) {
        move(exactKAt(e, h), (e.headDim * e.bits) / 8);
        move(exactVAt(e, h), (e.headDim * e.bits) / 8);
        if (e.mass) move(exactMassAt(e, h), 2);
      }
    },

    encodeRecord(e, kvHead, slot, tokens, tiers, out, massOut) {
      const ids = u8().slice(tiers, tiers + tokens);
      const parts = describe(tokens, ids, out, e.headDim);
      if (parts.bytes === 0) return 0;
      const row = (e.headDim * e.bits) / 8;
      const source = e.ptr + exactKAt(e, kvHead) + slot * row;
      const values = e.ptr + exactVAt(e, kvHead) + slot * row;
      const massFrom = e.mass && massOut ? e.ptr + exactMassAt(e, kvHead) + slot * 2 : 0;
      const reads = [
        { at: source, bytes: tokens * row },
        { at: values, bytes: tokens * row },
      ];
      if (massFrom) reads.push({ at: massFrom, bytes: tokens * 2 });
      const job = { source, values, bits: e.bits, tiers: ids, target: out, massFrom, massTo: massOut };
      return record(job, parts, reads);
    },

    recodeRecord(from, tokens, headDim, tiers, out, mass, massOut) {
      const ids = u8().slice(tiers, tiers + tokens);
      const held = new Uint8Array(tokens);
      recordTiers(u8(), from, tokens, headDim, held);
      checkNeverFiner(held, ids);
      const before = recordParts(tokens, recordCounts(u8(), from), headDim);
      const parts = describe(tokens, ids, out, headDim);
      if (parts.bytes === 0) return 0;
      const massFrom = massOut ? mass : 0;
      const reads = [{ at: from, bytes: before.bytes }];
      if (massFrom) reads.push({ at: massFrom, bytes: massBytes(before.cells) });
      const job = {
        source: from,
        values: 0,
        bits: 0 as const,
        tiers: ids,
        target: out,
        massFrom,
        massTo: massOut,
      };
      return record(job, parts, reads);
    },

    decayMass(mass, count, numerator) {
      if (count === 0) return;
      const range: DecayRange = { at: mass, count, numerator };
      const bytes = { at: mass, bytes: count * 2 };
      memory.change('decay', [bytes], [bytes], range);
    },
  };
}
