import type { ModelConfig } from '../core/config.ts';
import type { WeightForm } from '../kernels/kernels.ts';
import type { Graph, GraphNode } from '../runtime/graph.ts';

export const EMBEDDING = 'embed_tokens';
export const OUTPUT = 'lm_head';
export const FINAL_NORM = 'norm';
export const layerWeight = (layer: number, weight: LayerWeight): string => `layers.${layer}.${weight}`;
export type LayerWeight =
  | 'attn_norm'
  | 'q_proj'
  | 'k_proj'
  | 'v_proj'
  | 'o_proj'
  | 'ffn_norm'
  | 'gate_proj'
  | 'up_proj'
  | 'down_proj';

/** What a weight is used for, and the shape it must have: [n, k], or [dim] for a norm. */
export interface WeightSpec {
  readonly name: string;
  readonly role: 'embedding' | 'matrix' | 'norm';
  readonly shape: readonly number[];
}

/** Shapes that no kernel computes, whatever file they came from. */
export function checkShape(c: ModelConfig, refuse: (message: string) => never): void {
  if (c.heads % c.kvHeads !== 0)
    refuse(`${c.heads} query heads do not divide among ${c.kvHeads} key/value heads`);
  // The cache packs four channels at a time, and rotary pairs are half a head apart.
  if (c.headDim % 4 !== 0) refuse(`the head size ${c.headDim} is not a multiple of 4`);
}

/** Every weight the graph needs, in the order in which it is first used. */
export function llamaWeights(c: ModelConfig, tied: boolean): WeightSpec[] {
  const weights: WeightSpec[] = [{ name: EMBEDDING, role: 'embedding', shape: [c.vocab, c.hidden] }];
  const q = c.heads * c.headDim;
  const kv = c.kvHeads * c.headDim;
  for (let i = 0; i < c.layers; i++) {
    const norm = (weight: LayerWeight) =>
      weights.push({ name: layerWeight(i, weight), role: 'norm', shape: [c.hidden] });
    const matrix = (weight: LayerWeight, n: number, k: number) =>
      weights.push({ name: layerWeight(i, weight), role: 'matrix', shape: [n, k] });
    norm('attn_norm');
    matrix('q_proj', q, c.hidden);
    matrix('k_proj', kv, c.hidden);
    matrix('v_proj', kv, c.hidden);
    matrix('o_proj', c.hidden, q);
    norm('ffn_norm');
    matrix('gate_proj', c.ffn, c.hidden);
    matrix('up_proj', c.ffn, c.hidden);
    matrix('down_proj', c.hidden, c.ffn);
  }
  weights.push({ name: FINAL_NORM, role: 'norm', shape: [c.hidden] });
  if (!tied) weights.push({ name: OUTPUT, role: 'embedding', shape: [c.vocab, c.hidden] });
  return weights;
}

/** An operator of one operand and no weights. */
export type Activation = Pick<GraphNode, 'op' | 'domain' | 'attributes'>;

/** Bits and group size of a form's codes, as MatMulNBits names them. */
const CODES: Readonly<Record<Exclude<WeightForm, 'f32'>, { bits: number; block_size: number }>> = {
  q4_1: { bits: 4, block_size: 32 },
  q8_0: { bits: 8, block_size: 32 },
  q4r: { bits: 4, block_size: 32 },
  q6h: { bits: 6, block_size: 64 },
};

/**
 * The decoder as a graph: operators and order as documented in runtime/graph.ts.
 * @param formOf the form of each weight: it decides between MatMul and MatMulNBits
 * @param tied the output product reads the embedding table
 * @param activation what the gate goes through in place of SiLU; no kernel claims it, so onnxruntime runs it
 */
export function llamaGraph(
  c: ModelConfig,
  tied: boolean,
  formOf: (weight: string) => WeightForm,
  activation?: Activation,
): Graph {
  const nodes: GraphNode[] = [];
  const node = (
    name: string,
    op: string,
    inputs: string[],
    attributes: GraphNode['attributes'] = {},
    domain = '',
    output = name,
  ): string => {
    nodes.push({ name, op, domain, inputs, outputs: [output], attributes });
    return output;
  };
  const matmul = (name: string, x: string, weight: string, n: number, k: number, output = name): string => {
    const form = formOf(weight);
    return form === 'f32'
      ? node(name, 'MatMul', [x, weight], {}, '', output)
      : node(name, 'MatMulNBits', [x, weight], { K: k, N: n, ...CODES[form] }, 'com.microsoft', output);
  };
  const norm = (name: string, x: string, weight: string): string =>
    node(name, 'SimplifiedLayerNormalization', [x, weight], { epsilon: c.rmsEps, axis: -1 });

  const q = c.heads * c.headDim;
  const kv = c.kvHeads * c.headDim;
  let x = node('embed', 'Gather', [EMBEDDING, 'input_ids'], { axis: 0 });
  for (let i = 0; i < c.layers; i++) {
    const at = (part: string) => `layers.${i}/${part}`;
    const w = (weight: LayerWeight) => layerWeight(i, weight);
    const h = norm(at('attn_norm'), x, w('attn_norm'));
    const attention = node(
      at('attention'),
      'GroupQueryAttention',
      [
        matmul(at('q'), h, w('q_proj'), q, c.hidden),
        matmul(at('k'), h, w('k_proj'), kv, c.hidden),
        matmul(at('v'), h, w('v_proj'), kv, c.hidden),
      ],
      {
        num_heads: c.heads,
        kv_num_heads: c.kvHeads,
        scale: c.attentionScale,
        do_rotary: 1,
        rotary_interleaved: 0,
        layer: i,
      },
      'com.microsoft',
    );
    const o = matmul(at('o'), attention, w('o_proj'), c.hidden, q);
    x = node(at('attn_residual'), 'Add', [x, o]);
    const h2 = norm(at('ffn_norm'), x, w('ffn_norm'));
    const gate = matmul(at('gate'), h2, w('gate_proj'), c.ffn, c.hidden);
    const up = matmul(at('up'), h2, w('up_proj'), c.ffn, c.hidden);
    const activated = activation
      ? node(at('activation'), activation.op, [gate], activation.attributes, activation.domain)
      : node(at('silu'), 'Mul', [gate, node(at('sigmoid'), 'Sigmoid', [gate])]);
    const gated = node(at('gated'), 'Mul', [activated, up]);
    const down = matmul(at('down'), gated, w('down_proj'), c.hidden, c.ffn);
    x = node(at('ffn_residual'), 'Add', [x, down]);
  }
  const last = norm('final_norm', x, FINAL_NORM);
  matmul('output', last, tied ? EMBEDDING : OUTPUT, c.vocab, c.hidden, 'logits');
  return { inputs: ['input_ids'], outputs: ['logits'], nodes };
}
