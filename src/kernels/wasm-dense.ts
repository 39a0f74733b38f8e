import type { ActivationKind, WeightForm } from './kernels.ts';
import { activationRowBytes, type DenseKernels } from './reference-dense.ts';

type Matmul = (
  x: number,
  rows: number,
  weight: number,
  n: number,
  k: number,
  out: number,
  ldOut: number,
) => void;
type Embed = (table: number, k: number, ids: number, count: number, out: number) => void;
type Activation = (x: number, rows: number, k: number, out: number) => void;

/** What wasm/simd exports for these methods; all arguments are addresses or counts. */
export interface DenseExports {
  activationI8: Activation;
  activationI8H64: Activation;
  matmulF32: Matmul;
  matmulQ41: Matmul;
  matmulQ80: Matmul;
  matmulQ4r: Matmul;
  matmulQ6h: Matmul;
  embedF32: Embed;
  embedQ41: Embed;
  embedQ80: Embed;
  embedQ4r: Embed;
  /** Needs n: the residuals lie behind all rows. */
  embedQ6h(table: number, n: number, k: number, ids: number, count: number, out: number): void;
  rmsNorm: DenseKernels['rmsNorm'];
  add: DenseKernels['add'];
  mul: DenseKernels['mul'];
  sigmoid: DenseKernels['sigmoid'];
  siluMul: DenseKernels['siluMul'];
  rope: DenseKernels['rope'];
}

/** Products and row operations in WebAssembly: bit-equal to `denseReference`. */
export function denseWasm(exports: DenseExports): DenseKernels {
  const matmul: Record<WeightForm, Matmul> = {
    f32: exports.matmulF32,
    q4_1: exports.matmulQ41,
    q8_0: exports.matmulQ80,
    q4r: exports.matmulQ4r,
    q6h: exports.matmulQ6h,
  };
  const embed: Record<Exclude<WeightForm, 'q6h'>, Embed> = {
    f32: exports.embedF32,
    q4_1: exports.embedQ41,
    q8_0: exports.embedQ80,
    q4r: exports.embedQ4r,
  };
  const activation: Record<ActivationKind, Activation> = {
    f32: () => {},
    i8: exports.activationI8,
    i8h64: exports.activationI8H64,
  };
  return {
    activationBytes: (kind, rows, k) => rows * activationRowBytes(kind, k),
    prepareActivation: (kind, x, rows, k, out) => activation[kind](x, rows, k, out),
    matmul: (form, x, rows, weight, n, k, out, ldOut) => matmul[form](x, rows, weight, n, k, out, ldOut),
    embed: (form, table, n, k, ids, count, out) =>
      form === 'q6h'
        ? exports.embedQ6h(table, n, k, ids, count, out)
        : embed[form](table, k, ids, count, out),
    rmsNorm: exports.rmsNorm,
    add: exports.add,
    mul: exports.mul,
    sigmoid: exports.sigmoid,
    siluMul: exports.siluMul,
    rope: exports.rope,
  };
}
