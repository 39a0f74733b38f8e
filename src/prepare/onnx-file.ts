import { closeSync, openSync, readFileSync, readSync, statSync } from 'node:fs';
import { basename, dirname, isAbsolute, join, normalize } from 'node:path';
import onnxProto from 'onnx-proto';
import { CorruptDataError, UnsupportedModelError } from '../core/errors.ts';
import { halfToFloat } from '../core/half.ts';

const { onnx } = onnxProto;
/** TensorProto.DataType. Source: onnx.proto. */
export const TYPE = {
  FLOAT: 1,
  UINT8: 2,
  INT8: 3,
  INT32: 6,
  INT64: 7,
  BOOL: 9,
  FLOAT16: 10,
  DOUBLE: 11,
  BFLOAT16: 16,
} as const;
const ELEMENT_BYTES: Readonly<Record<number, number>> = {
  1: 4,
  2: 1,
  3: 1,
  6: 4,
  7: 8,
  9: 1,
  10: 2,
  11: 8,
  16: 2,
};

/** A stored tensor: an initialiser or the value of a Constant node. */
export interface OnnxTensor {
  readonly name: string;
  readonly type: number;
  readonly dims: readonly number[];
  readonly elements: number;
  /** Little-endian elements in row-major order; read from the external file each time. */
  bytes(): Uint8Array;
}

export interface OnnxNode {
  readonly name: string;
  /** With its domain unless that is ai.onnx: `com.microsoft::MatMulNBits`. */
  readonly op: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes: ReadonlyMap<string, number | string | readonly number[]>;
}

export interface OnnxFile {
  /** Without folders, for messages. */
  readonly file: string;
  readonly nodes: readonly OnnxNode[];
  /** Declared dimensions by graph input; a string or -1 where symbolic. */
  readonly inputs: ReadonlyMap<string, readonly (number | string)[]>;
  readonly outputs: readonly string[];
  /** Initialisers and Constant values by value name. */
  readonly tensors: ReadonlyMap<string, OnnxTensor>;
  /** Paths of the model and of the files that hold external tensors, in order of first use. */
  readonly files: readonly string[];
}

/** Reads an ONNX model; external tensors stay on disk until they are asked for. */
export function readOnnx(path: string): OnnxFile {
  const file = basename(path);
  const model = (() => {
    try {
      return onnx.ModelProto.decode(readFileSync(path));
    } catch (cause) {
      throw new CorruptDataError(`${file} is no ONNX model, or is cut off: ${(cause as Error).message}`, {
        file,
      });
    }
  })();
  const graph = model.graph;
  if (!graph?.node?.length)
    throw new UnsupportedModelError(`${file}: the ONNX model holds no graph`, { file });
  const files = [path];
  const tensors = new Map<string, OnnxTensor>();
  for (const proto of graph.initializer ?? [])
    tensors.set(proto.name!, readTensor(proto, proto.name!, path, files));
  const nodes: OnnxNode[] = [];
  for (const node of graph.node) {
    const attributes = new Map<string, number | string | readonly number[]>();
    for (const a of node.attribute ?? []) {
      const { FLOAT, INT, STRING, INTS, FLOATS, TENSOR } = onnx.AttributeProto.AttributeType;
      if (a.type === FLOAT) attributes.set(a.name!, a.f!);
      else if (a.type === INT) attributes.set(a.name!, Number(a.i));
      else if (a.type === STRING) attributes.set(a.name!, new TextDecoder().decode(a.s!));
      else if (a.type === INTS) attributes.set(a.name!, a.ints!.map(Number));
      else if (a.type === FLOATS) attributes.set(a.name!, [...a.floats!]);
      else if (a.type === TENSOR && node.opType === 'Constant') {
        const name = node.output![0]!;
        tensors.set(name, readTensor(a.t!, name, path, files));
      }
    }
    const op = node.domain && node.domain !== 'ai.onnx' ? `${node.domain}::${node.opType}` : node.opType!;
    const name = node.name || (node.output?.[0] ?? '?');
    if (op !== 'Constant')
      nodes.push({ name, op, inputs: node.input ?? [], outputs: node.output ?? [], attributes });
    else if (!tensors.has(node.output![0]!))
      throw new UnsupportedModelError(`${file}: Constant ${name} holds no tensor`, { file, node: name });
  }
  const inputs = new Map<string, (number | string)[]>();
  for (const input of graph.input ?? []) {
    if (tensors.has(input.name!)) continue;
    const dims = input.type?.tensorType?.shape?.dim ?? [];
    inputs.set(
      input.name!,
      dims.map((d) => (d.dimParam ? d.dimParam : d.dimValue ? Number(d.dimValue) : -1)),
    );
  }
  return { file, nodes, inputs, outputs: (graph.output ?? []).map((o) => o.name!), tensors, files };
}

function readTensor(
  proto: onnxProto.onnx.ITensorProto,
  name: string,
  modelPath: string,
  files: string[],
): OnnxTensor {
  const file = basename(modelPath);
  const type = proto.dataType ?? 0;
  const dims = (proto.dims ?? []).map(Number);
  const elements = dims.reduce((a, b) => a * b, 1);
  const size = ELEMENT_BYTES[type];
  const unreadable = (why: string): never => {
    throw new UnsupportedModelError(`${file}: tensor ${name} ${why}`, { file, tensor: name, type });
  };
  const checked = (bytes: Uint8Array): Uint8Array => {
    if (size === undefined) return unreadable(`has data type ${type}, which is not supported`);
    if (bytes.length !== elements * size)
      throw new CorruptDataError(
        `${file}: tensor ${name} has ${bytes.length} bytes, its shape [${dims.join(', ')}] wants ${elements * size}`,
        { file, tensor: name },
      );
    return bytes;
  };
  if (proto.dataLocation !== onnx.TensorProto.DataLocation.EXTERNAL)
    return {
      name,
      type,
      dims,
      elements,
      bytes: () =>
        checked(inlineBytes(proto, type) ?? unreadable('is stored in a field that is not supported')),
    };

  const where = Object.fromEntries((proto.externalData ?? []).map((e) => [e.key!, e.value!]));
  const location = normalize(where.location ?? '');
  // The file names its own data: it must not reach outside of its folder.
  if (where.location === undefined || isAbsolute(location) || location.startsWith('..'))
    return unreadable(
      `names the external file ${JSON.stringify(where.location)}, which is not beside the model`,
    );
  const path = join(dirname(modelPath), location);
  if (!files.includes(path)) files.push(path);
  const offset = Number(where.offset ?? 0);
  return {
    name,
    type,
    dims,
    elements,
    bytes: () => {
      const available = statSync(path, { throwIfNoEntry: false })?.size;
      const length = Number(where.length ?? elements * (size ?? 1));
      if (available === undefined || offset + length > available)
        throw new CorruptDataError(
          `${file}: tensor ${name} lies at bytes ${offset} to ${offset + length} of ${location}, which ${available === undefined ? 'is missing' : `has ${available}`}`,
          { file, tensor: name },
        );
      const bytes = new Uint8Array(length);
      const handle = openSync(path, 'r');
      try {
        for (let at = 0; at < length; ) {
          const read = readSync(handle, bytes, at, length - at, offset + at);
          if (read === 0)
            throw new CorruptDataError(`${file}: ${location} ended while it was read`, { file });
          at += read;
        }
      } finally {
        closeSync(handle);
      }
      return checked(bytes);
    },
  };
}

/** ONNX keeps small tensors in typed fields, everything else raw. */
function inlineBytes(proto: onnxProto.onnx.ITensorProto, type: number): Uint8Array | undefined {
  // A plain view: protobuf gives Node's Buffer, whose slice does not copy.
  const raw = proto.rawData;
  if (raw?.length) return new Uint8Array(raw.buffer, raw.byteOffset, raw.byteLength);
  if (type === TYPE.FLOAT) return new Uint8Array(Float32Array.from(proto.floatData ?? []).buffer);
  if (type === TYPE.DOUBLE) return new Uint8Array(Float64Array.from(proto.doubleData ?? []).buffer);
  if (type === TYPE.INT64)
    return new Uint8Array(BigInt64Array.from(proto.int64Data ?? [], (v) => BigInt(v.toString())).buffer);
  const ints = proto.int32Data ?? [];
  if (type === TYPE.INT32) return new Uint8Array(Int32Array.from(ints).buffer);
  if (type === TYPE.UINT8 || type === TYPE.INT8 || type === TYPE.BOOL) return Uint8Array.from(ints);
  if (type === TYPE.FLOAT16 || type === TYPE.BFLOAT16) return new Uint8Array(Uint16Array.from(ints).buffer);
  return undefined;
}

/** All elements as numbers; 64-bit integers must be exact in a double, else they are rounded. */
export function tensorNumbers(tensor: OnnxTensor): Float64Array {
  const bytes = tensor.bytes();
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const read: Readonly<Record<number, (i: number) => number>> = {
    [TYPE.FLOAT]: (i) => view.getFloat32(i * 4, true),
    [TYPE.DOUBLE]: (i) => view.getFloat64(i * 8, true),
    [TYPE.FLOAT16]: (i) => halfToFloat(view.getUint16(i * 2, true)),
    [TYPE.BFLOAT16]: (i) => bfloatToFloat(view.getUint16(i * 2, true)),
    [TYPE.UINT8]: (i) => bytes[i]!,
    [TYPE.INT8]: (i) => view.getInt8(i),
    [TYPE.BOOL]: (i) => bytes[i]!,
    [TYPE.INT32]: (i) => view.getInt32(i * 4, true),
    [TYPE.INT64]: (i) => Number(view.getBigInt64(i * 8, true)),
  };
  const at = read[tensor.type]!;
  return Float64Array.from({ length: tensor.elements }, (_, i) => at(i));
}

const scratch = new DataView(new ArrayBuffer(4));
function bfloatToFloat(bits: number): number {
  scratch.setUint32(0, bits << 16);
  return scratch.getFloat32(0);
}
