import { pad16, pad4 } from './half';

/** The groups of a record; layout: src/kernels/layout.ts. */

export const TIERS = 13;
export const DROP = 15;
/** Tiers from here on are plain. */
const PLAIN = 11;
const K_BITS: usize = memory.data<u8>([32, 16, 8, 8, 4, 4, 4, 3, 3, 2, 2, 8, 4]);
const V_BITS: usize = memory.data<u8>([32, 16, 8, 4, 4, 3, 2, 3, 2, 2, 1, 8, 4]);
/** By tier, for the head dimension last used: bytes of 4 tokens' keys and values, of a cell's scales. */
const K_BLOCK: usize = memory.data(32, 16);
const V_BLOCK: usize = memory.data(32, 16);
const K_SCALE: usize = memory.data(16, 16);
const V_SCALE: usize = memory.data(16, 16);
let tabled: i32 = 0;

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
// @ts-ignore: decorator
@inline
export function isPlain(id: i32): bool {
  return id >= PLAIN;
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

/** Bytes of a cell's scale in one half. */
export function scaleBytes(id: i32, bits: i32, headDim: i32): i32 {
  if (isPlain(id)) return ((headDim + 31) >> 5) << 1;
  return bits > 8 ? 0 : bits == 8 ? 2 : 1;
}

function setTables(headDim: i32): void {
  for (let id = 0; id < TIERS; id++) {
    const at = <usize>id;
    store<u16>(K_BLOCK + (at << 1), <u16>halfBlockBytes(kBitsOf(id), headDim));
    store<u16>(V_BLOCK + (at << 1), <u16>halfBlockBytes(vBitsOf(id), headDim));
    store<u8>(K_SCALE + at, <u8>scaleBytes(id, kBitsOf(id), headDim));
    store<u8>(V_SCALE + at, <u8>scaleBytes(id, vBitsOf(id), headDim));
  }
  tabled = headDim;
}

/** One tier's cells: addresses of scales and half blocks; `cell` counts from the record's first. */
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

/** Results of the last openRecord: addresses of the mean, of the tier map (0: all tokens share a tier), of the end; cells. */
export let recordMean: usize = 0;
export let recordMap: usize = 0;
export let recordEnd: usize = 0;
export let recordCells: i32 = 0;

/** Fills `table` (16 entries) with a record's groups, which its first bytes tell: present tiers, counts. @returns their number */
export function openRecord(record: usize, tokens: i32, headDim: i32, table: usize): i32 {
  if (tabled != headDim) setTables(headDim);
  const present = <i32>load<u16>(record);
  const found = popcnt(present);
  let counts = record + 8;
  const mean = record + <usize>pad4(8 + found);
  const plain = present >> PLAIN != 0;
  let map = mean + (plain ? 0 : <usize>headDim);
  const first = <i32>load<u8>(counts);
  const mapped = found > 1 || first < tokens;
  let scale = map + (mapped ? <usize>pad4((tokens + 1) >> 1) : 0);
  if (!mapped) map = 0;
  let cell = 0;
  let code: usize = 0;
  let index = 0;
  for (let left = present; left != 0; left &= left - 1) {
    const id = ctz(left);
    const n = <i32>load<u8>(counts++);
    const n4 = pad4(n);
    const blocks = <usize>(n4 >> 2);
    const g = groupAt(table, index++);
    g.id = id;
    g.n = n;
    g.n4 = n4;
    g.cell = cell;
    g.kScale = scale;
    scale += <usize>n4 * <usize>load<u8>(K_SCALE + <usize>id);
    g.vScale = scale;
    scale += <usize>n4 * <usize>load<u8>(V_SCALE + <usize>id);
    // From the first code's place, which is known when all scales are.
    g.k = code;
    code += blocks * <usize>load<u16>(K_BLOCK + (<usize>id << 1));
    g.v = code;
    code += blocks * <usize>load<u16>(V_BLOCK + (<usize>id << 1));
    cell += n4;
  }
  const codes = record + <usize>pad16(<i32>(scale - record));
  for (let i = 0; i < found; i++) {
    const g = groupAt(table, i);
    g.k += codes;
    g.v += codes;
  }
  recordMean = mean;
  recordMap = map;
  recordEnd = codes + code;
  recordCells = cell;
  return found;
}

let touched: u32 = 0;
/**
 * Reads what says how the records of `count` segments lie, of all heads at once: misses wait together, not one after the other. Codes follow
 * in order, and are fetched ahead by themselves.
 */
export function touchRecords(segments: usize, count: i32, kvHeads: i32): void {
  const end = segments + (<usize>count << 2);
  let any: u32 = 0;
  for (let at = segments; at < end; at += 4) any |= load<u32>(<usize>load<u32>(at));
  for (let at = segments; at < end; at += 4) {
    const block = <usize>load<u32>(at);
    for (let h = 0; h < kvHeads; h++) {
      // An empty record's offset is 0: then its block is read.
      const record = block + load<u32>(block + 12 + (<usize>h << 2));
      any |= load<u32>(record) | load<u32>(record, 64) | load<u32>(record, 128) | load<u32>(record, 192) | load<u32>(record, 256) | load<u32>(record, 320);
    }
  }
  touched = any;
}

/** Cells of a record. */
export function cellsOf(record: usize): i32 {
  let cells = 0;
  const found = popcnt(<i32>load<u16>(record));
  for (let i = 0; i < found; i++) cells += pad4(<i32>load<u8>(record + <usize>i, 8));
  return cells;
}
