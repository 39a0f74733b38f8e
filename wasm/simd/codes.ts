import { halfBlockBytes } from './groups';
import { lookUp } from './unpack';

/** Codes of 4 tokens, one byte a channel; headDim <= CODES_PITCH. */
export const CODES: usize = memory.data(2048, 16);
export const CODES_PITCH: usize = 512;
/** Stands for a cell that nothing is taken from. */
export const NO_CELL: usize = memory.data(2048, 16);
/** Reads a chunk of values by token: bytes (channel, token) -> (token, channel), and back. */
const TRANSPOSE: usize = memory.data<u8>([0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15], 16);
/**
 * Moves the byte of token l to that of token j within each channel of 4 tokens, all others becoming 0: 16 bytes at (l * 4 + j). Indices above 127 give 0
 * with the relaxed and the strict instruction.
 */
const TO_TOKEN: usize = memory.data(256, 16);
for (let l = 0; l < 4; l++)
  for (let j = 0; j < 4; j++)
    for (let i = 0; i < 16; i++)
      store<u8>(TO_TOKEN + <usize>(((l << 2) + j) << 4) + <usize>i, (i & 3) == j ? <u8>((i & ~3) + l) : 255);

/**
 * Puts 4 cells of half blocks of the same bits together: codes stay as they are. `from0` ...: where the cells' half blocks begin, NO_CELL for none;
 * `at0` ...: their places therein.
 * @param join whether cells that are in the half block already stay (they are zero elsewhere)
 */
export function gatherCells(
  keys: bool,
  bytes: usize,
  from0: usize,
  at0: i32,
  from1: usize,
  at1: i32,
  from2: usize,
  at2: i32,
  from3: usize,
  at3: i32,
  to: usize,
  join: bool,
): void {
  const end = to + bytes;
  if (from1 == from0 && from2 == from0 && from3 == from0 && at0 == 0 && at1 == 1 && at2 == 2 && at3 == 3) {
    for (; to < end; to += 16) {
      v128.store(to, v128.load(from0));
      from0 += 16;
    }
    return;
  }
  if (keys) {
    from0 += <usize>at0 << 2;
    from1 += <usize>at1 << 2;
    from2 += <usize>at2 << 2;
    from3 += <usize>at3 << 2;
    for (; to < end; to += 16) {
      let x = v128.load32_zero(from0);
      x = v128.load32_lane(from1, x, 1);
      x = v128.load32_lane(from2, x, 2);
      x = v128.load32_lane(from3, x, 3);
      v128.store(to, join ? v128.or(v128.load(to), x) : x);
      from0 += 16;
      from1 += 16;
      from2 += 16;
      from3 += 16;
    }
    return;
  }
  const move0 = v128.load(TO_TOKEN + <usize>(at0 << 6));
  const move1 = v128.load(TO_TOKEN + <usize>((at1 << 6) + 16));
  const move2 = v128.load(TO_TOKEN + <usize>((at2 << 6) + 32));
  const move3 = v128.load(TO_TOKEN + <usize>((at3 << 6) + 48));
  for (; to < end; to += 16) {
    const low = v128.or(lookUp(v128.load(from0), move0), lookUp(v128.load(from1), move1));
    const high = v128.or(lookUp(v128.load(from2), move2), lookUp(v128.load(from3), move3));
    const x = v128.or(low, high);
    v128.store(to, join ? v128.or(v128.load(to), x) : x);
    from0 += 16;
    from1 += 16;
    from2 += 16;
    from3 += 16;
  }
}

/** One token's codes, a byte a channel. */
export function readCodes(keys: bool, bits: i32, blocks: usize, cell: i32, headDim: i32, to: usize): void {
  const block = blocks + <usize>(cell >> 2) * <usize>halfBlockBytes(bits, headDim);
  const chunks = headDim >> 2;
  if (bits == 3) {
    readPlane(keys, 2, 0, block, cell & 3, chunks, to);
    readPlane(keys, 1, 2, block + (<usize>((chunks + 3) >> 2) << 4), cell & 3, chunks, to);
  } else readPlane(keys, bits, 0, block, cell & 3, chunks, to);
}
/** `bits` bits of each code at `up`; the plane at 0 comes first and overwrites. */
function readPlane(keys: bool, bits: i32, up: i32, from: usize, token: i32, chunks: i32, to: usize): void {
  const per = 8 / bits;
  const mask: u32 = <u32>((1 << bits) - 1) * 0x01010101;
  for (let c = 0; c < chunks; c += per) {
    let x: u32;
    if (keys) x = load<u32>(from + (<usize>token << 2));
    else {
      const p = from + <usize>token;
      x = <u32>load<u8>(p) | (<u32>load<u8>(p, 4) << 8) | (<u32>load<u8>(p, 8) << 16) | (<u32>load<u8>(p, 12) << 24);
    }
    const n = min(per, chunks - c);
    for (let j = 0; j < n; j++) {
      const code = ((x >> (j * bits)) & mask) << up;
      store<u32>(to, up ? load<u32>(to) | code : code);
      to += 4;
    }
    from += 16;
  }
}

/** Packs CODES into a half block. */
export function packCodes(keys: bool, bits: i32, headDim: i32, to: usize): void {
  const chunks = headDim >> 2;
  if (bits == 3) {
    packPlane(keys, 2, 0, chunks, to);
    packPlane(keys, 1, 2, chunks, to + (<usize>((chunks + 3) >> 2) << 4));
  } else packPlane(keys, bits, 0, chunks, to);
}
function packPlane(keys: bool, bits: i32, down: i32, chunks: i32, to: usize): void {
  const per = 8 / bits;
  const mask = i32x4.splat(((1 << bits) - 1) * 0x01010101);
  const transpose = v128.load(TRANSPOSE);
  let from = CODES;
  for (let c = 0; c < chunks; c += per) {
    let all = i32x4.splat(0);
    const n = min(per, chunks - c);
    for (let j = 0; j < n; j++) {
      let x = v128.load32_zero(from);
      x = v128.load32_lane(from + CODES_PITCH, x, 1);
      x = v128.load32_lane(from + CODES_PITCH * 2, x, 2);
      x = v128.load32_lane(from + CODES_PITCH * 3, x, 3);
      if (!keys) x = lookUp(x, transpose);
      all = v128.or(all, i32x4.shl(v128.and(i32x4.shr_u(x, down), mask), j * bits));
      from += 4;
    }
    v128.store(to, all);
    to += 16;
  }
}
