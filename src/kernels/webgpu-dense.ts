import type { WeightForm } from './kernels.ts';
import { type Kernel, kernel, type ShaderSources } from './webgpu.ts';
import { unroll } from './webgpu-prelude.ts';
import { TABLE_ALIGNMENT } from './webgpu-stream.ts';
import { COPY_DST, UNIFORM } from './webgpu-usage.ts';

/** Forms that the GPU multiplies with. q6h is decoded to f32 when it is loaded. */
export type GpuForm = Exclude<WeightForm, 'q6h'>;
/** Rows that a workgroup of a product takes on at once: one for decoding, several for a chunk. A row's result is the same bits either way. */
export const MANY_ROWS = 8;

/** struct Step of shaders/dense.wgsl; places in units of 4 floats, the weight's in bytes. */
export interface DenseStep {
  readonly x: number;
  readonly ldX: number;
  readonly out: number;
  readonly ldOut: number;
  readonly weight: number;
  readonly k: number;
  readonly other: number;
  readonly epsilon: number;
  readonly quads: number;
  /** As `weight`. */
  readonly gate: number;
  /** In units of 4 floats. */
  readonly norm: number;
}
/** Steps that a dispatch may do one after the other. */
export const MOST_STEPS = 3;
/** Words of 32 bits from step to step: structs in a uniform array lie at multiples of 16 bytes. */
const STEP_STRIDE = 12;

export type Elementwise = 'Add' | 'Mul' | 'Sigmoid' | 'SiluMul';
const OPERATIONS: Readonly<Record<Elementwise, string>> = {
  Add: 'a + b',
  Mul: 'a * b',
  Sigmoid: '1.0 / (1.0 + exp(-a))',
  SiluMul: 'a / (1.0 + exp(-a)) * b',
};

/** The model's row-wise kernels, compiled when they are first asked for. All but `embed` share the bindings step, weights, workspace. */
export class WebGpuDense {
  readonly #device: GPUDevice;
  readonly #shaders: ShaderSources;
  readonly #made = new Map<string, Kernel>();

  constructor(device: GPUDevice, shaders: ShaderSources) {
    this.#device = device;
    this.#shaders = shaders;
  }

  /** @param normed channels of the operand, which is one row and normalised first; its factors are the fourth binding */
  matmul(form: GpuForm, rows: 1 | typeof MANY_ROWS, end: 'plain' | 'adds' | 'gated', normed = 0): Kernel {
    return this.#get(`matmul ${form} ${rows} ${end} ${normed}`, normed ? 'Urwr' : 'Urw', () => [
      this.#shaders.dense,
      `const ROWS = ${rows}u;\nconst ADDS = ${end === 'adds'};\nconst GATED = ${end === 'gated'};\nconst K = ${normed}u;`,
      ...(normed ? [this.#shaders.rms, this.#shaders['operand-normed']] : [this.#shaders['operand-rows']]),
      this.#shaders[`weights-${form}`],
      unroll(this.#shaders.matmul, { h: rows }),
    ]);
  }
  /** Has the ids' table as its fourth binding. */
  embed(form: GpuForm): Kernel {
    return this.#get(`embed ${form}`, 'UrwR', () => [
      this.#shaders.dense,
      this.#shaders[`weights-${form}`],
      this.#shaders.embed,
    ]);
  }
  rmsNorm(): Kernel {
    return this.#get('rms-norm', 'Urw', () => [
      this.#shaders.dense,
      this.#shaders.rms,
      this.#shaders['rms-norm'],
    ]);
  }
  elementwise(op: Elementwise): Kernel {
    return this.#get(op, 'Urw', () => [
      this.#shaders.dense,
      `fn operation(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> { return ${OPERATIONS[op]}; }`,
      this.#shaders.elementwise,
    ]);
  }

  /** A buffer of dispatches' steps, each bound with the dynamic offset that its index gives. */
  steps(dispatches: readonly (readonly DenseStep[])[], unit: (index: number) => number): GPUBuffer {
    const words = new Uint32Array((Math.max(1, dispatches.length) * TABLE_ALIGNMENT) / 4);
    const floats = new Float32Array(words.buffer);
    dispatches.forEach((steps, i) => {
      steps.forEach((s, j) => {
        const at = (i * TABLE_ALIGNMENT) / 4 + j * STEP_STRIDE;
        words.set([s.x, s.ldX, s.out, s.ldOut, s.weight / unit(i), s.k, s.other], at);
        floats[at + 7] = s.epsilon;
        words.set([s.quads, s.gate / unit(i), s.norm], at + 8);
      });
    });
    const buffer = this.#device.createBuffer({ size: words.byteLength, usage: UNIFORM | COPY_DST });
    this.#device.queue.writeBuffer(buffer, 0, words);
    return buffer;
  }

  bind(
    { layout }: Kernel,
    steps: GPUBuffer,
    weights: GPUBuffer,
    workspace: GPUBuffer,
    fourth?: GPUBufferBinding,
  ): GPUBindGroup {
    const resources: GPUBufferBinding[] = [
      { buffer: steps, size: MOST_STEPS * STEP_STRIDE * 4 },
      { buffer: weights },
      { buffer: workspace },
      ...(fourth ? [fourth] : []),
    ];
    return this.#device.createBindGroup({
      layout,
      entries: resources.map((resource, binding) => ({ binding, resource })),
    });
  }

  #get(label: string, bindings: string, code: () => readonly string[]): Kernel {
    const found = this.#made.get(label) ?? kernel(this.#device, label, bindings, code());
    this.#made.set(label, found);
    return found;
  }
}
/** Bytes of the elements that a form's shader reads weights by. */
export const weightUnit = (form: GpuForm): number => (form === 'q8_0' ? 4 : 16);
