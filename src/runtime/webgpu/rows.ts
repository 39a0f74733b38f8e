import { UnsupportedModelError } from '../../core/errors.ts';
import type { Kernel } from '../../kernels/webgpu.ts';
import {
  type DenseStep,
  type Elementwise,
  MANY_ROWS,
  MOST_STEPS,
  type WebGpuDense,
  weightUnit,
} from '../../kernels/webgpu-dense.ts';
import { type CommandStream, TABLE_ALIGNMENT, TABLE_WINDOW } from '../../kernels/webgpu-stream.ts';
import type { Program, Step } from '../program.ts';
import { absorbedNorms } from './fuse.ts';
import type { GpuWeight } from './weights.ts';

/** A step that works row by row, with its bindings made. */
export type RowOp =
  | { readonly kind: 'embed'; record(stream: CommandStream, ids: Uint32Array): void }
  | { readonly kind: 'rows'; record(stream: CommandStream, rows: number): void }
  /** The last product, of `count` rows from `first` on; its output lies at logitsAt. */
  | { readonly kind: 'logits'; record(stream: CommandStream, first: number, count: number): void };

export interface RowsOptions {
  readonly program: Program;
  readonly weights: ReadonlyMap<string, GpuWeight>;
  readonly dense: WebGpuDense;
  readonly workspace: GPUBuffer;
  readonly tables: GPUBuffer;
  /** Byte offset of the logits in the workspace. */
  readonly logitsAt: number;
  readonly maxRows: number;
}

/** Makes every step but the attentions ready to be recorded: where its operands lie does not change from chunk to chunk. */
export function compileRows(options: RowsOptions): ReadonlyMap<number, RowOp> {
  const { program, dense, workspace } = options;
  const ops = new Map<number, RowOp>();
  const dispatches: DenseStep[][] = [];
  const units: number[] = [];
  const makers: ((stepBuffer: GPUBuffer) => void)[] = [];
  /** Each of `more` a dispatch of its own steps. @returns the first one's offset */
  const add = (unit: number, ...more: DenseStep[][]): number => {
    for (const steps of more) {
      dispatches.push(steps);
      units.push(unit);
    }
    return (dispatches.length - more.length) * TABLE_ALIGNMENT;
  };
  const at = (name: string): number => program.offset.get(name)! / 16;
  const widthOf = (name: string): number => {
    const width = program.width.get(name)!;
    if (width % 4 !== 0)
      throw new UnsupportedModelError(
        `value ${name} has ${width} columns: the WebGPU kernels want a multiple of 4; use the wasm backend`,
      );
    return width / 4;
  };
  const weightOf = (step: Step, input: number): GpuWeight => {
    const weight = options.weights.get(step.inputs[input]!);
    if (!weight) throw new UnsupportedModelError(`node ${step.node.name}: no weight ${step.inputs[input]}`);
    return weight;
  };
  const put = (
    stream: CommandStream,
    label: string,
    { pipeline }: Kernel,
    group: GPUBindGroup,
    offsets: readonly number[],
    x: number,
    y: number,
  ): void => {
    const pass = stream.pass(label);
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, group, offsets);
    pass.dispatchWorkgroups(x, y);
  };
  /** Products in a row of the same rows by weights of one form: one dispatch. What they write nobody reads before all are done. */
  const taken = new Set<number>();
  const sameRows = (index: number): number[] => {
    const first = program.steps[index]!;
    const { form, buffer } = weightOf(first, 1);
    const company = [index];
    for (let i = index + 1; i < index + MOST_STEPS; i++) {
      const step = program.steps[i];
      if (step?.op !== first.op || step.inputs[0] !== first.inputs[0] || !program.offset.has(step.output))
        break;
      const weight = weightOf(step, 1);
      if (weight.form !== form || weight.buffer !== buffer) break;
      company.push(i);
    }
    return company;
  };
  /** One row alone is normalised by each workgroup that reads it: a kernel less. */
  const norms = absorbedNorms(program);
  const anyWeight = [...options.weights.values()][0]!;

  for (const [index, step] of program.steps.entries()) {
    const { op, inputs, output } = step;
    const base = {
      x: 0,
      ldX: 0,
      out: 0,
      ldOut: 0,
      weight: 0,
      k: 0,
      other: 0,
      epsilon: 0,
      quads: 0,
      gate: 0,
      norm: 0,
    };
    switch (op) {
      case 'GroupQueryAttention':
        break;
      case 'Gather': {
        const table = weightOf(step, 0);
        const kernel = dense.embed(table.form);
        const offset = add(weightUnit(table.form), [
          { ...base, out: at(output), ldOut: widthOf(output), weight: table.at, k: table.shape[1]! },
        ]);
        makers.push((stepBuffer) => {
          const ids = { buffer: options.tables, size: TABLE_WINDOW };
          const group = dense.bind(kernel, stepBuffer, table.buffer, workspace, ids);
          ops.set(index, {
            kind: 'embed',
            record(stream, tokens) {
              stream.reserve(TABLE_ALIGNMENT * 4);
              put(stream, 'embed', kernel, group, [offset, stream.table(tokens)], tokens.length, 1);
            },
          });
        });
        break;
      }
      case 'SimplifiedLayerNormalization': {
        const weight = weightOf(step, 1);
        const kernel = dense.rmsNorm();
        const offset = add(16, [
          {
            ...base,
            ...{ x: at(inputs[0]!), ldX: widthOf(inputs[0]!), out: at(output), ldOut: widthOf(output) },
            ...{ weight: weight.at, k: weight.shape[0]!, epsilon: step.node.attributes.epsilon as number },
          },
        ]);
        makers.push((stepBuffer) => {
          const group = dense.bind(kernel, stepBuffer, weight.buffer, workspace);
          ops.set(index, {
            kind: 'rows',
            record: (stream, rows) => {
              if (rows > 1 || !norms.has(output)) put(stream, 'rms-norm', kernel, group, [offset], rows, 1);
            },
          });
        });
        break;
      }
      case 'MatMul':
      case 'MatMulNBits':
      case 'MatMulAdd':
      case 'GatedMatMul': {
        if (taken.has(index)) break;
        const weight = weightOf(step, 1);
        const [n, k] = weight.shape as [number, number];
        const end = op === 'MatMulAdd' ? 'adds' : op === 'GatedMatMul' ? 'gated' : 'plain';
        const one = dense.matmul(weight.form, 1, end);
        const many = dense.matmul(weight.form, MANY_ROWS, end);
        const x = at(inputs[0]!);
        const ldX = widthOf(inputs[0]!);
        const unit = weightUnit(weight.form);
        const quads = Math.ceil(n / 4);
        const common = { ...base, x, ldX, ldOut: quads, weight: weight.at, k, quads };
        const isLogits = !program.offset.has(output);
        const company = end === 'plain' && !isLogits ? sameRows(index) : [index];
        const stepOf = (i: number): DenseStep => {
          const own = program.steps[i]!;
          const { at: place, shape } = weightOf(own, 1);
          return {
            ...{ ...common, out: at(own.output), ldOut: widthOf(own.output), weight: place },
            quads: Math.ceil(shape[0]! / 4),
            ...(op === 'MatMulAdd' && { other: at(own.inputs[2]!) }),
            ...(op === 'GatedMatMul' && { gate: weightOf(own, 2).at }),
          };
        };
        let offset: number;
        let allQuads = quads;
        if (isLogits) {
          const rows = Array.from({ length: options.maxRows }, (_, row) => [
            { ...common, x: x + row * ldX, out: options.logitsAt / 16 },
          ]);
          offset = add(unit, ...rows);
        } else {
          for (const i of company) taken.add(i);
          const steps = company.map(stepOf);
          allQuads = steps.reduce((sum, s) => sum + s.quads, 0);
          offset = add(unit, steps);
        }
        const norm = isLogits ? undefined : norms.get(inputs[0]!);
        const alone = norm && {
          kernel: dense.matmul(weight.form, 1, end, k),
          factors: weightOf(norm, 1),
          offset: add(
            unit,
            company.map((i) => ({
              ...stepOf(i),
              ...{ x: at(norm.inputs[0]!), epsilon: norm.node.attributes.epsilon as number },
              norm: weightOf(norm, 1).at / 16,
            })),
          ),
        };
        const label = `matmul ${weight.form}${end === 'plain' ? '' : ` ${end}`}`;
        makers.push((stepBuffer) => {
          const group = dense.bind(one, stepBuffer, weight.buffer, workspace);
          const groupAlone =
            alone &&
            dense.bind(alone.kernel, stepBuffer, weight.buffer, workspace, { buffer: alone.factors.buffer });
          const groupMany = dense.bind(many, stepBuffer, weight.buffer, workspace);
          const record = (stream: CommandStream, name: string, place: number, rows: number): void => {
            if (rows === 1 && alone)
              put(stream, name, alone.kernel, groupAlone!, [alone.offset], allQuads, 1);
            else if (rows === 1) put(stream, name, one, group, [place], allQuads, 1);
            else put(stream, name, many, groupMany, [place], allQuads, Math.ceil(rows / MANY_ROWS));
          };
          ops.set(
            index,
            isLogits
              ? {
                  kind: 'logits',
                  record: (stream, first, count) =>
                    record(stream, 'logits', offset + first * TABLE_ALIGNMENT, count),
                }
              : { kind: 'rows', record: (stream, rows) => record(stream, label, offset, rows) },
          );
        });
        break;
      }
      case 'Sigmoid':
      case 'Add':
      case 'Mul':
      case 'SiluMul': {
        const kernel = dense.elementwise(op satisfies Elementwise);
        const width = widthOf(output);
        const offset = add(16, [
          {
            ...{ ...base, x: at(inputs[0]!), ldX: width, out: at(output), ldOut: width, k: width * 4 },
            other: at(inputs[1] ?? inputs[0]!),
          },
        ]);
        makers.push((stepBuffer) => {
          const group = dense.bind(kernel, stepBuffer, anyWeight.buffer, workspace);
          ops.set(index, {
            kind: 'rows',
            record: (stream, rows) => put(stream, op, kernel, group, [offset], Math.ceil(width / 64), rows),
          });
        });
        break;
      }
      default:
        throw new UnsupportedModelError(
          `the WebGPU backend has no kernel for ${op} (node ${step.node.name}); use the wasm backend`,
        );
    }
  }
  const buffer = dense.steps(dispatches, (i) => units[i]!);
  for (const make of makers) make(buffer);
  return ops;
}
