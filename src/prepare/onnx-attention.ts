import { type OnnxNode, type OnnxTensor, TYPE, tensorNumbers } from './onnx-file.ts';
import type { Linear, OnnxView } from './onnx-view.ts';

/** What an attention computes, from the projections on. */
export interface Attention {
  readonly node: OnnxNode;
  /** One projection that stacks q, k and v, or three. */
  readonly projections: readonly [Linear] | readonly [Linear, Linear, Linear];
  /** Undefined where only the shapes of past_key_values tell. */
  readonly heads: number | undefined;
  readonly kvHeads: number | undefined;
  readonly headDim: number | undefined;
  /** Undefined: 1 / sqrt(headDim). */
  readonly scale: number | undefined;
  readonly theta: number;
  /** Channels 2i and 2i + 1 are a pair, instead of i and i + headDim / 2. */
  readonly interleaved: boolean;
}

interface Rotation {
  readonly x: string;
  readonly theta: number;
  readonly interleaved: boolean;
}

/** The attention that computes a value: GroupQueryAttention, or spelled out as softmax(q k^T scale + mask) v. */
export function readAttention(view: OnnxView, name: string): Attention | undefined {
  const node = view.producer(name);
  if (node?.op === 'com.microsoft::GroupQueryAttention') return fusedAttention(view, node);
  const product = view.producer(view.unshaped(name));
  return product?.op === 'MatMul' ? spelledAttention(view, product) : undefined;
}

function fusedAttention(view: OnnxView, node: OnnxNode): Attention {
  const number = (attribute: string): number | undefined => {
    const value = node.attributes.get(attribute);
    return typeof value === 'number' ? value : undefined;
  };
  if ((number('softcap') ?? 0) !== 0) view.refuse(node, 'caps its scores (softcap), which is not supported');
  if ((number('local_window_size') ?? -1) !== -1)
    view.refuse(node, 'sees a sliding window only (local_window_size), which is not supported');
  if (number('smooth_softmax') === 1 || node.inputs[11] || node.inputs[10])
    view.refuse(node, 'has a bias or sinks in its softmax, which is not supported');
  const [q, k, v, pastK, pastV] = node.inputs;
  const cos = node.inputs[7];
  const sin = node.inputs[8];
  for (const past of [pastK, pastV])
    if (past && !view.isInput(past))
      view.refuse(node, `reads its past from ${past}, which is no input of the graph`);

  let rotations: [Rotation, Rotation] | undefined;
  if (number('do_rotary') === 1) {
    const table = rotaryTheta(view, node, cos, sin);
    const interleaved = number('rotary_interleaved') === 1;
    rotations = [
      { x: q!, theta: table, interleaved },
      { x: k!, theta: table, interleaved },
    ];
  } else if (k)
    rotations = [rotation(view, q!) ?? noRotation(view, node), rotation(view, k) ?? noRotation(view, node)];
  else view.refuse(node, 'has fused inputs that nothing rotates; only rotary positions are supported');
  const [forQ, forK] = agreed(view, node, rotations);
  const project = (value: string): Linear =>
    view.linear(view.unshaped(value)) ?? view.refuse(node, `reads ${value}, which is no projection`);
  const kvHeads = number('kv_num_heads');
  const pastDims = pastK ? view.inputDims(pastK) : undefined;
  const past = pastDims?.[3];
  return {
    node,
    projections: k ? [project(forQ.x), project(forK.x), project(v!)] : [project(forQ.x)],
    heads: number('num_heads'),
    kvHeads,
    headDim: typeof past === 'number' && past > 0 ? past : undefined,
    scale: number('scale') || undefined,
    theta: forQ.theta,
    interleaved: forQ.interleaved,
  };
}

const noRotation = (view: OnnxView, node: OnnxNode): never =>
  view.refuse(node, 'has no rotary embedding; only rotary positions are supported');

function agreed(view: OnnxView, node: OnnxNode, [q, k]: readonly [Rotation, Rotation]): [Rotation, Rotation] {
  if (q.theta !== k.theta || q.interleaved !== k.interleaved)
    view.refuse(node, 'rotates queries and keys differently');
  return [q, k];
}

/** MatMul(softmax(q k^T scale + mask), v), keys and values appended to past_key_values and repeated for each query head of a group. */
function spelledAttention(view: OnnxView, product: OnnxNode): Attention | undefined {
  let weights = view.producer(product.inputs[0]!);
  // PyTorch turns the NaNs of fully masked rows into zeros; a causal mask has no such rows.
  if (weights?.op === 'Where' && view.producer(weights.inputs[0]!)?.op === 'IsNaN')
    weights = view.producer(weights.inputs[2]!);
  if (weights?.op !== 'Softmax') return undefined;
  if (![undefined, -1, 3].includes(weights.attributes.get('axis') as number | undefined))
    view.refuse(weights, 'is not taken over the keys');
  const masked = view.producer(weights.inputs[0]!);
  if (masked?.op !== 'Add') return view.refuse(weights, 'has no mask: the attention is not causal');
  const sides = view.operands(masked, (name) => scores(view, name) !== undefined);
  if (!sides) return view.refuse(masked, 'adds a mask to no scores');
  const { node, scale } = scores(view, sides[0])!;
  checkMask(view, masked, sides[1]);

  const q = scaled(view, node.inputs[0]!);
  const k = scaled(view, node.inputs[1]!);
  const keys = appended(view, node, k.name);
  const values = appended(view, product, product.inputs[1]!);
  const [forQ, forK] = agreed(view, node, [
    rotation(view, q.name) ?? noRotation(view, node),
    rotation(view, keys.fresh) ?? noRotation(view, node),
  ]);
  const project = (value: string): Linear =>
    view.linear(view.unshaped(value)) ?? view.refuse(node, `reads ${value}, which is no projection`);
  const [, kvHeads, , headDim] = view.inputDims(keys.past) ?? [];
  const known = (dim: number | string | undefined) => (typeof dim === 'number' && dim > 0 ? dim : undefined);
  return {
    node: product,
    projections: [project(forQ.x), project(forK.x), project(values.fresh)],
    heads: undefined,
    kvHeads: known(kvHeads),
    headDim: known(headDim),
    scale: scale * q.factor * k.factor,
    theta: forQ.theta,
    interleaved: forQ.interleaved,
  };
}

/** A product of two computed values, perhaps multiplied by a stored number. */
function scores(view: OnnxView, name: string): { node: OnnxNode; scale: number } | undefined {
  const { name: at, factor } = scaled(view, name);
  const node = view.producer(at);
  return node?.op === 'MatMul' && !view.constant(node.inputs[1]!) ? { node, scale: factor } : undefined;
}

/** Looks through products with and quotients by stored numbers, and through reshapes. */
function scaled(view: OnnxView, name: string): { name: string; factor: number } {
  let factor = 1;
  let at = view.unshaped(name);
  for (;;) {
    const node = view.producer(at);
    const sides = node?.op === 'Mul' && view.operands(node, (input) => view.scalar(input) !== undefined);
    if (sides) {
      factor *= view.scalar(sides[0])!;
      at = view.unshaped(sides[1]);
    } else if (node?.op === 'Div' && view.scalar(node.inputs[1]) !== undefined) {
      factor /= view.scalar(node.inputs[1])!;
      at = view.unshaped(node.inputs[0]!);
    } else return { name: at, factor };
  }
}

/** Concat(past, fresh), under the reshapes that repeat it for the query heads of a group. */
function appended(view: OnnxView, reader: OnnxNode, name: string): { past: string; fresh: string } {
  const node = view.producer(view.unshaped(name));
  const [past, fresh] = node?.op === 'Concat' ? node.inputs.map((input) => view.strip(input)) : [];
  if (!past || !fresh || !view.isInput(past))
    return view.refuse(reader, `reads ${name}, which is not past_key_values and what is new`);
  return { past, fresh };
}

/** A causal mask compares positions once; a second comparison would be a sliding window or blocks. */
function checkMask(view: OnnxView, masked: OnnxNode, mask: string): void {
  const seen = new Set<string>();
  const compare = new Set<string>();
  const walk = (name: string): void => {
    const node = view.producer(name);
    if (!node || seen.has(node.name)) return;
    seen.add(node.name);
    if (view.linear(node.outputs[0]!))
      view.refuse(masked, `adds ${node.name}, which is computed from weights`);
    if (['Less', 'LessOrEqual', 'Greater', 'GreaterOrEqual', 'Trilu'].includes(node.op))
      compare.add(node.name);
    // Shapes of hidden values may size a mask; their contents never do.
    if (node.op !== 'Shape') for (const input of node.inputs) walk(input);
  };
  walk(mask);
  if (compare.size !== 1)
    view.refuse(
      masked,
      `adds a mask made with ${compare.size} comparisons of positions; a causal one has exactly one`,
    );
}

/** The rotary embedding that computes a value. */
function rotation(view: OnnxView, name: string): Rotation | undefined {
  const node = view.producer(view.unshaped(name));
  if (node?.op === 'com.microsoft::RotaryEmbedding') {
    const [x, , cos, sin] = node.inputs;
    if ((node.attributes.get('rotary_embedding_dim') ?? 0) !== 0)
      view.refuse(node, 'rotates a part of the head only, which is not supported');
    if ((node.attributes.get('scale') ?? 1) !== 1)
      view.refuse(node, 'scales positions, which is not supported');
    return {
      x: view.strip(x!),
      theta: rotaryTheta(view, node, cos, sin),
      interleaved: node.attributes.get('interleaved') === 1,
    };
  }
  return node?.op === 'Add' ? spelledRotation(view, node) : undefined;
}

/** x * cos + rotateHalf(x) * sin, where rotateHalf(x) = Concat(-x[half ..], x[.. half]). */
function spelledRotation(view: OnnxView, node: OnnxNode): Rotation | undefined {
  const terms = node.inputs.map((input) => view.producer(input));
  const halfTerm = terms.find((t) => t?.op === 'Mul' && rotatedHalf(view, t) !== undefined);
  const plain = terms.find((t) => t !== halfTerm);
  if (!halfTerm || plain?.op !== 'Mul') return undefined;
  const half = rotatedHalf(view, halfTerm)!;
  const sides = view.operands(plain, (input) => view.unshaped(input) === view.unshaped(half.x));
  if (!sides) return view.refuse(node, 'rotates another value than it scales');
  const cos = angle(view, sides[1], 'Cos');
  const sin = angle(view, half.by, 'Sin');
  if (!cos || cos !== sin) return view.refuse(node, 'is no rotation by cosine and sine of one angle');
  return { x: view.unshaped(half.x), theta: anglesTheta(view, node, cos), interleaved: false };
}

function rotatedHalf(view: OnnxView, product: OnnxNode): { x: string; by: string } | undefined {
  const sides = view.operands(product, (input) => view.producer(input)?.op === 'Concat');
  if (!sides) return undefined;
  const concat = view.producer(sides[0])!;
  const negated = view.producer(concat.inputs[0]!);
  const upper = negated?.op === 'Neg' ? view.producer(negated.inputs[0]!) : undefined;
  const lower = view.producer(concat.inputs[1]!);
  if (upper?.op !== 'Slice' || lower?.op !== 'Slice') return undefined;
  const fromStart = view.scalar(lower.inputs[1]) === 0;
  const toEnd = (view.scalar(upper.inputs[2]) ?? 0) >= 2 ** 31 - 1;
  const contiguous = [upper, lower].every((s) => s.inputs[4] === undefined || view.scalar(s.inputs[4]) === 1);
  if (!fromStart || !toEnd || !contiguous || view.strip(upper.inputs[0]!) !== view.strip(lower.inputs[0]!))
    return undefined;
  return { x: view.strip(upper.inputs[0]!), by: sides[1] };
}

/** The value whose cosine or sine this is; a factor of 1 is looked through. */
function angle(view: OnnxView, name: string, op: 'Cos' | 'Sin'): string | undefined {
  const { name: at, factor } = scaled(view, name);
  const node = view.producer(at);
  if (node?.op !== op) return undefined;
  if (factor !== 1) view.refuse(node, `is scaled by ${factor}, which is not supported`);
  return view.strip(node.inputs[0]!);
}

/** Concat(f, f), f = frequencies x position_ids. */
function anglesTheta(view: OnnxView, reader: OnnxNode, name: string): number {
  const concat = view.producer(name);
  const [a, b] = concat?.op === 'Concat' ? concat.inputs.map((input) => view.unshaped(input)) : [];
  const product = a !== undefined && a === b ? view.producer(a) : undefined;
  const sides =
    product?.op === 'MatMul' || product?.op === 'Mul'
      ? view.operands(product, (input) => view.constant(view.unshaped(input)) !== undefined)
      : undefined;
  if (!sides || view.unshaped(sides[1]) !== 'position_ids')
    return view.refuse(reader, 'does not rotate by frequencies times position_ids');
  const frequencies = tensorNumbers(view.constant(view.unshaped(sides[0]))!);
  const last = frequencies.length - 1;
  const tolerance = view.constant(view.unshaped(sides[0]))!.type === TYPE.FLOAT16 ? 2e-3 : 2e-6;
  return roundedTheta(
    frequencies[last]! ** (-frequencies.length / Math.max(1, last)),
    (theta) => frequencies.every((f, i) => Math.abs(f * theta ** (i / frequencies.length) - 1) < tolerance),
    () =>
      view.refuse(
        reader,
        'rotates by frequencies that are no powers of one base (scaled positions are not supported)',
      ),
  );
}

/** Tables cos, sin [positions, headDim / 2] of position * theta^(-i / (headDim / 2)). */
function rotaryTheta(
  view: OnnxView,
  node: OnnxNode,
  cosName: string | undefined,
  sinName: string | undefined,
): number {
  const stored = (name: string | undefined): OnnxTensor =>
    (name ? view.constant(name) : undefined) ?? view.refuse(node, `computes its rotary table ${name ?? ''}`);
  const [cosTensor, sinTensor] = [stored(cosName), stored(sinName)];
  const [cos, sin] = [tensorNumbers(cosTensor), tensorNumbers(sinTensor)];
  const [positions, half] = cosTensor.dims as [number, number];
  if (cosTensor.dims.length !== 2 || positions < 2 || sin.length !== cos.length)
    view.refuse(node, `has a rotary table of [${cosTensor.dims.join(', ')}]`);
  const coarse = cosTensor.type === TYPE.FLOAT16 ? 1e-3 : 0;
  const rows = [1, 2, 3, 5, 17, 101, 1009, 10007, positions - 1].filter((p) => p < positions);
  const last = half - 1;
  const angleOne = Math.atan2(sin[half + last]!, cos[half + last]!);
  return roundedTheta(
    angleOne ** (-half / Math.max(1, last)),
    (theta) =>
      rows.every((p) => {
        // The exporter's angle is a float32, so it is off by a part in 2^24 of itself.
        const tolerance = 1e-5 + coarse + p * 2e-7;
        for (let i = 0; i < half; i++) {
          const a = p * theta ** (-i / half);
          if (!(Math.abs(cos[p * half + i]! - Math.cos(a)) <= tolerance)) return false;
          if (!(Math.abs(sin[p * half + i]! - Math.sin(a)) <= tolerance)) return false;
        }
        return true;
      }),
    () => view.refuse(node, 'has a rotary table that is no plain one (scaled positions are not supported)'),
  );
}

/** The base with the fewest digits that fits: a stored table knows it to the precision of its elements only. */
function roundedTheta(estimate: number, fits: (theta: number) => boolean, refuse: () => never): number {
  for (let digits = 1; digits <= 7; digits++) {
    const theta = Number(estimate.toPrecision(digits));
    if (Number.isFinite(theta) && fits(theta)) return theta;
  }
  return refuse();
}
