import type { Arena, Ptr } from '../core/arena.ts';
import { attendWorkspaceBytes } from './attend-workspace.ts';
import { toF16 } from './cache-math.ts';
import { cacheReader } from './cache-reader.ts';
import type { Kernels } from './kernels.ts';
import { exactKAt, exactMassAt, exactVAt, hadamardSize } from './layout.ts';
import { referenceAttend } from './reference-attend.ts';
import { referenceRecords } from './reference-records.ts';

export type CacheKernels = Pick<
  Kernels,
  | 'hadamard'
  | 'appendExact'
  | 'moveExact'
  | 'attend'
  | 'attendWorkspaceBytes'
  | 'encodeRecord'
  | 'recodeRecord'
  | 'decodeRecord'
  | 'decayMass'
  | 'copyBytes'
  | 'hostWrote'
>;

const f = Math.fround;

/** The cache kernels in plain TypeScript. They define the truth; see kernels.ts for the contracts. */
export function cacheReference(arena: Arena): CacheKernels {
  const reader = cacheReader(arena);
  const { u8, u16, f32 } = reader;
  return {
    hadamard(x, ldX, rows, heads, headDim) {
      const all = f32();
      const size = hadamardSize(headDim);
      const norm = f(1 / Math.sqrt(size));
      for (let row = 0; row < rows; row++)
        for (let at = 0; at < heads * headDim; at += size) {
          const y = all.subarray((x >> 2) + row * ldX + at, (x >> 2) + row * ldX + at + size);
          for (let step = 1; step < size; step *= 2)
            for (let i = 0; i < size; i++) {
              if (i & step) continue;
              const [a, b] = [y[i]!, y[i + step]!];
              y[i] = a + b;
              y[i + step] = a - b;
            }
          for (let i = 0; i < size; i++) y[i] = y[i]! * norm;
        }
    },

    appendExact(e, slot, rows, k, v, ldX) {
      for (let row = 0; row < rows; row++)
        for (let h = 0; h < e.kvHeads; h++)
          for (const [from, half] of [
            [k, exactKAt(e, h)],
            [v, exactVAt(e, h)],
          ] as const)
            for (let c = 0; c < e.headDim; c++) {
              const value = f32()[(from >> 2) + row * ldX + h * e.headDim + c]!;
              const at = e.ptr + half + ((slot + row) * e.headDim + c) * (e.bits / 8);
              if (e.bits === 32) f32()[at >> 2] = value;
              else u16()[at >> 1] = toF16(value);
            }
    },

    moveExact(e, from, to, count) {
      const move = (at: Ptr, bytes: number): void => {
        u8().copyWithin(at + to * bytes, at + from * bytes, at + (from + count) * bytes);
      };
      for (let h = 0; h < e.kvHeads; h++) {
        move(e.ptr + exactKAt(e, h), (e.headDim * e.bits) / 8);
        move(e.ptr + exactVAt(e, h), (e.headDim * e.bits) / 8);
        if (e.mass) move(e.ptr + exactMassAt(e, h), 2);
      }
    },

    attend: referenceAttend(reader),
    attendWorkspaceBytes,

    ...referenceRecords(reader),

    decayMass(mass, count, numerator) {
      const words = u16();
      for (let i = mass >> 1; i < (mass >> 1) + count; i++)
        words[i] = Math.floor((words[i]! * numerator + 32768) / 65536);
    },
    copyBytes: (from, to, bytes) => void u8().copyWithin(to, from, from + bytes),
    hostWrote: () => {},
  };
}
