import type { Ptr } from '../core/arena.ts';
import { UnsupportedModelError } from '../core/errors.ts';
import { type ActivationKind, activationKind, type WeightForm } from '../kernels/kernels.ts';
import type { LoadedModel } from './model.ts';
import type { Stage } from './partition.ts';
import type { Program, Step } from './program.ts';

type Op =
  | 'Foreign'
  | 'Gather'
  | 'SimplifiedLayerNormalization'
  | 'MatMul'
  | 'Logits'
  | 'GroupQueryAttention'
  | 'Sigmoid'
  | 'Add'
  | 'Mul'
  | 'SiluMul';

/**
 * A step with its operands' addresses and shapes in place of names: 600 steps a token would look up 2,000 names. All have the same
 * fields, so that the loop over them stays monomorphic; what a step has no use for is 0.
 */
export interface ResolvedStep {
  readonly op: Op;
  readonly step: Step;
  readonly stage: number;
  /** First operand and second operand, where they are values. */
  readonly x: Ptr;
  readonly y: Ptr;
  readonly weight: Ptr;
  readonly form: WeightForm;
  /** Rows and columns of the weight. */
  readonly n: number;
  readonly k: number;
  readonly out: Ptr;
  /** f32 columns of the output. */
  readonly width: number;
  readonly epsilon: number;
  /** The form that the operand must be brought into first; undefined: none, or a step before has done it. */
  readonly prepare: ActivationKind | undefined;
  /** The product reads a prepared operand instead of x. */
  readonly integer: boolean;
}

/** @param values address of the workspace that the program's offsets count from. @throws UnsupportedModelError */
export function resolveSteps(
  model: LoadedModel,
  program: Program,
  stages: readonly Stage[],
  values: Ptr,
): ResolvedStep[] {
  /** What the activation buffer holds: products of one value (q, k, v; gate, up) follow one another and share it. */
  let prepared: { readonly name: string; readonly kind: ActivationKind } | undefined;
  return program.steps.map((step, index) => {
    const at = (name: string | undefined): Ptr => {
      const offset = name === undefined ? undefined : program.offset.get(name);
      return offset === undefined ? 0 : values + offset;
    };
    const base: ResolvedStep = {
      op: 'Foreign',
      step,
      stage: step.stage,
      x: at(step.inputs[0]),
      y: at(step.inputs[1]),
      weight: 0,
      form: 'f32',
      n: 0,
      k: 0,
      out: at(step.output),
      width: program.width.get(step.output)!,
      epsilon: 0,
      prepare: undefined,
      integer: false,
    };
    const weightOf = (input: number) => {
      const weight = model.weights.get(step.inputs[input]!);
      if (!weight) throw new UnsupportedModelError(`node ${step.node.name}: no weight ${step.inputs[input]}`);
      return { weight: weight.ptr, form: weight.form, n: weight.shape[0]!, k: weight.shape[1] ?? 0 };
    };
    if (stages[step.stage]!.kind === 'ort') {
      prepared = undefined;
      return base;
    }
    if (prepared?.name === step.output) prepared = undefined;
    switch (step.op) {
      case 'Gather':
        return { ...base, op: step.op, ...weightOf(0) };
      case 'SimplifiedLayerNormalization':
        return { ...base, op: step.op, ...weightOf(1), epsilon: step.node.attributes.epsilon as number };
      case 'MatMul':
      case 'MatMulNBits': {
        const weight = weightOf(1);
        const kind = activationKind(weight.form);
        const logits = !program.offset.has(step.output);
        const name = step.inputs[0]!;
        const ready = !logits && prepared?.name === name && prepared.kind === kind;
        const integer = kind !== 'f32';
        // f32 operands are read where they lie and leave the buffer as it is.
        if (integer) prepared = logits ? undefined : { name, kind };
        return {
          ...base,
          op: logits ? 'Logits' : 'MatMul',
          ...weight,
          prepare: integer && !ready ? kind : undefined,
          integer,
        };
      }
      case 'GroupQueryAttention':
        // From the last attention on there may be fewer rows.
        if (index === program.lastAttention) prepared = undefined;
        return { ...base, op: step.op };
      case 'Sigmoid':
      case 'Add':
      case 'Mul':
      case 'SiluMul':
        return { ...base, op: step.op };
      default:
        throw new UnsupportedModelError(`node ${step.node.name}: no kernel for ${step.op}`);
    }
  });
}
