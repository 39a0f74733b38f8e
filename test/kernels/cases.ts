import type { WeightForm } from '../../src/kernels/kernels.ts';
import type { SourceType } from '../../src/kernels/weights.ts';

/** One list of shapes for tests and benches. */
export interface MatmulCase {
  readonly form: WeightForm;
  /** What the weights are packed from. */
  readonly type: SourceType;
  readonly n: number;
  readonly k: number;
  readonly rows: readonly number[];
}

const ROWS = [1, 3, 17, 128] as const;

export const matmulCases: readonly MatmulCase[] = [
  // SmolLM2-135M's widths, n cut where the reference would take minutes.
  { form: 'q4r', type: 'Q4_1', n: 192, k: 576, rows: ROWS },
  { form: 'q4r', type: 'Q4_1', n: 24, k: 1536, rows: ROWS },
  { form: 'q4r', type: 'Q4_0', n: 16, k: 64, rows: ROWS },
  { form: 'q4r', type: 'F16', n: 13, k: 96, rows: ROWS },
  { form: 'q4r', type: 'Q4_1', n: 1, k: 32, rows: ROWS },
  { form: 'q6h', type: 'Q8_0', n: 64, k: 576, rows: ROWS },
  { form: 'q6h', type: 'F32', n: 13, k: 64, rows: ROWS },
  // A vocabulary: the residual of its first rows is coded too.
  { form: 'q6h', type: 'Q8_0', n: 16389, k: 64, rows: [1, 5] },
  { form: 'q6h', type: 'Q8_0', n: 1, k: 128, rows: ROWS },
  // Wider than a panel of 1024 channels, with 3 and 5 rows in the last group: sums wait in the output between panels.
  { form: 'q4r', type: 'Q4_1', n: 11, k: 1536, rows: ROWS },
  { form: 'q6h', type: 'Q8_0', n: 13, k: 2112, rows: ROWS },
  { form: 'q4_1', type: 'Q4_1', n: 48, k: 576, rows: ROWS },
  { form: 'q4_1', type: 'Q4_0', n: 7, k: 96, rows: ROWS },
  { form: 'q8_0', type: 'Q8_0', n: 48, k: 576, rows: ROWS },
  { form: 'q4_1', type: 'Q4_1', n: 11, k: 1536, rows: ROWS },
  { form: 'q8_0', type: 'Q8_0', n: 5, k: 32, rows: ROWS },
  { form: 'q8_0', type: 'Q8_0', n: 13, k: 1056, rows: ROWS },
  // The tiny models' widths.
  { form: 'f32', type: 'F32', n: 172, k: 64, rows: ROWS },
  { form: 'f32', type: 'F32', n: 64, k: 172, rows: ROWS },
  { form: 'f32', type: 'F16', n: 3, k: 7, rows: ROWS },
];

/** Element counts and widths of the row operations; odd ones exercise the tails. */
export const widths = [1, 3, 4, 64, 172, 576, 1536] as const;
