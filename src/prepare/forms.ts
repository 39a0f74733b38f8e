import type { WeightForm } from '../kernels/kernels.ts';
import type { SourceType } from '../kernels/weights.ts';
import type { Manifest } from '../runtime/manifest.ts';
import type { WeightSpec } from './llama-graph.ts';

export type BundleForm = Manifest['weightForm'];

/**
 * The form a weight is kept in. One rule for both kinds of bundle:
 *
 * exact: the source's values, bit for bit. Q4_1 and Q4_0 -> q4_1, Q8_0 -> q8_0, F16 and F32 -> f32.
 *
 * compact: what costs least perplexity for its bytes, as far as the form's group divides k.
 * - matrices stored in 4 bits -> q4r (k % 32 is given by their blocks): the codes stay, only scales and minima are recoded
 * - the embedding, and matrices stored finer than 4 bits -> q6h, if k % 64 == 0: a model that was not made for 4 bits is not
 *   forced into them
 * - everything else as in `exact`: tiny models whose widths no group divides
 *
 * Norms are f32 in both.
 */
export function chooseForm(
  bundle: BundleForm,
  role: WeightSpec['role'],
  type: SourceType,
  k: number,
): WeightForm {
  if (role === 'norm') return 'f32';
  const fourBit = type === 'Q4_1' || type === 'Q4_0';
  if (bundle === 'compact') {
    if (fourBit && role === 'matrix') return 'q4r';
    if (k % 64 === 0) return 'q6h';
  }
  return fourBit ? 'q4_1' : type === 'Q8_0' ? 'q8_0' : 'f32';
}
