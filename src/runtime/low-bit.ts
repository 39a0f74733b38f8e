import { UnsupportedModelError } from '../core/errors.ts';
import { halfToFloat } from '../core/half.ts';
import type { WeightForm } from '../kernels/kernels.ts';
import type { GraphNode } from './graph.ts';

/**
 * Lowers weights to what onnxruntime's own low-bit operators read, for hosts where those are fast (WebGPU; on WASM they decode a whole matrix at each
 * call). The values are those of the form, exactly:
 * - q8_0: MatMulNBits and GatherBlockQuantized with 8-bit codes + 128, whose default zero point is 128
 * - q4_1: scale * code + minimum. MatMulNBits' zero point is an integer and cannot hold the minimum, so it is 0, and a small
 *   product adds the minima: x w^T = MatMulNBits(x, codes, scales, 0) + blockSums(x) minima^T, where blockSums adds up every 32 channels of x.
 */
const BLOCK = 32;

/** Whether a node's weight of this form is lowered so; every other weight is decoded to f32. */
export const isLowBit = (op: string, form: WeightForm): boolean =>
  op === 'Gather'
    ? form === 'q8_0'
    : (op === 'MatMul' || op === 'MatMulNBits') && (form === 'q4_1' || form === 'q8_0');

/** A stock input that stands for a part of a logical weight: `weight/part`. */
export interface WeightPart {
  readonly name: string;
  readonly type: 'uint8' | 'float32';
  readonly dims: readonly number[];
}

/** The inputs of the product with weight [n, k], in MatMulNBits' order; the minima, where there are any, last. */
export function productParts(weight: string, form: WeightForm, n: number, k: number): WeightPart[] {
  const blocks = k / BLOCK;
  const part = (name: string, type: WeightPart['type'], ...dims: number[]): WeightPart => ({
    name: `${weight}/${name}`,
    type,
    dims,
  });
  if (form === 'q8_0')
    return [part('codes', 'uint8', n, blocks, BLOCK), part('scales', 'float32', n * blocks)];
  if (form === 'q4_1')
    return [
      part('codes', 'uint8', n, blocks, BLOCK / 2),
      part('scales', 'float32', n * blocks),
      part('zeros', 'uint8', n * Math.ceil(blocks / 2)),
      part('minima', 'float32', blocks, n),
    ];
  throw new UnsupportedModelError(`weight ${weight} is ${form}, which no low-bit operator reads`, {
    weight,
    form,
  });
}

/** The inputs of the look-up of rows, codes first. */
export const tableParts = (weight: string, n: number, k: number): WeightPart[] => [
  { name: `${weight}/table`, type: 'uint8', dims: [n, k] },
  { name: `${weight}/table_scales`, type: 'float32', dims: [n, k / BLOCK] },
];

/** Bytes of all parts of a weight, by name, from the kernels' layout (weights.ts). */
export function partData(
  weight: string,
  form: WeightForm,
  bytes: Uint8Array,
  n: number,
  k: number,
): Record<string, Uint8Array | Float32Array> {
  const blocks = k / BLOCK;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const scales = new Float32Array(n * blocks);
  const codes = new Uint8Array(form === 'q8_0' ? n * k : (n * k) / 2);
  const minima = new Float32Array(form === 'q4_1' ? n * blocks : 0);
  const groupBytes = form === 'q8_0' ? 136 : 80;
  for (let row = 0; row < n; row++)
    for (let b = 0; b < blocks; b++) {
      const lane = row & 3;
      const at = ((row >> 2) * blocks + b) * groupBytes;
      const block = row * blocks + b;
      scales[block] = halfToFloat(view.getUint16(at + lane * 2, true));
      if (form === 'q8_0') {
        for (let c = 0; c < BLOCK; c++) codes[block * BLOCK + c] = view.getInt8(at + 8 + c * 4 + lane) + 128;
        continue;
      }
      minima[b * n + row] = halfToFloat(view.getUint16(at + 8 + lane * 2, true));
      for (let c = 0; c < BLOCK; c++) {
        const byte = bytes[at + 16 + (c >> 3) * 16 + (c & 3) * 4 + lane]!;
        const code = c & 4 ? byte >> 4 : byte & 15;
        codes[(block * BLOCK + c) >> 1]! |= c & 1 ? code << 4 : code;
      }
    }
  if (form === 'q8_0')
    return {
      ...{ [`${weight}/codes`]: codes, [`${weight}/scales`]: scales },
      ...{ [`${weight}/table`]: codes, [`${weight}/table_scales`]: scales },
    };
  const zeros = new Uint8Array(n * Math.ceil(blocks / 2));
  return {
    ...{ [`${weight}/codes`]: codes, [`${weight}/scales`]: scales },
    ...{ [`${weight}/zeros`]: zeros, [`${weight}/minima`]: minima },
  };
}

/** Constants that the nodes of `lowBitProduct` share: the shape that splits a row into blocks, and the axis within one. */
export const lowBitConstants = (k: number): Record<string, readonly number[]> => ({
  [`blocks_of_${k}`]: [-1, k / BLOCK, BLOCK],
  within_a_block: [2],
});

/** Stock nodes of a product with a low-bit weight [n, k]. */
export function lowBitProduct(node: GraphNode, form: WeightForm, n: number, k: number): GraphNode[] {
  const [x, weight] = node.inputs as [string, string];
  const [output] = node.outputs as [string];
  const parts = productParts(weight, form, n, k).map((part) => part.name);
  const bits = form === 'q8_0' ? 8 : 4;
  const product: GraphNode = {
    name: node.name,
    op: 'MatMulNBits',
    domain: 'com.microsoft',
    inputs: [x, ...parts.slice(0, 3)],
    outputs: [output],
    // Level 1: float32 activations.
    attributes: { K: k, N: n, bits, block_size: BLOCK, accuracy_level: 1 },
  };
  if (form === 'q8_0') return [product];
  const step = (name: string, op: string, inputs: string[], attributes: GraphNode['attributes'] = {}) => ({
    ...{ name: `${node.name}/${name}`, op, domain: '', inputs, outputs: [`${output}/${name}`], attributes },
  });
  return [
    { ...product, outputs: [`${output}/codes`] },
    step('blocks', 'Reshape', [x, `blocks_of_${k}`]),
    step('sums', 'ReduceSum', [`${output}/blocks`, 'within_a_block'], { keepdims: 0 }),
    step('minima', 'MatMul', [`${output}/sums`, parts[3]!]),
    {
      ...step('sum', 'Add', [`${output}/codes`, `${output}/minima`]),
      outputs: [output],
    },
  ];
}

/** The look-up of rows in a q8_0 table. */
export function lowBitGather(node: GraphNode, n: number, k: number): GraphNode {
  const [weight, ids] = node.inputs as [string, string];
  const [codes, scales] = tableParts(weight, n, k).map((part) => part.name) as [string, string];
  return {
    name: node.name,
    op: 'GatherBlockQuantized',
    domain: 'com.microsoft',
    inputs: [codes, ids, scales],
    outputs: node.outputs,
    attributes: { bits: 8, block_size: BLOCK, gather_axis: 0, quantize_axis: 1 },
  };
}
