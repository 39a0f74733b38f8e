/** ASCII punctuation, as Python's string.punctuation lists it. */
const PUNCTUATION = /[!-/:-@[-`{-~]/g;
/** Whole words, where letters of all alphabets make words, as in Python. */
const ARTICLE = /(?<![\p{L}\p{N}])(a|an|the)(?![\p{L}\p{N}])/gu;

const words = (text: string): string[] =>
  text
    .toLowerCase()
    .replaceAll(PUNCTUATION, '')
    .replaceAll(ARTICLE, ' ')
    .split(/\s+/)
    .filter((word) => word !== '');

/** Lower case, without punctuation and articles, blanks collapsed. Source: LongBench metrics.py (normalize_answer), after SQuAD. */
export const normalizeAnswer = (text: string): string => words(text).join(' ');

/** F1 of the words that two bags share; 0 when they share none. */
function bagF1(prediction: readonly string[], truth: readonly string[]): number {
  const left = new Map<string, number>();
  for (const word of truth) left.set(word, (left.get(word) ?? 0) + 1);
  let common = 0;
  for (const word of prediction) {
    const n = left.get(word) ?? 0;
    if (n === 0) continue;
    left.set(word, n - 1);
    common++;
  }
  if (common === 0) return 0;
  const precision = common / prediction.length;
  const recall = common / truth.length;
  return (2 * precision * recall) / (precision + recall);
}

/** Word F1 after normalisation, 0 to 1: LongBench's metric of question answering. */
export function qaF1(prediction: string, truth: string): number {
  return bagF1(words(prediction), words(truth));
}
