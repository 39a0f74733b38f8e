/** Share of the numbers in the prediction that equal `wanted`; 0 when it holds none. */
function share(prediction: string, wanted: string): number {
  const numbers = prediction.match(/\d+/g) ?? [];
  return numbers.length === 0 ? 0 : numbers.filter((n) => n === wanted).length / numbers.length;
}

/** LongBench's passage retrieval: the truth reads "Paragraph 12". */
export function retrieval(prediction: string, truth: string): number {
  const id = /Paragraph (\d+)/.exec(truth)?.[1];
  if (id === undefined) throw new Error(`"${truth}" names no paragraph`);
  return share(prediction, id);
}

/** LongBench's passage count: the truth is the number itself. */
export const count = (prediction: string, truth: string): number => share(prediction, truth);
