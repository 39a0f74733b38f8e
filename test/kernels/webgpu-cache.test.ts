import { describe, expect, it } from 'vitest';
import { fromF16, tierGroups } from '../../src/kernels/cache-math.ts';
import {
  DROP,
  exactBytes,
  exactKAt,
  exactMassAt,
  exactVAt,
  recordBytes,
  recordCells,
  recordParts,
  TIER_IDS,
  TIERS,
} from '../../src/kernels/layout.ts';
import { cacheReference } from '../../src/kernels/reference-cache.ts';
import {
  appendTable,
  createWebGpuCacheKernels,
  type EncodeJob,
  ZEROS,
} from '../../src/kernels/webgpu-cache.ts';
import type { HeadShape } from '../../src/kernels/webgpu-prelude.ts';
import { CommandStream } from '../../src/kernels/webgpu-stream.ts';
import { plainArena } from '../helpers/plain-memory.ts';
import { readBack, shaders, testDevice, uploaded } from '../helpers/webgpu.ts';
import { f32At, normals, put, u8At, u16At } from './cache-cases.ts';

const device = await testDevice();
const stream = new CommandStream(device);

const bytesOf = (x: Float32Array | Uint8Array): Uint8Array =>
  new Uint8Array(x.buffer, x.byteOffset, x.byteLength);

/** Submits what is recorded; a validation error is an error. */
async function submit(record: () => void): Promise<void> {
  device.pushErrorScope('validation');
  record();
  stream.submit();
  const error = await device.popErrorScope();
  if (error) throw new Error(error.message);
}

describe.each<HeadShape>([
  { heads: 9, kvHeads: 3, headDim: 64 },
  { heads: 5, kvHeads: 1, headDim: 12 },
])('cache kernels (webgpu, $headDim channels)', (shape) => {
  const { heads, kvHeads, headDim } = shape;
  const kernels = createWebGpuCacheKernels(stream, shaders(), shape);

  it.each([16, 32] as const)(
    'append %i bits: rotated queries within 1e-6, cells within one step of the reference',
    async (bits) => {
      const arena = plainArena(1e6);
      const reference = cacheReference(arena);
      const rows = 7;
      const exact = { kvHeads, headDim, capacity: 20, bits, mass: false };
      const at = arena.ptr(arena.alloc(exactBytes(exact)));
      const half = headDim / 2;
      const angles = Float32Array.from(
        { length: rows * half },
        (_, i) => (i % 17) * 0.37 + Math.floor(i / half),
      );
      const [cosines, sines] = [angles.map(Math.cos), angles.map(Math.sin)];
      const q = normals(rows * heads * headDim, 1);
      const k = normals(rows * kvHeads * headDim, 2);
      const v = normals(rows * kvHeads * headDim, 3);
      const cache = uploaded(device, u8At(arena, 0, at + exactBytes(exact)));
      const queries = uploaded(
        device,
        bytesOf(q).map(() => 0xff),
      );
      const [qIn, kIn, vIn, cos, sin] = [q, k, v, cosines, sines].map((x) =>
        uploaded(device, bytesOf(x)),
      ) as [GPUBuffer, GPUBuffer, GPUBuffer, GPUBuffer, GPUBuffer];
      const group = kernels.bindAppend({
        ...{ tables: stream.tables, cosines: cos, sines: sin, queries, cache },
        ...{ q: { buffer: qIn }, k: { buffer: kIn }, v: { buffer: vIn } },
      });
      await submit(() => {
        const table = stream.table(
          appendTable(
            Array.from({ length: rows }, (_, r) => ({
              ...{ exact: at, capacity: 20, exactBits: bits, slot: 5 + r, angle: r },
            })),
          ),
        );
        kernels.dispatchAppend(stream.pass('append'), group, table, rows);
      });
      const rotate = (x: Float32Array, count: number): number => {
        for (let r = 0; r < rows; r++)
          for (let h = 0; h < count; h++)
            for (let c = 0; c < half; c++) {
              const i = (r * count + h) * headDim + c;
              const [a, b, cs, sn] = [x[i]!, x[i + half]!, cosines[r * half + c]!, sines[r * half + c]!];
              x[i] = a * cs - b * sn;
              x[i + half] = b * cs + a * sn;
            }
        return 0;
      };
      rotate(q, heads);
      rotate(k, kvHeads);
      const [qAt, kAt, vAt] = [put(arena, q), put(arena, k), put(arena, v)];
      reference.hadamard(qAt, heads * headDim, rows, heads, headDim);
      reference.hadamard(kAt, kvHeads * headDim, rows, kvHeads, headDim);
      reference.hadamard(vAt, kvHeads * headDim, rows, kvHeads, headDim);
      reference.appendExact({ ptr: at, ...exact }, 5, rows, kAt, vAt, kvHeads * headDim);
      const got = new Float32Array(await readBack(device, queries));
      f32At(arena, qAt, q.length).forEach((x, i) => {
        expect(Math.abs(got[i]! - x)).toBeLessThan(1e-6);
      });
      const after = await readBack(device, cache);
      const read = (buffer: ArrayBuffer): number[] =>
        bits === 32
          ? [...new Float32Array(buffer, at, exactBytes(exact) / 4)]
          : Array.from(new Uint16Array(buffer, at, exactBytes(exact) / 2), (x) =>
              x === 0xffff ? Number.NaN : fromF16(x),
            );
      const expected = read(arena.memory.buffer as ArrayBuffer);
      read(after).forEach((x, i) => {
        const e = expected[i]!;
        if (Number.isNaN(e)) expect(x).toBeNaN();
        else
          expect(Math.abs(x - e)).toBeLessThanOrEqual(
            bits === 32 ? 1e-6 : Math.max(Math.abs(e) * 2 ** -10, 1e-6),
          );
      });
    },
  );

  it.each([
    ['rotated', false],
    ['plain', true],
  ] as const)(
    'encode and recode, %s tiers: headers, maps and mass as the reference; at most 1 code in 1000 at a threshold differs, scales by a step',
    async (_, plain) => {
      const arena = plainArena(4e6);
      const reference = cacheReference(arena);
      const exact = { kvHeads, headDim, capacity: 130, bits: 16 as const, mass: true };
      const exactAt = arena.ptr(arena.alloc(exactBytes(exact)));
      const tokens = 127;
      const k = normals(130 * kvHeads * headDim, 5, 1.3).map((x, i) => x + (i % headDim) * 0.05);
      const v = normals(130 * kvHeads * headDim, 6);
      reference.appendExact(
        { ptr: exactAt, ...exact },
        0,
        130,
        put(arena, k),
        put(arena, v),
        kvHeads * headDim,
      );
      for (let h = 0; h < kvHeads; h++)
        u16At(arena, exactAt + exactMassAt(exact, h), 130).forEach((_, i, all) => {
          all[i] = i * 500 + h;
        });
      const ids = [...TIERS.filter((t) => t.id > 0 && t.plain === plain).map((t) => t.id), DROP];
      const first = Uint8Array.from({ length: tokens }, (_, t) => ids[(t * 7 + (t >> 3)) % ids.length]!);
      const second = first.map((id, t) =>
        // A token only leaves a plain tier to be dropped.
        t % 3 === 0 ? id : plain ? DROP : ids[Math.min(ids.indexOf(id) + (t % 4), ids.length - 1)]!,
      );
      const size = (tiers: Uint8Array) => {
        const n = new Uint8Array(TIER_IDS);
        for (const id of tiers) if (id !== DROP) n[id]!++;
        return { counts: n, bytes: recordBytes(tokens, n, headDim), cells: recordCells(n) };
      };
      const slot = 2;
      const targets = Array.from({ length: kvHeads }, () =>
        [first, second].map((tiers) => ({
          tiers,
          record: arena.ptr(arena.alloc(size(tiers).bytes)),
          mass: arena.ptr(arena.alloc(size(tiers).cells * 2)),
        })),
      );
      const end = arena.ptr(arena.alloc(16));
      u8At(arena, targets[0]![0]!.record, end - targets[0]![0]!.record).fill(0xff);
      const cache = uploaded(device, u8At(arena, 0, end));
      const jobs = (step: 0 | 1): EncodeJob[] =>
        targets.map(([a, b], h) =>
          step === 0
            ? {
                source: exactAt + exactKAt(exact, h) + slot * headDim * 2,
                values: exactAt + exactVAt(exact, h) + slot * headDim * 2,
                bits: 16,
                tiers: a!.tiers,
                target: a!.record,
                massFrom: exactAt + exactMassAt(exact, h) + slot * 2,
                massTo: a!.mass,
                plain,
              }
            : {
                source: a!.record,
                values: 0,
                bits: 0,
                tiers: b!.tiers,
                target: b!.record,
                massFrom: a!.mass,
                massTo: b!.mass,
                plain,
              },
        );
      await submit(() => kernels.encode(jobs(0), cache));
      await submit(() => kernels.encode(jobs(1), cache));
      const onDevice = new Uint8Array(await readBack(device, cache));

      targets.forEach((steps, h) => {
        const tiersAt = steps.map((s) => put(arena, s.tiers));
        reference.encodeRecord(
          { ptr: exactAt, ...exact },
          h,
          slot,
          tokens,
          tiersAt[0]!,
          steps[0]!.record,
          steps[0]!.mass,
        );
        // Recoding starts from the device's own record.
        const own = put(arena, onDevice.slice(steps[0]!.record, steps[0]!.record + size(first).bytes));
        reference.recodeRecord(
          own,
          tokens,
          headDim,
          tiersAt[1]!,
          steps[1]!.record,
          steps[0]!.mass,
          steps[1]!.mass,
        );
        steps.forEach(({ tiers, record, mass }) => {
          const { counts, bytes, cells } = size(tiers);
          const expected = u8At(arena, record, bytes);
          const got = onDevice.subarray(record, record + bytes);
          const parts = recordParts(tokens, counts, headDim);
          expect(got.subarray(0, 2)).toEqual(expected.subarray(0, 2));
          expect(got.subarray(8, parts.mean)).toEqual(expected.subarray(8, parts.mean));
          if (!plain) expect(parts.map - parts.mean).toBe(headDim);
          expect(got.subarray(parts.map, parts.scales)).toEqual(expected.subarray(parts.map, parts.scales));
          expect(new Uint16Array(onDevice.buffer, mass, cells)).toEqual(u16At(arena, mass, cells));
          const scales = new Set<number>();
          const halves = (from: number, count: number) => {
            for (let i = 0; i < count; i++) {
              scales.add(from + 2 * i).add(from + 2 * i + 1);
              const [x, e] = [got, expected].map((b) =>
                fromF16(b[from + 2 * i]! | (b[from + 2 * i + 1]! << 8)),
              ) as [number, number];
              expect(Math.abs(x - e)).toBeLessThanOrEqual(Math.abs(e) * 2 ** -9 + 1e-7);
            }
          };
          // The bases and the mean's scale.
          halves(2, 3);
          for (const g of tierGroups(counts, tokens, headDim)) {
            for (const [at, each] of [
              [g.kScale, g.kScaleBytes],
              [g.vScale, g.vScaleBytes],
            ] as const) {
              if (each >= 2) halves(at, (g.n4 * each) / 2);
              for (let i = at; each === 1 && i < at + g.n4; i++) {
                scales.add(i);
                expect(Math.abs(got[i]! - expected[i]!)).toBeLessThanOrEqual(1);
              }
            }
          }
          let different = 0;
          for (let i = 8; i < bytes; i++) if (!scales.has(i) && got[i] !== expected[i]) different++;
          expect(different).toBeLessThanOrEqual(bytes / 1000);
        });
      });
    },
  );

  it('decay: the nearest of mass * numerator / 2^16, all bits', async () => {
    const values = Uint16Array.from({ length: 600 }, (_, i) => (i === 0 ? 0xffff : Math.imul(i, 0x9e3779b1)));
    const cache = uploaded(device, new Uint8Array(values.slice().buffer));
    await submit(() =>
      kernels.decay(
        [
          { at: 0, count: 100, numerator: 52429 },
          { at: 200, count: 150, numerator: 65536 },
        ],
        cache,
      ),
    );
    const got = new Uint16Array(await readBack(device, cache));
    values.forEach((x, i) => {
      expect(got[i]).toBe(i < 100 ? Math.round((x * 52429) / 65536) : x);
    });
  });

  it('words: moved and zeroed, more runs than one table holds', async () => {
    const [count, bytes] = [25_000, 8];
    const source = Uint32Array.from({ length: 2 * count }, (_, i) => i + 1);
    const [from, to] = [source, source.map(() => 7)].map((x) => uploaded(device, new Uint8Array(x.buffer)));
    const runs = Array.from({ length: count }, (_, i) => ({
      ...{ from: i % 3 === 0 ? ZEROS : (count - 1 - i) * bytes, to: i * bytes, bytes: i % 2 === 0 ? 8 : 4 },
    }));
    await submit(() => kernels.words(runs, from!, to!));
    const expected = source.map(() => 7);
    for (const run of runs)
      for (let w = 0; w < run.bytes / 4; w++)
        expected[run.to / 4 + w] = run.from === ZEROS ? 0 : source[run.from / 4 + w]!;
    expect(new Uint32Array(await readBack(device, to!))).toEqual(expected);
  });
});
