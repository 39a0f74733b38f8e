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

test('they need a key, and hold nothing of what was said', async () => {
  const { call } = fixture({ keys: `me:${'0'.repeat(64)}` });
  expect((await call('/metrics')).status).toBe(401);
  const open = fixture();
  await open.chat({ messages: [{ role: 'user', content: 'SECRET' }], session_id: 'private-name' });
  expect(await (await open.call('/metrics')).text()).not.toMatch(/SECRET|private-name|Hello/);
});
