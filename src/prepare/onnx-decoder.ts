import type { ModelConfig } from '../core/config.ts';
import { UnsupportedModelError } from '../core/errors.ts';
import type { Activation, LayerWeight } from './llama-graph.ts';
import { type Attention, readAttention } from './onnx-attention.ts';
import type { OnnxFile } from './onnx-file.ts';
import { type Linear, type Norm, OnnxView, type Stream } from './onnx-view.ts';
import { type OnnxMatrix, sliceRows } from './onnx-weights.ts';

/** A llama decoder found in an export's graph. */
export interface OnnxDecoder {
  readonly shape: Omit<ModelConfig, 'name' | 'architecture' | 'contextLength'>;
  readonly embedding: OnnxMatrix;
  readonly output: OnnxMatrix;
  readonly finalNorm: OnnxMatrix;
  readonly layers: readonly Readonly<Record<LayerWeight, OnnxMatrix>>[];
  /** What the gate goes through; undefined: SiLU. */
  readonly activation: Activation | undefined;
  /** Rows of q and k are ordered for interleaved rotary pairs. */
  readonly interleaved: boolean;
  /** Whether the output matrix holds the very values of the embedding. */
  tied(): boolean;
}

interface Layer {
  readonly attnNorm: Norm;
  readonly attention: Attention;
  readonly o: Linear;
  readonly ffnNorm: Norm;
  readonly gate: Linear;
  readonly up: Linear;
  readonly down: Linear;
  readonly activation: Activation | undefined;
}

/**
 * Walks from the logits back to input_ids and accepts exactly a llama decoder: every operand on the way must be what that
 * decoder has in its place. What hangs beside the way (masks, positions, caches) is not carried over, since the runtime makes its own.
 * @throws UnsupportedModelError naming the node that has no place in such a decoder
 */
export function readDecoder(model: OnnxFile): OnnxDecoder {
  const view = new OnnxView(model);
  if (!model.inputs.has('input_ids')) {
    const instead = [...model.inputs.keys()].filter(
      (name) => !/^(attention_mask|position_ids|past_)/.test(name),
    );
    throw new UnsupportedModelError(
      `${model.file}: the graph takes ${instead.join(', ') || 'nothing'} in place of input_ids; ` +
        'export it with its embedding (onnxruntime-genai: without exclude_embeds)',
      { file: model.file, inputs: instead },
    );
  }
  if (!model.outputs.includes('logits'))
    throw new UnsupportedModelError(`${model.file}: the graph has no output named logits`, {
      file: model.file,
    });

  const output = expected(view, 'logits', view.linear('logits'), 'the output product');
  const finalNorm = expected(view, output.x, view.norm(output.x), 'the final RMS norm');
  const layers: Layer[] = [];
  let stream: Stream = finalNorm.x;
  for (;;) {
    const embedding = typeof stream === 'string' ? view.embedding(stream) : undefined;
    if (embedding) return assemble(view, embedding, layers, finalNorm, output);
    const layer = readLayer(view, stream);
    layers.unshift(layer.layer);
    stream = layer.before;
  }
}

function readLayer(view: OnnxView, stream: Stream): { layer: Layer; before: string } {
  const end = typeof stream === 'string' ? stream : stream.b;
  const ffn = residual(view, stream, (term) => feedForward(view, term));
  if (!ffn) return refuseAt(view, end, 'a feed-forward part, x + down(activation(gate(h)) * up(h))');
  const ffnNorm = expected(
    view,
    ffn.part.gate.x,
    view.norm(ffn.part.gate.x),
    'the RMS norm before the feed-forward part',
  );
  const middle = ffn.rest;
  if (ffn.part.up.x !== ffn.part.gate.x || !view.same(ffnNorm.x, middle))
    refuseAt(view, end, 'a feed-forward part that reads the norm of the value it is added to');

  const attended = residual(view, middle, (term) => {
    const o = view.linear(term);
    const attention = o && readAttention(view, o.x);
    return attention && { o, attention };
  });
  if (!attended) return refuseAt(view, middle, 'an attention, x + o(attention(h))');
  const { o, attention } = attended.part;
  const source = attention.projections[0].x;
  const attnNorm = expected(view, source, view.norm(source), 'the RMS norm before the attention');
  if (attention.projections.some((p) => p.x !== source) || !view.same(attnNorm.x, attended.rest))
    refuseAt(view, middle, 'an attention that reads the norm of the value it is added to');
  return { layer: { attnNorm, attention, o, ffnNorm, ...ffn.part }, before: attended.rest };
}

/** The term of a sum that `read` recognises, and the other one. */
function residual<T>(
  view: OnnxView,
  stream: Stream,
  read: (term: string) => T | undefined,
): { part: T; rest: string } | undefined {
  const terms = view.terms(stream);
  if (!terms) return undefined;
  for (const [term, rest] of [
    [terms.b, terms.a],
    [terms.a, terms.b],
  ] as const) {
    const part = read(term);
    if (part) return { part, rest };
  }
  return undefined;
}

/** down(activation(gate) * up) */
function feedForward(
  view: OnnxView,
  name: string,
): Pick<Layer, 'gate' | 'up' | 'down' | 'activation'> | undefined {
  const down = view.linear(name);
  const gated = down && view.producer(down.x);
  if (!down || gated?.op !== 'Mul') return undefined;
  const sides = view.operands(gated, (input) => activated(view, input) !== undefined);
  if (!sides) return undefined;
  const { x, activation } = activated(view, sides[0])!;
  const gate = view.linear(x);
  const up = view.linear(sides[1]);
  return gate && up && { gate, up, down, activation };
}

/**
 * Activations that a gate may have in place of SiLU, by their names in the operator set that bundles are written in: one operand each, so
 * that onnxruntime runs them between stages of kernels. Each gives a row the same bits alone and among others (tested), as the kernels do.
 */
export const ACTIVATIONS: ReadonlySet<string> = new Set([
  ...['Celu', 'Elu', 'HardSwish', 'LeakyRelu', 'Relu', 'Softplus', 'Tanh'],
  ...['com.microsoft::Gelu', 'com.microsoft::FastGelu', 'com.microsoft::QuickGelu'],
]);

/** The value that goes through an activation, and through which; undefined stands for SiLU, g * sigmoid(g). */
function activated(
  view: OnnxView,
  name: string,
): { x: string; activation: Activation | undefined } | undefined {
  const node = view.producer(name);
  if (!node) return undefined;
  const attributes = Object.fromEntries(node.attributes);
  const [x, ...others] = node.inputs.filter((input) => input !== '');
  if (node.op === 'com.microsoft::QuickGelu' && attributes.alpha === 1)
    return { x: x!, activation: undefined };
  if (node.op === 'Gelu') {
    const op = attributes.approximate === 'tanh' ? 'FastGelu' : 'Gelu';
    return { x: x!, activation: { op, domain: 'com.microsoft', attributes: {} } };
  }
  if (ACTIVATIONS.has(node.op) && others.length === 0) {
    const [domain, op] = node.op.includes('::') ? node.op.split('::') : ['', node.op];
    return { x: x!, activation: { op: op!, domain: domain!, attributes } };
  }
  if (node.op !== 'Mul') return undefined;
  const sides = view.operands(node, (input) => view.producer(input)?.op === 'Sigmoid');
  const sigmoid = sides && view.producer(sides[0]);
  if (!sigmoid || view.strip(sigmoid.inputs[0]!) !== view.strip(sides[1])) return undefined;
  return { x: sides[1], activation: undefined };
}

function expected<T>(view: OnnxView, name: string, found: T | undefined, what: string): T {
  return found ?? refuseAt(view, name, what);
}
function refuseAt(view: OnnxView, name: string, what: string): never {
  const node = view.producer(name);
  return view.refuse(node, `${node ? 'stands' : `${name} stands`} where a llama decoder has ${what}`);
}

function assemble(
  view: OnnxView,
  embedding: OnnxMatrix,
  layers: readonly Layer[],
  finalNorm: Norm,
  output: Linear,
): OnnxDecoder {
  const first = layers[0] ?? view.refuse(undefined, 'the graph has no layers');
  const heads = headsOf(view, first);
  const theta = first.attention.theta;
  const epsilon = finalNorm.epsilon;
  const scale = first.attention.scale ?? 1 / Math.sqrt(heads.headDim);
  for (const layer of layers) {
    const { attention } = layer;
    const other = headsOf(view, layer);
    if (
      other.heads !== heads.heads ||
      other.kvHeads !== heads.kvHeads ||
      other.headDim !== heads.headDim ||
      attention.theta !== theta ||
      attention.interleaved !== first.attention.interleaved ||
      attention.scale !== first.attention.scale ||
      JSON.stringify(layer.activation) !== JSON.stringify(first.activation) ||
      layer.attnNorm.epsilon !== epsilon ||
      layer.ffnNorm.epsilon !== epsilon
    )
      view.refuse(
        attention.node,
        'differs from the other layers in heads, scale, rotation, activation or epsilon',
      );
  }
  const plain = 1 / Math.sqrt(heads.headDim);
  return {
    shape: {
      layers: layers.length,
      hidden: embedding.k,
      ...heads,
      ffn: first.gate.weight.n,
      vocab: embedding.n,
      ropeTheta: theta,
      rmsEps: shortest(epsilon),
      // A stored scale is rounded to float32 or made of two roots.
      attentionScale: Math.abs(scale / plain - 1) < 1e-3 ? plain : scale,
    },
    embedding,
    output: output.weight,
    finalNorm: finalNorm.weight,
    layers: layers.map((layer) => {
      const [q, k, v] = projections(layer, heads);
      return {
        attn_norm: layer.attnNorm.weight,
        q_proj: q,
        k_proj: k,
        v_proj: v,
        o_proj: layer.o.weight,
        ffn_norm: layer.ffnNorm.weight,
        gate_proj: layer.gate.weight,
        up_proj: layer.up.weight,
        down_proj: layer.down.weight,
      };
    }),
    activation: first.activation,
    interleaved: first.attention.interleaved,
    tied: () => sameValues(embedding, output.weight),
  };
}

/** Attributes and shapes together: exports leave one or the other out. */
function headsOf(
  view: OnnxView,
  { attention, o }: Layer,
): { heads: number; kvHeads: number; headDim: number } {
  const { node, projections: p } = attention;
  const width = o.weight.k;
  const headDim = attention.headDim ?? (attention.heads ? width / attention.heads : undefined);
  if (!headDim) return view.refuse(node, 'says neither how many heads it has nor how wide they are');
  const heads = attention.heads ?? width / headDim;
  const kvHeads = attention.kvHeads ?? (p.length === 3 ? p[1].weight.n / headDim : 0);
  const rows = p.map(({ weight }) => weight.n);
  const wanted = [heads, kvHeads, kvHeads].map((count) => count * headDim);
  const fits = rows.length === 3 ? rows.join() === wanted.join() : rows[0] === wanted[0]! + 2 * wanted[1]!;
  if (!fits || heads * headDim !== width || !(kvHeads > 0) || heads % kvHeads !== 0)
    view.refuse(
      node,
      `has ${heads} heads, ${kvHeads} key/value heads of ${headDim}, projections of ${rows.join(', ')} rows`,
    );
  if (headDim % 4 !== 0) view.refuse(node, `has heads of ${headDim} channels; a multiple of 4 is needed`);
  return { heads, kvHeads, headDim };
}

function projections(
  { attention }: Layer,
  { heads, kvHeads, headDim }: { heads: number; kvHeads: number; headDim: number },
): [OnnxMatrix, OnnxMatrix, OnnxMatrix] {
  const { projections: p } = attention;
  if (p.length === 3) return [p[0].weight, p[1].weight, p[2].weight];
  const [q, kv] = [heads * headDim, kvHeads * headDim];
  const { weight } = p[0];
  return [sliceRows(weight, 0, q), sliceRows(weight, q, kv), sliceRows(weight, q + kv, kv)];
}

function sameValues(a: OnnxMatrix, b: OnnxMatrix): boolean {
  if (a.n !== b.n || a.k !== b.k || a.type !== b.type) return false;
  if (a.label === b.label) return true;
  const [x, y] = [a.read(), b.read()];
  for (let i = 0; i < x.length; i++) if (x[i] !== y[i]) return false;
  return true;
}

/** The decimal number that a float32 was written as: 1e-5, not 9.999999747378752e-6. */
const shortest = (x: number): number => {
  for (let digits = 1; digits < 9; digits++) {
    const short = Number(x.toPrecision(digits));
    if (Math.fround(short) === Math.fround(x)) return short;
  }
  return x;
};
