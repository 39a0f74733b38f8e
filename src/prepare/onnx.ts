import onnxProto from 'onnx-proto';
import type { Graph, GraphNode } from '../runtime/graph.ts';
import type { TensorEntry } from '../runtime/manifest.ts';

const { AttributeProto, ModelProto, TensorProto } = onnxProto.onnx;
type IModelProto = onnxProto.onnx.IModelProto;
type IAttributeProto = onnxProto.onnx.IAttributeProto;

/** Numbers carry no type in the graph; these attributes are float in ONNX, all other numeric ones are integers. */
const FLOAT_ATTRIBUTES = new Set(['epsilon', 'scale', 'softcap', 'alpha', 'beta']);
/** IR version and operator set of onnx-proto's definition (ONNX 1.10). */
const IR_VERSION = 8;
const OPSET = 15;

export interface OnnxWeights {
  readonly tensors: Readonly<Record<string, TensorEntry>>;
  /** File names of the shards, by index. */
  readonly shards: readonly string[];
}

/**
 * The graph as an ONNX model. Each logical weight is one initialiser with external data: f32 weights as FLOAT of their shape, packed
 * ones as UINT8 of their bytes; `weight:<name>` in metadata_props says form and logical shape. A weight that
 * lies in several shards names the further ones as location.1, offset.1, length.1 and so on.
 * Deterministic: the same graph gives the same bytes.
 */
export function encodeOnnx(
  graph: Graph,
  weights: OnnxWeights,
  model: { name: string; vocab: number },
): Uint8Array {
  const value = (name: string, elemType: number, dims: (string | number)[]) => ({
    name,
    type: {
      tensorType: {
        elemType,
        shape: { dim: dims.map((d) => (typeof d === 'string' ? { dimParam: d } : { dimValue: d })) },
      },
    },
  });
  const proto: IModelProto = {
    irVersion: IR_VERSION,
    producerName: 'adkvc',
    opsetImport: [
      { domain: '', version: OPSET },
      { domain: 'com.microsoft', version: 1 },
    ],
    metadataProps: Object.entries(weights.tensors).map(([name, t]) => ({
      key: `weight:${name}`,
      value: JSON.stringify({ form: t.form, shape: t.shape }),
    })),
    graph: {
      name: model.name,
      node: graph.nodes.map((node) => ({
        name: node.name,
        opType: node.op,
        domain: node.domain,
        input: [...node.inputs],
        output: [...node.outputs],
        attribute: Object.entries(node.attributes).map(([name, v]) => attribute(name, v)),
      })),
      initializer: Object.entries(weights.tensors).map(([name, t]) => ({
        name,
        dataType: t.form === 'f32' ? TensorProto.DataType.FLOAT : TensorProto.DataType.UINT8,
        dims: t.form === 'f32' ? [...t.shape] : [t.bytes],
        dataLocation: TensorProto.DataLocation.EXTERNAL,
        externalData: t.parts.flatMap((part, i) => {
          const key = (word: string) => (i === 0 ? word : `${word}.${i}`);
          return [
            { key: key('location'), value: weights.shards[part.shard]! },
            { key: key('offset'), value: String(part.offset) },
            { key: key('length'), value: String(part.bytes) },
          ];
        }),
      })),
      input: graph.inputs.map((name) => value(name, TensorProto.DataType.INT64, ['rows'])),
      output: graph.outputs.map((name) => value(name, TensorProto.DataType.FLOAT, ['rows', model.vocab])),
    },
  };
  const message = ModelProto.verify(proto);
  if (message) throw new Error(`the ONNX model is malformed: ${message}`);
  return ModelProto.encode(ModelProto.create(proto)).finish();
}

function attribute(name: string, value: number | string | readonly number[]): IAttributeProto {
  const { AttributeType } = AttributeProto;
  if (typeof value === 'string')
    return { name, type: AttributeType.STRING, s: new TextEncoder().encode(value) };
  if (typeof value !== 'number') return { name, type: AttributeType.INTS, ints: [...value] };
  if (FLOAT_ATTRIBUTES.has(name)) return { name, type: AttributeType.FLOAT, f: value };
  if (!Number.isInteger(value)) throw new Error(`attribute ${name} is ${value}, not an integer`);
  return { name, type: AttributeType.INT, i: value };
}

/** Reads back what `encodeOnnx` wrote. Float attributes have passed through binary32. */
export function decodeOnnx(bytes: Uint8Array): {
  graph: Graph;
  weights: Record<string, { form: string; shape: number[]; external: Record<string, string> }>;
} {
  const proto = ModelProto.decode(bytes);
  const graph = proto.graph!;
  const names = (values: { name?: string | null }[] | null | undefined) =>
    (values ?? []).map((v) => v.name ?? '');
  const forms = new Map((proto.metadataProps ?? []).map((p) => [p.key ?? '', p.value ?? '']));
  return {
    graph: {
      inputs: names(graph.input),
      outputs: names(graph.output),
      nodes: (graph.node ?? []).map((node) => ({
        name: node.name ?? '',
        op: node.opType ?? '',
        domain: node.domain ?? '',
        inputs: node.input ?? [],
        outputs: node.output ?? [],
        attributes: Object.fromEntries(
          (node.attribute ?? []).map((a): [string, GraphNode['attributes'][string]] => {
            const { AttributeType } = AttributeProto;
            if (a.type === AttributeType.FLOAT) return [a.name ?? '', a.f ?? 0];
            if (a.type === AttributeType.INT) return [a.name ?? '', Number(a.i ?? 0)];
            if (a.type === AttributeType.INTS) return [a.name ?? '', (a.ints ?? []).map(Number)];
            return [a.name ?? '', new TextDecoder().decode(a.s ?? new Uint8Array())];
          }),
        ),
      })),
    },
    weights: Object.fromEntries(
      (graph.initializer ?? []).map((tensor) => {
        const name = tensor.name ?? '';
        const { form, shape } = JSON.parse(forms.get(`weight:${name}`) ?? '{}');
        const external = Object.fromEntries(
          (tensor.externalData ?? []).map((e) => [e.key ?? '', e.value ?? '']),
        );
        return [name, { form, shape, external }];
      }),
    ),
  };
}
