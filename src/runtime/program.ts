import { align } from '../core/arena.ts';
import { UnsupportedModelError } from '../core/errors.ts';
import type { GraphNode } from './graph.ts';

/**
 * A stage list made ready to run: every value has a width and a place in one workspace, chosen so that values which are never alive at once
 * share bytes. Patterns that the kernels do in one pass are fused.
 */
export interface Step {
  /** 'SiluMul' is made here of Sigmoid(g), Mul(g, s), Mul(gs, u); everything else is the node's own operator. */
  readonly op: string;
  readonly node: GraphNode;
  readonly inputs: readonly string[];
  readonly output: string;
  /** Index into the stage list. */
  readonly stage: number;
}

export interface Program {
  readonly steps: readonly Step[];
  /** f32 columns of each value. */
  readonly width: ReadonlyMap<string, number>;
  /** Byte offset of each value in the workspace, for `maxRows` rows. */
  readonly offset: ReadonlyMap<string, number>;
  readonly workspaceBytes: number;
  /** Values alive after the given step, which a later step reads. */
  liveAfter(step: number): string[];
  /** Where a layer's output alone goes on: the first step that reads it for the layer above, and its name. @throws UnsupportedModelError */
  after(layer: number): { readonly step: number; readonly value: string };
  /** Index of the last attention step; -1 if none. Every later step is row-wise. */
  readonly lastAttention: number;
}

interface StageNodes {
  readonly nodes: readonly GraphNode[];
}

const uses = (nodes: readonly GraphNode[], name: string): number =>
  nodes.reduce((sum, n) => sum + n.inputs.filter((i) => i === name).length, 0);

/** Sigmoid, Mul, Mul in a row, of which nobody else reads the intermediate values. */
function fuse(nodes: readonly GraphNode[], all: readonly GraphNode[], stage: number): Step[] {
  const steps: Step[] = [];
  for (let i = 0; i < nodes.length; i++) {
    const [a, b, c] = [nodes[i]!, nodes[i + 1], nodes[i + 2]];
    const sigmoid = a.outputs[0]!;
    const product = b?.outputs[0];
    if (
      a.op === 'Sigmoid' &&
      b?.op === 'Mul' &&
      c?.op === 'Mul' &&
      b.inputs.includes(sigmoid) &&
      b.inputs.includes(a.inputs[0]!) &&
      c.inputs.includes(product!) &&
      uses(all, sigmoid) === 1 &&
      uses(all, product!) === 1
    ) {
      const up = c.inputs.find((name) => name !== product)!;
      steps.push({ op: 'SiluMul', node: c, inputs: [a.inputs[0]!, up], output: c.outputs[0]!, stage });
      i += 2;
    } else steps.push({ op: a.op, node: a, inputs: a.inputs, output: a.outputs[0]!, stage });
  }
  return steps;
}

function widthOf(
  step: Step,
  width: ReadonlyMap<string, number>,
  weightShape: (name: string) => readonly number[] | undefined,
): number {
  switch (step.op) {
    case 'Gather':
      return weightShape(step.inputs[0]!)![1]!;
    case 'MatMul':
    case 'MatMulNBits':
    case 'MatMulAdd':
    case 'GatedMatMul':
      return weightShape(step.inputs[1]!)![0]!;
    default: {
      for (const name of step.inputs) {
        const w = width.get(name);
        if (w !== undefined) return w;
      }
      throw new UnsupportedModelError(`node ${step.node.name}: no operand of known width`);
    }
  }
}

export function compile(
  stages: readonly (StageNodes & { readonly kind: 'kernels' | 'ort' })[],
  outputs: readonly string[],
  weightShape: (name: string) => readonly number[] | undefined,
  maxRows: number,
  fuseMore: (steps: readonly Step[]) => Step[] = (steps) => [...steps],
): Program {
  const all = stages.flatMap((s) => s.nodes);
  // onnxruntime runs its stages whole: each node is kept for its widths, none is fused.
  const plain = stages.flatMap((s, i) =>
    s.kind === 'kernels'
      ? fuse(s.nodes, all, i)
      : s.nodes.map((node) => ({
          op: node.op,
          node,
          inputs: node.inputs,
          output: node.outputs[0]!,
          stage: i,
        })),
  );
  const steps = fuseMore(plain);
  const width = new Map<string, number>();
  for (const step of steps) width.set(step.output, widthOf(step, width, weightShape));

  const isValue = (name: string): boolean => width.has(name);
  const lastUse = new Map<string, number>();
  steps.forEach((step, i) => {
    for (const name of step.inputs) if (isValue(name)) lastUse.set(name, i);
  });
  for (const name of outputs) lastUse.set(name, steps.length);

  const offset = new Map<string, number>();
  const live: { name: string; at: number; bytes: number }[] = [];
  let workspaceBytes = 0;
  steps.forEach((step, i) => {
    // Logits leave row tile by row tile through a buffer of their own.
    if (outputs.includes(step.output)) return;
    const bytes = align(width.get(step.output)! * maxRows * 4);
    let at = 0;
    for (const block of [...live].sort((a, b) => a.at - b.at)) {
      if (at + bytes <= block.at) break;
      at = Math.max(at, block.at + block.bytes);
    }
    offset.set(step.output, at);
    live.push({ name: step.output, at, bytes });
    workspaceBytes = Math.max(workspaceBytes, at + bytes);
    for (let j = live.length - 1; j >= 0; j--) if ((lastUse.get(live[j]!.name) ?? i) <= i) live.splice(j, 1);
  });

  const liveAfter = (index: number): string[] =>
    steps
      .slice(0, index + 1)
      .map((s) => s.output)
      .filter((name) => (lastUse.get(name) ?? -1) > index && !outputs.includes(name));
  const attentionOf = (layer: number): number =>
    steps.findIndex((s) => s.op === 'GroupQueryAttention' && s.node.attributes.layer === layer);
  return {
    steps,
    width,
    offset,
    workspaceBytes,
    lastAttention: steps.findLastIndex((s) => s.op === 'GroupQueryAttention'),
    liveAfter,
    after(layer) {
      const whole = (i: number): boolean => stages[steps[i]!.stage]!.kind === 'kernels';
      for (let i = attentionOf(layer + 1) - 1; i > attentionOf(layer); i--) {
        const [value, ...others] = liveAfter(i);
        if (value !== undefined && others.length === 0 && whole(i) && whole(i + 1))
          return { step: i + 1, value };
      }
      throw new UnsupportedModelError(`layers ${layer} and ${layer + 1} of this graph cannot be run apart`);
    },
  };
}
