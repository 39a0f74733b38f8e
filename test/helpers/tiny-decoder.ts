import type { ModelConfig } from '../../src/core/config.ts';
import type { Graph, GraphNode } from '../../src/runtime/graph.ts';
import type { Value } from './graph-interpreter.ts';

export interface TinyDecoder {
  readonly config: ModelConfig;
  readonly graph: Graph;
  readonly weights: Readonly<Record<string, Value>>;
  readonly shapeOf: (name: string) => readonly number[];
  /** The same weights as onnxruntime wants them. */
  readonly f32: (names: readonly string[]) => Record<string, Float32Array>;
}

/**
 * A decoder of two small layers with seeded weights, in the operators of graph.ts. `gate`: what stands where the
 * feed-forward part has Sigmoid, to put an operator into the graph that no kernel claims.
 */
export function tinyDecoder(gate = 'Sigmoid'): TinyDecoder {
  const config: ModelConfig = {
    ...{
      name: 'tiny',
      architecture: 'llama',
      layers: 2,
      hidden: 32,
      heads: 4,
      kvHeads: 2,
      headDim: 16,
      ffn: 48,
    },
    ...{ vocab: 40, contextLength: 256, ropeTheta: 10_000, rmsEps: 1e-5, attentionScale: 0.25 },
  };
  const { layers, hidden, heads, kvHeads, headDim, ffn, vocab } = config;
  const random = mulberry32(7);
  const weights: Record<string, Value> = {};
  const weight = (name: string, dims: number[], centre = 0): string => {
    const data = Float64Array.from({ length: dims.reduce((a, b) => a * b) }, () =>
      Math.fround(centre + (random() - 0.5) / Math.sqrt(dims.at(-1)!)),
    );
    weights[name] = { dims, data };
    return name;
  };
  const nodes: GraphNode[] = [];
  const node = (
    op: string,
    inputs: string[],
    output: string,
    attributes: GraphNode['attributes'] = {},
    domain = '',
  ): string => {
    nodes.push({ name: `${output}/${op}`, op, domain, inputs, outputs: [output], attributes });
    return output;
  };
  const product = (x: string, w: string, output: string): string => node('MatMul', [x, w], output);
  const norm = (x: string, name: string, output: string): string =>
    node('SimplifiedLayerNormalization', [x, weight(name, [hidden], 1)], output, { epsilon: 1e-5, axis: -1 });

  let x = node('Gather', [weight('embed_tokens', [vocab, hidden]), 'input_ids'], 'x');
  for (let i = 0; i < layers; i++) {
    const at = (name: string): string => `layers.${i}.${name}`;
    const h = norm(x, at('input_norm'), at('h'));
    const q = product(h, weight(at('wq'), [heads * headDim, hidden]), at('q'));
    const k = product(h, weight(at('wk'), [kvHeads * headDim, hidden]), at('k'));
    const v = product(h, weight(at('wv'), [kvHeads * headDim, hidden]), at('v'));
    const attributes = { num_heads: heads, kv_num_heads: kvHeads, scale: 0.25, do_rotary: 1, layer: i };
    const a = node('GroupQueryAttention', [q, k, v], at('a'), attributes, 'com.microsoft');
    const mid = node('Add', [x, product(a, weight(at('wo'), [hidden, heads * headDim]), at('o'))], at('mid'));
    const h2 = norm(mid, at('post_norm'), at('h2'));
    const g = product(h2, weight(at('gate'), [ffn, hidden]), at('g'));
    const u = product(h2, weight(at('up'), [ffn, hidden]), at('u'));
    const m = node('Mul', [node('Mul', [g, node(gate, [g], at('s'))], at('gs')), u], at('m'));
    x = node('Add', [mid, product(m, weight(at('down'), [hidden, ffn]), at('d'))], at('out'));
  }
  // Tied: the embedding table is the output matrix.
  product(norm(x, 'final_norm', 'normed'), 'embed_tokens', 'logits');
  return {
    config,
    graph: { inputs: ['input_ids'], outputs: ['logits'], nodes },
    weights,
    shapeOf: (name) => weights[name]!.dims,
    f32: (names) =>
      Object.fromEntries(names.map((name) => [name, Float32Array.from(weights[name]!.data)] as const)),
  };
}

/** Seeded uniform numbers in [0, 1). T. Ettinger, 2017, public domain. */
function mulberry32(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
