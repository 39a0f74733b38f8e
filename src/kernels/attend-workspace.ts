/**
 * How `attend` spends its workspace. It works on tiles of queries (a query is one row and head of a kvHead's group), so that a
 * tile's scores over every cell stay within TARGET bytes; only four queries over more than 125,000 cells would need more.
 */
export const WORKSPACE_LIMIT = 4_000_000;
/** Scores beyond this leave the second-level cache, and unpacking is amortised long before. */
const TARGET = 2_000_000;
/** The most cells of a record: 128 tokens in up to 11 tiers, each padded to 4. */
const PIECE_CELLS = 160;

const pad4 = (n: number): number => (n + 3) & ~3;
const pad16 = (n: number): number => (n + 15) & ~15;
const pad32 = (n: number): number => (n + 31) & ~31;

/** Bytes that do not depend on the tile: unpacked keys or values (128 cells of int16, a record's of int8, 64 of float32), scales, mean. */
const fixedBytes = (headDim: number): number =>
  128 * pad32(headDim) * 2 + PIECE_CELLS * 4 + pad16(headDim * 4) + 64;

/** Bytes a query takes: scores, scaled query as float32, int16 and int8, output, weights of a record's cells, and eight scalars. */
const queryBytes = (headDim: number, cells: number): number =>
  pad16(cells * 4) + 16 + pad16(headDim * 4) * 2 + pad16(headDim * 2) + pad16(headDim) + PIECE_CELLS * 4 + 32;

/** Contract: kernels.ts. `cells` counts padded cells of a kvHead's records, and the exact part's capacity. */
export function attendWorkspaceBytes(a: {
  rows: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  cells: number;
}): number {
  const queries = pad4(a.rows * (a.heads / a.kvHeads));
  const each = queryBytes(a.headDim, pad4(a.cells));
  const fixed = fixedBytes(a.headDim);
  // Queries go by four.
  return fixed + each * Math.max(4, Math.min(queries, Math.floor((TARGET - fixed) / each) & ~3));
}
