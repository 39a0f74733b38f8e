/** Stands for vitest where a conformance suite runs inside a browser's worker: the same names, as far as such suites use them. */

const collected: { title: string; body: () => Promise<void> | void }[] = [];
export const test = (title: string, body: () => Promise<void> | void): void => {
  collected.push({ title, body });
};

/** Runs what was collected, one after the other. @returns each title, and what was wrong */
export async function runCollected(): Promise<{ title: string; error: string | null }[]> {
  const results = [];
  for (const { title, body } of collected)
    try {
      await body();
      results.push({ title, error: null });
    } catch (error) {
      results.push({ title, error: String((error as Error).stack ?? error) });
    }
  return results;
}

export function expect(actual: any) {
  const check = (holds: boolean, what: string, expected?: unknown): void => {
    if (!holds) throw new Error(`expected ${show(actual)} ${what} ${show(expected)}`);
  };
  return {
    toBe: (expected: unknown) => check(Object.is(actual, expected), 'to be', expected),
    toEqual: (expected: unknown) => check(equal(actual, expected), 'to equal', expected),
    toBeUndefined: () => check(actual === undefined, 'to be undefined'),
    toMatchObject: (expected: Record<string, unknown>) =>
      check(
        Object.entries(expected).every(([name, value]) => equal(actual[name], value)),
        'to match',
        expected,
      ),
    toThrow: (expected: string | (new (...args: any[]) => Error)) => {
      let thrown: unknown;
      try {
        actual();
      } catch (error) {
        thrown = error;
      }
      const fits =
        typeof expected === 'string'
          ? thrown instanceof Error && thrown.message.includes(expected)
          : thrown instanceof expected;
      if (!fits) throw new Error(`expected ${show(expected)} to be thrown, not ${show(thrown)}`);
    },
  };
}

const show = (value: unknown): string =>
  typeof value === 'function'
    ? value.name || 'a function'
    : value instanceof Error
      ? value.message
      : (JSON.stringify(value) ?? String(value));

function equal(a: any, b: any): boolean {
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return Object.is(a, b);
  if (Object.getPrototypeOf(a) !== Object.getPrototypeOf(b)) return false;
  const names = Object.keys(a);
  return names.length === Object.keys(b).length && names.every((name) => equal(a[name], b[name]));
}
