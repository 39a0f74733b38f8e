import { UnsupportedModelError } from '../core/errors.ts';
import { floatToHalf, halfToFloat } from '../core/half.ts';
import { type OnnxTensor, TYPE, tensorNumbers } from './onnx-file.ts';
import { type SourceType, sourceRowBytes } from './source.ts';

/** A weight of an export: n rows of k elements, in the simplest of GGUF's types that holds its values exactly. */
export interface OnnxMatrix {
  /** Stored tensors it is made of, for messages, and to see that two uses read the same one. */
  readonly label: string;
  readonly n: number;
  readonly k: number;
  readonly type: SourceType;
  /** Bytes in the export. */
  readonly bytes: number;
  read(): Uint8Array;
}

/** Rows from .. from + n - 1. */
export function sliceRows(matrix: OnnxMatrix, from: number, n: number): OnnxMatrix {
  const row = sourceRowBytes(matrix.type, matrix.k);
  return {
    ...matrix,
    label: `${matrix.label}[${from}..${from + n - 1}]`,
    n,
    bytes: Math.round((matrix.bytes * n) / matrix.n),
    read: () => matrix.read().slice(from * row, (from + n) * row),
  };
}

/** A float tensor [n, k], or [k, n] if `transposed`; a vector is one row. */
export function denseMatrix(tensor: OnnxTensor, transposed: boolean, file: string): OnnxMatrix {
  const [rows, columns] = matrixDims(tensor, file);
  const [n, k] = transposed ? [columns, rows] : [rows, columns];
  const base = { label: tensor.name, n, k, bytes: tensor.elements * (tensor.type === TYPE.FLOAT ? 4 : 2) };
  if (tensor.type === TYPE.FLOAT || tensor.type === TYPE.FLOAT16) {
    const size = tensor.type === TYPE.FLOAT ? 4 : 2;
    const read = () => (transposed ? transpose(tensor.bytes(), rows, columns, size) : tensor.bytes());
    return { ...base, type: tensor.type === TYPE.FLOAT ? 'F32' : 'F16', read };
  }
  if (tensor.type !== TYPE.BFLOAT16)
    throw new UnsupportedModelError(
      `${file}: weight ${tensor.name} has data type ${tensor.type}, not a float`,
      {
        tensor: tensor.name,
      },
    );
  const read = () => {
    const bytes = asBytes(Float32Array.from(tensorNumbers(tensor)));
    return transposed ? transpose(bytes, rows, columns, 4) : bytes;
  };
  return { ...base, type: 'F32', read };
}

export interface AffineWeight {
  /** 8-bit codes [rows, columns]. */
  readonly codes: OnnxTensor;
  /** One value, or one a column, or one a row. */
  readonly scale: OnnxTensor;
  /** Absent: 0. Laid out as `scale`. */
  readonly zeroPoint: OnnxTensor | undefined;
  /** Dimension that several scales run along. */
  readonly axis: 0 | 1;
  /** The product's operand is [k, n]. */
  readonly transposed: boolean;
}

/** value = (code - zeroPoint) * scale, as MatMulInteger and DequantizeLinear define it; decoded to F32. */
export function affineMatrix(weight: AffineWeight, file: string): OnnxMatrix {
  const { codes, scale, zeroPoint, axis, transposed } = weight;
  const [rows, columns] = matrixDims(codes, file);
  const along = axis === 0 ? rows : columns;
  for (const t of [scale, zeroPoint])
    if (t && t.elements !== 1 && t.elements !== along)
      throw new UnsupportedModelError(
        `${file}: ${t.name} has ${t.elements} values for ${along} of ${codes.name}`,
      );
  const [n, k] = transposed ? [columns, rows] : [rows, columns];
  return {
    label: codes.name,
    n,
    k,
    type: 'F32',
    bytes: codes.elements,
    read: () => {
      const code = tensorNumbers(codes);
      const s = tensorNumbers(scale);
      const z = zeroPoint ? tensorNumbers(zeroPoint) : new Float64Array(1);
      const out = new Float32Array(n * k);
      for (let r = 0; r < rows; r++)
        for (let c = 0; c < columns; c++) {
          const i = axis === 0 ? r : c;
          const value = (code[r * columns + c]! - z[z.length === 1 ? 0 : i]!) * s[s.length === 1 ? 0 : i]!;
          out[transposed ? c * rows + r : r * columns + c] = value;
        }
      return asBytes(out);
    },
  };
}

export interface BlockWeight {
  readonly n: number;
  readonly k: number;
  readonly bits: number;
  readonly blockSize: number;
  /** uint8 [n, blocks, blockSize * bits / 8], lower bits first. */
  readonly codes: OnnxTensor;
  /** [n, blocks] */
  readonly scales: OnnxTensor;
  /** Packed like the codes, each row padded to whole bytes, or floats [n, blocks]; absent: 2^(bits - 1). */
  readonly zeroPoints: OnnxTensor | undefined;
}

/**
 * value = (code - zeroPoint) * scale, as MatMulNBits and GatherBlockQuantized define it. Kept in GGUF's Q4_0, Q4_1 or Q8_0
 * where that gives the very same values (scales and minima that fit binary16), else decoded to F32.
 * Source: onnxruntime, docs/ContribOperators.md (com.microsoft.MatMulNBits).
 */
export function blockMatrix(weight: BlockWeight, file: string): OnnxMatrix {
  const { n, k, bits, blockSize, codes, scales } = weight;
  const refuse = (why: string): never => {
    throw new UnsupportedModelError(`${file}: weight ${codes.name} ${why}`, { tensor: codes.name });
  };
  if (bits !== 2 && bits !== 4 && bits !== 8) refuse(`has ${bits}-bit codes; 2, 4 and 8 are supported`);
  if (codes.type !== TYPE.UINT8) refuse(`has data type ${codes.type}; packed codes must be uint8`);
  const blocks = Math.ceil(k / blockSize);
  const blockBytes = (blockSize * bits) / 8;
  if (codes.elements !== n * blocks * blockBytes || scales.elements !== n * blocks)
    refuse(
      `has ${codes.elements} bytes and ${scales.elements} scales; [${n}, ${k}] in blocks of ${blockSize} wants others`,
    );
  const scale = tensorNumbers(scales);
  const zero = zeroPointReader(weight, blocks, refuse);

  const base = {
    label: codes.name,
    n,
    k,
    bytes: codes.elements + scales.elements * (scales.type === TYPE.FLOAT ? 4 : 2),
  };
  const code = (data: Uint8Array, row: number, column: number): number => {
    const bit = (column % blockSize) * bits;
    const byte = data[(row * blocks + Math.floor(column / blockSize)) * blockBytes + (bit >> 3)]!;
    return (byte >> (bit & 7)) & ((1 << bits) - 1);
  };
  const type = k % 32 === 0 && blockSize % 32 === 0 ? exactType(bits, scale, zero, n * blocks) : undefined;
  if (!type)
    return {
      ...base,
      type: 'F32',
      read: () => {
        const data = codes.bytes();
        const out = new Float32Array(n * k);
        for (let row = 0; row < n; row++)
          for (let c = 0; c < k; c++) {
            const block = row * blocks + Math.floor(c / blockSize);
            out[row * k + c] = (code(data, row, c) - zero(block)) * scale[block]!;
          }
        return asBytes(out);
      },
    };
  return {
    ...base,
    type,
    read: () => {
      const data = codes.bytes();
      const size = sourceRowBytes(type, 32);
      const out = new Uint8Array((n * k * size) / 32);
      const view = new DataView(out.buffer);
      for (let i = 0; i < (n * k) / 32; i++) {
        const row = Math.floor((i * 32) / k);
        const column = (i * 32) % k;
        const block = row * blocks + Math.floor(column / blockSize);
        let at = i * size;
        view.setUint16(at, floatToHalf(scale[block]!), true);
        at += 2;
        if (type === 'Q4_1') {
          view.setUint16(at, floatToHalf(-zero(block) * scale[block]!), true);
          at += 2;
        }
        for (let c = 0; c < 32; c++) {
          const value = code(data, row, column + c);
          if (type === 'Q8_0') view.setInt8(at + c, value - 128);
          else out[at + (c & 15)]! |= c < 16 ? value : value << 4;
        }
      }
      return out;
    },
  };
}

function zeroPointReader(
  { n, bits, zeroPoints }: BlockWeight,
  blocks: number,
  refuse: (why: string) => never,
): (block: number) => number {
  if (!zeroPoints) return () => 2 ** (bits - 1);
  if (zeroPoints.type !== TYPE.UINT8) {
    if (zeroPoints.elements !== n * blocks)
      refuse(`has ${zeroPoints.elements} zero points for ${n * blocks} blocks`);
    const values = tensorNumbers(zeroPoints);
    return (block) => values[block]!;
  }
  const rowBytes = Math.ceil((blocks * bits) / 8);
  if (zeroPoints.elements !== n * rowBytes)
    refuse(`has ${zeroPoints.elements} bytes of zero points, not ${n * rowBytes}`);
  const data = zeroPoints.bytes();
  return (block) => {
    const bit = (block % blocks) * bits;
    return (data[Math.floor(block / blocks) * rowBytes + (bit >> 3)]! >> (bit & 7)) & ((1 << bits) - 1);
  };
}

const fitsHalf = (x: number): boolean => halfToFloat(floatToHalf(x)) === x;

function exactType(
  bits: number,
  scale: Float64Array,
  zero: (block: number) => number,
  blocks: number,
): SourceType | undefined {
  const every = (holds: (block: number) => boolean): boolean => {
    for (let b = 0; b < blocks; b++) if (!holds(b)) return false;
    return true;
  };
  if (bits === 2 || !scale.every(fitsHalf)) return undefined;
  if (bits === 8) return every((b) => zero(b) === 128) ? 'Q8_0' : undefined;
  if (!every((b) => fitsHalf(-zero(b) * scale[b]!))) return undefined;
  return every((b) => zero(b) === 8) ? 'Q4_0' : 'Q4_1';
}

function matrixDims(tensor: OnnxTensor, file: string): [number, number] {
  if (tensor.dims.length === 1) return [1, tensor.dims[0]!];
  if (tensor.dims.length === 2) return [tensor.dims[0]!, tensor.dims[1]!];
  throw new UnsupportedModelError(
    `${file}: weight ${tensor.name} is [${tensor.dims.join(', ')}], not a matrix`,
    {
      tensor: tensor.name,
    },
  );
}

const asBytes = (values: Float32Array): Uint8Array =>
  new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

function transpose(bytes: Uint8Array, rows: number, columns: number, size: 2 | 4): Uint8Array {
  const copy = bytes.slice();
  const from = size === 4 ? new Uint32Array(copy.buffer) : new Uint16Array(copy.buffer);
  const to = size === 4 ? new Uint32Array(from.length) : new Uint16Array(from.length);
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) to[c * rows + r] = from[r * columns + c]!;
  return new Uint8Array(to.buffer);
}
