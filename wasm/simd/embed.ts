import { hadamard64 } from './activation';
import { fineRows } from './matmul-q6h';

/** out f32 [count, k]: rows ids u32 [count] of a table in one of the forms; values as unpackWeight gives them, in f32 arithmetic. */
export function embedF32(table: usize, k: i32, ids: usize, count: i32, out: usize): void {
  const bytes = <usize>k << 2;
  for (; count > 0; count--) {
    memory.copy(out, table + <usize>load<u32>(ids) * bytes, bytes);
    ids += 4;
    out += bytes;
  }
}

// @ts-ignore: decorator
@inline
function half(at: usize): f32 {
  const bits = <u32>load<u16>(at);
  const magnitude = reinterpret<f32>((bits & 0x7fff) << 13) * reinterpret<f32>(0x77800000);
  return reinterpret<f32>(reinterpret<u32>(magnitude) | ((bits & 0x8000) << 16));
}

export function embedQ41(table: usize, k: i32, ids: usize, count: i32, out: usize): void {
  for (; count > 0; count--) {
    const id = load<u32>(ids);
    const lane = <usize>(id & 3);
    let at = table + <usize>(id >> 2) * <usize>(k >> 5) * 80;
    for (let b = 0; b < k; b += 32) {
      const scale = half(at + lane * 2);
      const minimum = half(at + 8 + lane * 2);
      for (let c: usize = 0; c < 32; c++) {
        const byte = <i32>load<u8>(at + 16 + (c >> 3) * 16 + (c & 3) * 4 + lane);
        f32.store(out + c * 4, scale * <f32>(c & 4 ? byte >> 4 : byte & 15) + minimum);
      }
      at += 80;
      out += 128;
    }
    ids += 4;
  }
}

export function embedQ80(table: usize, k: i32, ids: usize, count: i32, out: usize): void {
  for (; count > 0; count--) {
    const id = load<u32>(ids);
    const lane = <usize>(id & 3);
    let at = table + <usize>(id >> 2) * <usize>(k >> 5) * 136;
    for (let b = 0; b < k; b += 32) {
      const scale = half(at + lane * 2);
      for (let c: usize = 0; c < 32; c++) f32.store(out + c * 4, scale * <f32>load<i8>(at + 8 + c * 4 + lane));
      at += 136;
      out += 128;
    }
    ids += 4;
  }
}

// @ts-ignore: decorator
@inline
function gridValue(word: u32, byte: u32): f32 {
  return reinterpret<f32>(word & 0xffff0000) * <f32>((<i32>(word << 16) >> 16) + byte);
}

export function embedQ4r(table: usize, k: i32, ids: usize, count: i32, out: usize): void {
  for (; count > 0; count--) {
    const id = load<u32>(ids);
    const lane = <usize>(id & 7);
    const group = table + <usize>(id >> 3) * (64 + <usize>(k >> 5) * 144);
    const scaleGrid = load<u32>(group + lane * 4);
    const minimumGrid = load<u32>(group + 32 + lane * 4);
    let at = group + 64;
    for (let b = 0; b < k; b += 32) {
      const scale = gridValue(scaleGrid, load<u8>(at + lane));
      const minimum = gridValue(minimumGrid, load<u8>(at + 8 + lane));
      const codes = at + 16 + (lane >> 2) * 64 + (lane & 3) * 4;
      for (let c: usize = 0; c < 32; c++) {
        const byte = <i32>load<u8>(codes + (c >> 3) * 16 + (c & 3));
        f32.store(out + c * 4, scale * <f32>(c & 4 ? byte >> 4 : byte & 15) + minimum);
      }
      at += 144;
      out += 128;
    }
    ids += 4;
  }
}

export function embedQ6h(table: usize, n: i32, k: i32, ids: usize, count: i32, out: usize): void {
  const groupBytes: usize = 64 + <usize>(k >> 6) * 400;
  const groups = table + (<usize>k << 2);
  const residuals = groups + <usize>((n + 7) >> 3) * groupBytes;
  for (; count > 0; count--) {
    const id = load<u32>(ids);
    const group = groups + <usize>(id >> 3) * groupBytes;
    const share = f32.load(group + <usize>(id & 7) * 4, 32);
    for (let c: usize = 0; c < <usize>k << 2; c += 4) f32.store(out + c, share * f32.load(table + c));
    addCodes(group, id, k, out);
    if (<i32>id < fineRows(n)) addCodes(residuals + <usize>(id >> 3) * groupBytes, id, k, out);
    for (let c = 0; c < k; c += 64) {
      hadamard64(out);
      out += 256;
    }
    ids += 4;
  }
}

/** out += scale * (code - zero / 4) of one row of a q6h group. */
function addCodes(group: usize, id: u32, k: i32, out: usize): void {
  const lane = <usize>(id & 7);
  const grid = load<u32>(group + lane * 4);
  let at = group + 64;
  for (let b = 0; b < k; b += 64) {
    const scale = gridValue(grid, load<u8>(at + lane));
    const zero = <f32>load<u8>(at + 8 + lane) * <f32>0.25;
    const codes = at + 16 + (lane >> 2) * 192 + (lane & 3) * 4;
    for (let c: usize = 0; c < 64; c++) {
      const set = codes + (c >> 4) * 48 + (c & 3);
      const step = (c >> 2) & 3;
      const code =
        step < 3
          ? <i32>load<u8>(set + (step << 4)) & 63
          : ((<i32>load<u8>(set) >> 6) << 4) | ((<i32>load<u8>(set, 16) >> 6) << 2) | (<i32>load<u8>(set, 32) >> 6);
      f32.store(out + c * 4, f32.load(out + c * 4) + scale * (<f32>code - zero));
    }
    at += 400;
    out += 256;
  }
}
