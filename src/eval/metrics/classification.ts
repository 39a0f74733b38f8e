/**
 * LongBench's classification score: 1 over the number of class names that the prediction holds, if the truth is among them, else 0. A named class
 * that is part of the truth does not count. The original removes such classes from the list it is walking, and so skips the
 * class after each one removed; that is kept, since published scores have it.
 */
export function classification(prediction: string, truth: string, classes: readonly string[]): number {
  const named = classes.filter((name) => prediction.includes(name));
  for (let i = 0; i < named.length; i++) {
    const name = named[i]!;
    if (truth.includes(name) && name !== truth) named.splice(named.indexOf(name), 1);
  }
  return named.includes(truth) ? 1 / named.length : 0;
}
