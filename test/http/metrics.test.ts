import { expect, test } from 'vitest';
import { AdkvcError } from '../../src/core/errors.ts';
import { fixture, readSse } from './fixture.ts';

const sample = (text: string, name: string): number | undefined => {
  const line = text.split('\n').find((one) => one.startsWith(`${name} `));
  return line === undefined ? undefined : Number(line.slice(name.length + 1));
};

test('turns are counted by how they end, with their tokens and times', async () => {
  const { chat, call, host } = fixture();
  await chat();
  await readSse(await chat({ stream: true }));
  host.reason = 'length';
  await chat();
  host.refusal = new AdkvcError('session_busy', 'busy');
  await chat();
  host.refusal = undefined;
  host.failure = { after: 2, error: { code: 'turn_interrupted', message: 'x' } };
  await chat();
  const response = await call('/metrics');
  expect(response.headers.get('content-type')).toBe('text/plain; version=0.0.4; charset=utf-8');
  const text = await response.text();
  expect(text).toContain('# TYPE adkvc_turns_total counter\n');
  expect(sample(text, 'adkvc_turns_total{outcome="stop"}')).toBe(2);
  expect(sample(text, 'adkvc_turns_total{outcome="length"}')).toBe(1);
  expect(sample(text, 'adkvc_turns_total{outcome="session_busy"}')).toBe(1);
  expect(sample(text, 'adkvc_turns_total{outcome="turn_interrupted"}')).toBe(1);
  expect(sample(text, 'adkvc_completion_tokens_total')).toBe(12);
  expect(sample(text, 'adkvc_phase_seconds_total{phase="decode"}')).toBeCloseTo(0.006);
  expect(text).toContain('# TYPE adkvc_first_token_seconds histogram\n');
  expect(sample(text, 'adkvc_first_token_seconds_bucket{le="+Inf"}')).toBe(4);
  expect(sample(text, 'adkvc_first_token_seconds_count')).toBe(4);
});

test('a turn whose reader goes away is counted once', async () => {
  const { chat, call } = fixture();
  const reader = (await chat({ stream: true })).body!.getReader();
  await reader.read();
  await reader.cancel();
  const ends = async () =>
    [...parse(await (await call('/metrics')).text()).get('adkvc_turns_total')!.samples].join();
  await expect.poll(ends).toBe('{outcome="aborted"},1');
});

test('they need a key, and hold nothing of what was said', async () => {
  const { call } = fixture({ keys: `me:${'0'.repeat(64)}` });
  expect((await call('/metrics')).status).toBe(401);
  const open = fixture();
  await open.chat({ messages: [{ role: 'user', content: 'SECRET' }], session_id: 'private-name' });
  expect(await (await open.call('/metrics')).text()).not.toMatch(/SECRET|private-name|Hello/);
});

/**
 * The text format, read strictly: a family's HELP and TYPE once and before its samples, samples of it alone below, no sample twice, and
 * buckets that grow up to the count. https://prometheus.io/docs/instrumenting/exposition_formats/
 */
function parse(text: string): Map<string, { type: string; samples: Map<string, number> }> {
  expect(text.endsWith('\n')).toBe(true);
  const families = new Map<string, { type: string; samples: Map<string, number> }>();
  let help: string | undefined;
  let family: string | undefined;
  for (const line of text.slice(0, -1).split('\n')) {
    const meta = /^# (HELP|TYPE) ([a-zA-Z_:][\w:]*) (.+)$/.exec(line);
    if (meta) {
      const [, kind, name, rest] = meta as unknown as [string, string, string, string];
      if (kind === 'HELP') help = name;
      else {
        expect([name, rest], line).toEqual([help, expect.stringMatching(/^(counter|histogram)$/)]);
        expect(families.has(name), line).toBe(false);
        families.set((family = name), { type: rest, samples: new Map() });
      }
      continue;
    }
    const sample =
      /^([a-zA-Z_:][\w:]*)(\{(?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*",?)*\})? (NaN|[+-]?Inf|[+-]?[\d.]+(?:e[+-]?\d+)?)$/.exec(
        line,
      );
    expect(sample, line).not.toBeNull();
    const [, name, labels = '', value] = sample as unknown as [string, string, string | undefined, string];
    const { type, samples } = families.get(family!)!;
    const suffix = name.slice(family!.length);
    expect(name.startsWith(family!), line).toBe(true);
    expect(type === 'histogram' ? ['_bucket', '_sum', '_count'] : [''], line).toContain(suffix);
    expect(samples.has(suffix + labels), line).toBe(false);
    samples.set(suffix + labels, Number(value));
  }
  return families;
}

test('the text is what Prometheus reads', async () => {
  const { chat, call, host } = fixture();
  await chat();
  host.refusal = new AdkvcError('session_busy', 'busy');
  await chat();
  // A code from outside could end a label.
  host.refusal = new AdkvcError('a"} 1\nfake{b="', 'x');
  await chat();
  const families = parse(await (await call('/metrics')).text());
  expect([...families.get('adkvc_turns_total')!.samples]).toEqual([
    ['{outcome="stop"}', 1],
    ['{outcome="session_busy"}', 1],
    ['{outcome="other"}', 1],
  ]);
  const { samples } = families.get('adkvc_first_token_seconds')!;
  const buckets = [...samples].filter(([name]) => name.startsWith('_bucket'));
  const bounds = buckets.map(([name]) => Number(/le="([^"]+)"/.exec(name)![1]!.replace('+Inf', 'Infinity')));
  expect(bounds).toEqual(bounds.toSorted((a, b) => a - b));
  expect(bounds.at(-1)).toBe(Number.POSITIVE_INFINITY);
  const counts = buckets.map(([, count]) => count);
  expect(counts).toEqual(counts.toSorted((a, b) => a - b));
  expect(counts.at(-1)).toBe(samples.get('_count'));
  expect(samples.get('_sum')).toBeGreaterThanOrEqual(0);
});
