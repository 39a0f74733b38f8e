import { UnsupportedModelError } from '../core/errors.ts';
import type { Graph, GraphNode } from './graph.ts';

/**
 * A maximal run of nodes that one side executes. Names are the graph's; `nodes` stand in an order in which they can
 * be executed one after another.
 */
export interface Stage {
  /** 'kernels': our kernels. 'ort': onnxruntime-web, through the model that stage-model.ts lowers the stage to. */
  readonly kind: 'kernels' | 'ort';
  readonly nodes: readonly GraphNode[];
  /** Graph inputs and values of earlier stages that this one reads, in order of first use. */
  readonly inputs: readonly string[];
  /** Values that a later stage reads or the graph returns. Everything else may be forgotten when the stage ends. */
  readonly outputs: readonly string[];
  /** Weights read here, each once. */
  readonly weights: readonly string[];
}

/** Whether our kernels run this node. `isWeight` tells a stored tensor from a computed value. */
export type Claims = (node: GraphNode, isWeight: (name: string) => boolean) => boolean;

export const isAttention = (node: GraphNode): boolean =>
  node.op === 'GroupQueryAttention' && node.domain === MICROSOFT;

const MICROSOFT = 'com.microsoft';
const qualified = (node: GraphNode): string => (node.domain === '' ? node.op : `${node.domain}::${node.op}`);

/** Every operator of a llama-family decoder, as graph.ts lists them, in the operand forms that the kernels read. */
export const claimDecoder: Claims = (node, isWeight) => {
  const weightAt = (i: number): boolean => node.inputs[i] !== undefined && isWeight(node.inputs[i]);
  const values = (count: number): boolean =>
    node.inputs.length === count && !node.inputs.some((name) => isWeight(name));
  switch (qualified(node)) {
    case 'Gather':
      return weightAt(0) && !weightAt(1);
    case 'SimplifiedLayerNormalization':
    case 'MatMul':
    case 'com.microsoft::MatMulNBits':
      return !weightAt(0) && weightAt(1) && node.inputs.length === 2;
    case 'Add':
    case 'Mul':
      return values(2);
    case 'Sigmoid':
      return values(1);
    default:
      return isAttention(node);
  }
};

/** Attention alone: it must read the packed cache. What is left runs on onnxruntime-web. */
export const claimAttentionOnly: Claims = isAttention;

/**
 * Operators that a stage may leave to onnxruntime-web's WASM provider (version 1.30, the CPU provider's kernels), limited to
 * those that map f32 [rows, width] values to such values. A test loads and runs every one of them.
 */
export const ORT_OPERATORS: ReadonlySet<string> = new Set([
  // what a decoder consists of
  ...[
    'Gather',
    'MatMul',
    'SimplifiedLayerNormalization',
    'Add',
    'Mul',
    'Sigmoid',
    'com.microsoft::MatMulNBits',
  ],
  // arithmetic, with a second operand of the same shape or a weight [width]
  ...['Sub', 'Div', 'Pow', 'Min', 'Max', 'PRelu'],
  // elementwise functions
  ...[
    'Abs',
    'Ceil',
    'Cos',
    'Erf',
    'Exp',
    'Floor',
    'Identity',
    'Log',
    'Neg',
    'Reciprocal',
    'Round',
    'Sign',
    'Sin',
  ],
  ...['Softplus', 'Softsign', 'Sqrt', 'Tanh'],
  // activations
  ...[
    'Celu',
    'Elu',
    'Gelu',
    'HardSigmoid',
    'HardSwish',
    'LeakyRelu',
    'Mish',
    'Relu',
    'Selu',
    'ThresholdedRelu',
  ],
  ...[
    'com.microsoft::Gelu',
    'com.microsoft::FastGelu',
    'com.microsoft::QuickGelu',
    'com.microsoft::BiasGelu',
  ],
  // along a row
  ...['LayerNormalization', 'LpNormalization', 'Softmax', 'LogSoftmax'],
]);

/** Names that no node produces and the graph does not take: stored tensors. '' marks an absent optional input. */
export function weightNames(graph: Graph): Set<string> {
  const values = new Set(graph.inputs);
  for (const node of graph.nodes) for (const name of node.outputs) values.add(name);
  const weights = new Set<string>();
  for (const node of graph.nodes)
    for (const name of node.inputs) if (name !== '' && !values.has(name)) weights.add(name);
  return weights;
}

/**
 * Cuts the graph into stages, few and long: nodes of one side are taken as long as any is ready, then the other side's turn
 * comes. Pure: the same graph gives the same stages. Attention is claimed whatever `claims` says.
 * @throws UnsupportedModelError naming the node when neither side can run it, a value is produced twice or never, or nodes form a cycle.
 */
export function partition(graph: Graph, claims: Claims): Stage[] {
  const weights = weightNames(graph);
  const isWeight = (name: string): boolean => weights.has(name);
  const kinds = graph.nodes.map((node) => kindOf(node, claims, isWeight));
  checkProducers(graph, isWeight);

  const known = new Set(graph.inputs);
  const ready = (node: GraphNode): boolean =>
    node.inputs.every((name) => name === '' || isWeight(name) || known.has(name));
  const left = new Set(graph.nodes.keys());
  const runs: { kind: Stage['kind']; nodes: GraphNode[] }[] = [];
  while (left.size > 0) {
    const first = [...left].find((i) => ready(graph.nodes[i]!));
    if (first === undefined) {
      const stuck = graph.nodes[[...left][0]!]!;
      throw new UnsupportedModelError(
        `node ${stuck.name} (${stuck.op}) waits for its own output: the graph has a cycle`,
      );
    }
    // After a run of one kind nothing of that kind is ready, so the kind changes with every run.
    const kind = kinds[first]!;
    const nodes: GraphNode[] = [];
    for (let progress = true; progress; ) {
      progress = false;
      for (const i of left) {
        const node = graph.nodes[i]!;
        if (kinds[i] !== kind || !ready(node)) continue;
        left.delete(i);
        nodes.push(node);
        for (const name of node.outputs) known.add(name);
        progress = true;
      }
    }
    runs.push({ kind, nodes });
  }
  return runs.map((run, i) => describe(run, runs.slice(i + 1), graph, isWeight));
}

function kindOf(node: GraphNode, claims: Claims, isWeight: (name: string) => boolean): Stage['kind'] {
  if (isAttention(node) || claims(node, isWeight)) return 'kernels';
  const op = qualified(node);
  if (ORT_OPERATORS.has(op)) return 'ort';
  throw new UnsupportedModelError(
    `node ${node.name} has operator ${op}, which neither the kernels nor onnxruntime-web's WASM provider run here; ` +
      'export the model with supported operators (ORT_OPERATORS in src/runtime/partition.ts)',
    { node: node.name, op },
  );
}

function checkProducers(graph: Graph, isWeight: (name: string) => boolean): void {
  const produced = new Set(graph.inputs);
  for (const node of graph.nodes)
    for (const name of node.outputs) {
      if (name !== '' && produced.has(name))
        throw new UnsupportedModelError(`node ${node.name} produces ${name}, which exists already`, {
          value: name,
        });
      produced.add(name);
    }
  for (const name of graph.outputs)
    if (!produced.has(name) || isWeight(name))
      throw new UnsupportedModelError(`no node produces the graph's output ${name}`, { value: name });
}

function describe(
  run: { kind: Stage['kind']; nodes: GraphNode[] },
  later: readonly { nodes: readonly GraphNode[] }[],
  graph: Graph,
  isWeight: (name: string) => boolean,
): Stage {
  const made = new Set(run.nodes.flatMap((node) => node.outputs));
  const read = new Set(
    run.nodes.flatMap((node) => node.inputs).filter((name) => name !== '' && !made.has(name)),
  );
  const wanted = new Set(graph.outputs);
  for (const { nodes } of later) for (const node of nodes) for (const name of node.inputs) wanted.add(name);
  return {
    kind: run.kind,
    nodes: run.nodes,
    inputs: [...read].filter((name) => !isWeight(name)),
    outputs: [...made].filter((name) => wanted.has(name) && name !== ''),
    weights: [...read].filter(isWeight),
  };
}
