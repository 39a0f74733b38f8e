/**
 * ROUGE-L F at summary level, 0 to 1, as PyPI's `rouge` 1.0.1 counts it (`Rouge().get_scores([p], [r])[0]['rouge-l']['f']`): sentences end at ".",
 * words at blanks; per reference sentence the union of its longest common subsequences with all predicted sentences, as a set of
 * words; precision and recall over the sets of distinct words. 0 where that package throws (a text without words).
 */
export function rougeL(prediction: string, reference: string): number {
  const predicted = sentences(prediction);
  const truth = sentences(reference);
  if (predicted.length === 0 || truth.length === 0) return 0;
  const predictedWords = new Set(predicted.flat()).size;
  const truthWords = new Set(truth.flat()).size;
  const union = new Set<string>();
  for (const sentence of truth)
    for (const other of predicted) for (const word of commonWords(sentence, other)) union.add(word);
  const recall = union.size / truthWords;
  const precision = union.size / predictedWords;
  return (2 * precision * recall) / (precision + recall + 1e-8);
}

/** A sentence of blanks alone counts as one empty word there, and so here. */
const sentences = (text: string): string[][] =>
  text
    .split('.')
    .filter((sentence) => sentence.length > 0)
    .map((sentence) => sentence.trim().split(/\s+/));

/** Words of one longest common subsequence; ties prefer to shorten `y`, which decides which words those are. */
function commonWords(x: readonly string[], y: readonly string[]): string[] {
  const width = y.length + 1;
  const table = new Uint32Array((x.length + 1) * width);
  for (let i = 1; i <= x.length; i++)
    for (let j = 1; j <= y.length; j++)
      table[i * width + j] =
        x[i - 1] === y[j - 1]
          ? table[(i - 1) * width + j - 1]! + 1
          : Math.max(table[(i - 1) * width + j]!, table[i * width + j - 1]!);
  const words: string[] = [];
  for (let i = x.length, j = y.length; i > 0 && j > 0; ) {
    if (x[i - 1] === y[j - 1]) {
      words.push(x[i - 1]!);
      i--;
      j--;
    } else if (table[(i - 1) * width + j]! > table[i * width + j - 1]!) i--;
    else j--;
  }
  return words;
}
