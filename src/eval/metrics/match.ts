/** RULER's string_match_all: the share of the references that the prediction contains, whatever the case. */
export function containsAll(prediction: string, references: readonly string[]): number {
  const text = prediction.toLowerCase();
  return references.filter((r) => text.includes(r.toLowerCase())).length / references.length;
}

/** RULER's string_match_part: 1 if the prediction contains any reference, whatever the case. */
export const containsAny = (prediction: string, references: readonly string[]): number =>
  containsAll(prediction, references) > 0 ? 1 : 0;

/** 1 if the prediction begins with the reference, leading blanks aside: what was asked for, and nothing before it. */
export const startsWith = (prediction: string, reference: string): number =>
  prediction.trimStart().startsWith(reference) ? 1 : 0;
