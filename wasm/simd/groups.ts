import { pad16, pad4 } from './half';

/** The groups of a record; layout: src/kernels/layout.ts. */

export const TIERS = 11;
export const DROP = 15;
export const K_BITS: usize = memory.data<u8>([32, 16, 8, 8, 4, 4, 4, 3, 3, 2, 2]);
export const V_BITS: usize = memory.data<u8>([32, 16, 8, 4, 4, 3, 2, 3, 2, 2, 1]);

// @ts-ignore: decorator
@inline
export function kBitsOf(id: i32): i32 {
  return load<u8>(K_BITS + <usize>id);
}
// @ts-ignore: decorator
@inline
export function vBitsOf(id: i32): i32 {
  return load<u8>(V_BITS + <usize>id);
}

/** Bytes of 4 tokens' keys or values. */
export function halfBlockBytes(bits: i32, headDim: i32): i32 {
  const chunks = headDim >> 2;
  if (bits == 32) return headDim << 4;
  if (bits == 16) return headDim << 3;
  if (bits == 8) return chunks << 4;
  if (bits == 4) return ((chunks + 1) >> 1) << 4;
  if (bits == 3) return (((chunks + 3) >> 2) + ((chunks + 7) >> 3)) << 4;
  if (bits == 2) return ((chunks + 3) >> 2) << 4;
  return ((chunks + 7) >> 3) << 4;
}

// @ts-ignore: decorator
@inline
export function meanOffset(tokens: i32): i32 {
  return 16 + pad16((tokens + 1) >> 1);
}

/** One tier's cells: addresses of scales (0 if it has none) and half blocks; `cell` counts from the record's first. */
@unmanaged
export class Group {
  id: i32;
  n: i32;
  n4: i32;
  cell: i32;
  kScale: usize;
  vScale: usize;
  k: usize;
  v: usize;
}
const GROUP_BYTES: usize = 32;

// @ts-ignore: decorator
@inline
export function groupAt(table: usize, index: i32): Group {
  return changetype<Group>(table + <usize>index * GROUP_BYTES);
}

/** Fills `table` (16 entries) with a record's groups. @returns their number; GROUP_END is then the record's end, GROUP_CELLS its cells. */
export function openRecord(record: usize, counts: usize, tokens: i32, headDim: i32, table: usize): i32 {
  let at = record + <usize>(meanOffset(tokens) + pad16(headDim << 1));
  let cell = 0;
  let found = 0;
  for (let id = 0; id < TIERS; id++) {
    const n = <i32>load<u8>(counts + <usize>id);
    if (n == 0) continue;
    const g = groupAt(table, found++);
    const n4 = pad4(n);
    const blocks = n4 >> 2;
    const scaleBytes = <usize>pad16(n4 << 1);
    g.id = id;
    g.n = n;
    g.n4 = n4;
    g.cell = cell;
    g.kScale = 0;
    g.vScale = 0;
    if (kBitsOf(id) <= 8) {
      g.kScale = at;
      at += scaleBytes;
    }
    if (vBitsOf(id) <= 8) {
      g.vScale = at;
      at += scaleBytes;
    }
    g.k = at;
    at += <usize>(blocks * halfBlockBytes(kBitsOf(id), headDim));
    g.v = at;
    at += <usize>(blocks * halfBlockBytes(vBitsOf(id), headDim));
    cell += n4;
  }
  groupEnd = at;
  groupCells = cell;
  return found;
}
/** Results of the last openRecord. */
export let groupEnd: usize = 0;
export let groupCells: i32 = 0;

export function cellsOf(counts: usize): i32 {
  let cells = 0;
  for (let id = 0; id < TIERS; id++) cells += pad4(<i32>load<u8>(counts + <usize>id));
  return cells;
}
