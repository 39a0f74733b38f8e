import onnxProto from 'onnx-proto';
import { UnsupportedModelError } from '../core/errors.ts';
import type { WeightForm } from '../kernels/kernels.ts';
import type { GraphNode } from './graph.ts';
import {
  isLowBit,
  lowBitConstants,
  lowBitGather,
  lowBitProduct,
  productParts,
  tableParts,
  type WeightPart,
} from './low-bit.ts';
import type { Stage } from './partition.ts';

const { onnx } = onnxProto;
const { FLOAT, INT64, UINT8 } = onnx.TensorProto.DataType;

/** ONNX 1.16: the newest operator set without types that onnx-proto 8 does not know. */
const IR_VERSION = 10;
const OPSET = 21;

/** Attributes whose type is float even where their value is a whole number. https://onnx.ai/onnx/operators/ */
const FLOAT_ATTRIBUTES: ReadonlySet<string> = new Set(['alpha', 'beta', 'epsilon', 'gamma', 'scale']);

/** The shape of a stored tensor: [n, k] for a matrix or a table, [dim] for a vector. */
export type ShapeOf = (weight: string) => readonly number[];

export interface StageModelOptions {
  /** The form of each weight: q4_1 and q8_0 are then lowered to low-bit operators (low-bit.ts). Absent: all weights are f32. */
  readonly formOf?: (weight: string) => WeightForm;
}

/**
 * Lowers a stage of kind 'ort' to a serialised ONNX model. Values are f32 [rows, width] with `rows` free, token ids int64 [rows].
 * Every logical weight becomes one f32 initialiser of its logical shape, whose bytes are *external*: location = the
 * weight's name, so that a host hands them in from the shards it already has (OrtRunner.load) and the model itself stays
 * a few kilobytes. Products with a weight [n, k] become Gemm with transB, which reads it as it is stored.
 * Deterministic: the same stage gives the same bytes.
 * @throws UnsupportedModelError when a node cannot be expressed so.
 */
export function stageModel(stage: Stage, shapeOf: ShapeOf, options: StageModelOptions = {}): Uint8Array {
  const lowered = lower(stage, shapeOf, options.formOf ?? (() => 'f32'));
  const ids = new Set(stage.nodes.filter((node) => node.op === 'Gather').map((node) => node.inputs[1]!));
  const model = onnx.ModelProto.fromObject({
    irVersion: IR_VERSION,
    producerName: 'adkvc',
    opsetImport: [
      { domain: '', version: OPSET },
      { domain: 'com.microsoft', version: 1 },
    ],
    graph: {
      name: 'stage',
      node: lowered.nodes.map(protoNode),
      initializer: [
        ...lowered.parts.map(externalTensor),
        ...Object.entries(lowered.constants).map(([name, values]) => ({
          ...{ name, dims: [values.length], dataType: INT64, int64Data: [...values] },
        })),
      ],
      input: stage.inputs.map((name) =>
        ids.has(name) ? valueInfo(name, INT64, ['rows']) : valueInfo(name, FLOAT, ['rows', undefined]),
      ),
      output: stage.outputs.map((name) => valueInfo(name, FLOAT, ['rows', undefined])),
    },
  });
  return onnx.ModelProto.encode(model).finish();
}

/** The models of the stages of kind 'ort', in order: what prepare writes into a bundle, so that its hosts need no protobuf. */
export const stageModels = (
  stages: readonly Stage[],
  shapeOf: ShapeOf,
  options: StageModelOptions = {},
): Uint8Array[] =>
  stages.filter((stage) => stage.kind === 'ort').map((stage) => stageModel(stage, shapeOf, options));

interface Lowered {
  readonly nodes: GraphNode[];
  readonly parts: WeightPart[];
  readonly constants: Record<string, readonly number[]>;
}

function lower(stage: Stage, shapeOf: ShapeOf, formOf: (weight: string) => WeightForm): Lowered {
  const weights = new Set(stage.weights);
  const parts = new Map<string, WeightPart>();
  const constants: Record<string, readonly number[]> = {};
  const nodes = stage.nodes.flatMap((node) => {
    const isProduct = node.op === 'MatMul' || node.op === 'MatMulNBits';
    const weight = isProduct ? node.inputs[1]! : node.op === 'Gather' ? node.inputs[0]! : '';
    if (isProduct && (node.inputs.length !== 2 || !weights.has(weight) || weights.has(node.inputs[0]!)))
      throw new UnsupportedModelError(
        `node ${node.name}: ${node.op} is supported between a value and a weight, has (${node.inputs.join(', ')})`,
        { node: node.name, op: node.op },
      );
    const form = weights.has(weight) ? formOf(weight) : 'f32';
    const [n, k] = form === 'f32' ? [0, 0] : (shapeOf(weight) as [number, number]);
    if (isProduct && isLowBit(node.op, form)) {
      for (const part of productParts(weight, form, n, k)) parts.set(part.name, part);
      if (form === 'q4_1') Object.assign(constants, lowBitConstants(k));
      return lowBitProduct(node, form, n, k);
    }
    if (node.op === 'Gather' && isLowBit(node.op, form)) {
      for (const part of tableParts(weight, n, k)) parts.set(part.name, part);
      return [lowBitGather(node, n, k)];
    }
    for (const name of node.inputs)
      if (weights.has(name)) parts.set(name, { name, type: 'float32', dims: shapeOf(name) });
    return [isProduct ? { ...node, op: 'Gemm', domain: '', attributes: { transB: 1 } } : node];
  });
  return { nodes, parts: [...parts.values()], constants };
}

const protoNode = (node: GraphNode): object => ({
  name: node.name,
  opType: node.op,
  domain: node.domain,
  input: [...node.inputs],
  output: [...node.outputs],
  attribute: Object.entries(node.attributes).map(([name, value]) => attribute(name, value)),
});

function attribute(name: string, value: number | string | readonly number[]): object {
  const { FLOAT, INT, STRING, INTS } = onnx.AttributeProto.AttributeType;
  if (typeof value === 'string') return { name, type: STRING, s: new TextEncoder().encode(value) };
  if (typeof value !== 'number') return { name, type: INTS, ints: [...value] };
  if (FLOAT_ATTRIBUTES.has(name) || !Number.isInteger(value)) return { name, type: FLOAT, f: value };
  return { name, type: INT, i: value };
}

function externalTensor({ name, type, dims }: WeightPart): object {
  const bytes = dims.reduce((a, b) => a * b, type === 'uint8' ? 1 : 4);
  return {
    name,
    dims: [...dims],
    dataType: type === 'uint8' ? UINT8 : FLOAT,
    dataLocation: onnx.TensorProto.DataLocation.EXTERNAL,
    externalData: [
      { key: 'location', value: name },
      { key: 'offset', value: '0' },
      { key: 'length', value: String(bytes) },
    ],
  };
}

const valueInfo = (name: string, elemType: number, dims: readonly (string | undefined)[]): object => ({
  name,
  type: {
    tensorType: { elemType, shape: { dim: dims.map((dim) => (dim === undefined ? {} : { dimParam: dim })) } },
  },
});
