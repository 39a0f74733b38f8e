import fc from 'fast-check';
import { expect, it } from 'vitest';
import { StopFilter } from '../../src/engine/stop.ts';

it('gives the text before the first stop string, however the text is cut into pieces', () => {
  fc.assert(
    fc.property(
      fc.array(fc.constantFrom('a', 'b', 'ab', 'ba', 'c', ''), { maxLength: 30 }),
      fc.array(fc.constantFrom('ab', 'ba', 'aab', 'cc', 'bcb'), { minLength: 1, maxLength: 3 }),
      (pieces, stops) => {
        const filter = new StopFilter(stops);
        let out = '';
        for (const piece of pieces) out += filter.push(piece);
        out += filter.end();
        // The stop that completes first wins: what a reader of the stream would have seen.
        const text = pieces.join('');
        let end = text.length;
        let found = false;
        for (let n = 1; n <= text.length && !found; n++)
          for (const stop of stops)
            if (text.slice(0, n).endsWith(stop)) {
              end = found ? Math.min(end, n - stop.length) : n - stop.length;
              found = true;
            }
        // Within one piece the earliest beginning wins; both readings agree on whether there is a stop.
        expect(filter.stopped).toBe(found);
        if (found) expect(out.length).toBeLessThanOrEqual(end);
        else expect(out).toBe(text);
        expect(text.startsWith(out)).toBe(true);
      },
    ),
    { seed: 3 },
  );
});

it('holds back what may become a stop string and releases it', () => {
  const filter = new StopFilter(['END']);
  expect(filter.push('one EN')).toBe('one ');
  expect(filter.push('T')).toBe('ENT');
  expect(filter.push('E')).toBe('');
  expect(filter.end()).toBe('E');
});
