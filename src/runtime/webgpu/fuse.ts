import type { Program, Step } from '../program.ts';

const isProduct = (step: Step | undefined): step is Step =>
  step?.op === 'MatMul' || step?.op === 'MatMulNBits';

/** By output: norms that products alone read, while what they normalise still lies there, because a later step reads it. Products of logits choose their row. */
export function absorbedNorms({ steps, offset }: Program): ReadonlyMap<string, Step> {
  const norms = new Map<string, Step>();
  for (const step of steps) {
    if (step.op !== 'SimplifiedLayerNormalization') continue;
    const last = (name: string): number => steps.findLastIndex(({ inputs }) => inputs.includes(name));
    const readers = steps.filter(({ inputs }) => inputs.includes(step.output));
    const all = readers.every(
      (reader) =>
        (reader.op === 'GatedMatMul' || isProduct(reader)) &&
        reader.inputs[0] === step.output &&
        offset.has(reader.output),
    );
    if (all && last(step.inputs[0]!) > last(step.output)) norms.set(step.output, step);
  }
  return norms;
}

/**
 * A GPU's time per token goes to the number of kernels rather than to their work. Made here of steps in a row whose values nobody else reads:
 *   MatMulAdd    inputs [x, weight, other] of a product and Add
 *   GatedMatMul  inputs [x, up weight, gate weight] of two products and SiluMul
 */
export function fuseProducts(
  steps: readonly Step[],
  /** Whether one kernel can read both weights. */
  alike: (one: string, other: string) => boolean,
): Step[] {
  const uses = (name: string): number =>
    steps.reduce((sum, s) => sum + s.inputs.filter((input) => input === name).length, 0);
  const fused: Step[] = [];
  for (let i = 0; i < steps.length; i++) {
    const [a, b, c] = [steps[i]!, steps[i + 1], steps[i + 2]];
    if (isProduct(a) && b?.op === 'Add' && b.inputs.includes(a.output) && uses(a.output) === 1) {
      const other = b.inputs.find((name) => name !== a.output)!;
      fused.push({ ...a, op: 'MatMulAdd', inputs: [a.inputs[0]!, a.inputs[1]!, other], output: b.output });
      i++;
    } else if (
      isProduct(a) &&
      isProduct(b) &&
      c?.op === 'SiluMul' &&
      a.inputs[0] === b.inputs[0] &&
      alike(a.inputs[1]!, b.inputs[1]!) &&
      [a, b].every((s) => c.inputs.includes(s.output) && uses(s.output) === 1)
    ) {
      const [gate, up] = c.inputs[0] === a.output ? [a, b] : [b, a];
      const inputs = [up.inputs[0]!, up.inputs[1]!, gate.inputs[1]!];
      fused.push({ ...up, op: 'GatedMatMul', inputs, output: c.output });
      i += 2;
    } else fused.push(a);
  }
  return fused;
}
