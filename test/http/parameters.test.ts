import { beforeAll, expect, test } from 'vitest';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { generate } from '../../src/engine/generate.ts';
import { LocalHost } from '../../src/session/local-host.ts';
import { Scheduler } from '../../src/session/scheduler.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import { pause } from '../helpers/sessions.ts';
import { tinyEngine } from '../helpers/tiny-engine.ts';
import { fixture, MODEL, readSse } from './fixture.ts';

/** Every parameter at the ends of what is allowed, alone and in pairs, over a real engine: each is answered, whole and streamed alike. */
const LIMITS: Record<string, unknown[]> = {
  temperature: [0, Number.MIN_VALUE, 1e-6, 1, 2],
  top_p: [Number.MIN_VALUE, 0.5, 1],
  top_k: [0, 1, 1_000_000],
  min_p: [0, Number.MIN_VALUE, 1],
  frequency_penalty: [-2, 2],
  presence_penalty: [-2, 2],
  repetition_penalty: [Number.MIN_VALUE, 1e-3, 1, 10],
  stop: ['a', ['a', 'ab', 'abc', ' '], 'x'.repeat(256)],
  seed: [Number.MIN_SAFE_INTEGER, -1, 0, Number.MAX_SAFE_INTEGER],
  logprobs: [true],
  top_logprobs: [0, 1, 20],
  response_format: [
    { type: 'text' },
    { type: 'json_object' },
    { type: 'json_schema', json_schema: { schema: {} } },
  ],
  max_tokens: [1, 3],
};

let engine: ModelEngine;
let served: ReturnType<typeof fixture>;
beforeAll(async () => {
  engine = await tinyEngine('wasm');
  const services = { loadEngine: async () => engine, generate, scheduler: new Scheduler({ pause }) };
  served = fixture({ anonymous: true }, undefined, new LocalHost(services, () => new MemoryStore()));
});

const names = Object.keys(LIMITS);
test.each(names)('%s', async (name) => {
  const later = names.slice(names.indexOf(name));
  for (const value of LIMITS[name]!)
    for (const other of later)
      for (const otherValue of other === name ? [value] : LIMITS[other]!) {
        const given: Record<string, unknown> = { [name]: value, [other]: otherValue };
        const fields = {
          // Hot unless told otherwise, so that what is drawn depends on all of it.
          ...{ max_tokens: 4, temperature: 1, seed: 3, store: false, ...given },
          ...(given.top_logprobs !== undefined && { logprobs: true }),
        };
        const whole = await served.chat(fields);
        const body: any = await whole.json();
        expect([given, whole.status, body.error]).toEqual([given, 200, undefined]);
        const [choice] = body.choices;
        expect(choice.finish_reason).toMatch(/^(stop|length)$/);
        for (const one of choice.logprobs?.content ?? []) {
          expect(one.logprob, JSON.stringify(given)).toBeLessThanOrEqual(0);
          expect(one.top_logprobs.length).toBe(given.top_logprobs ?? 0);
        }
        const { text, done, chunks } = await readSse(await served.chat({ ...fields, stream: true }));
        expect([given, text, done]).toEqual([given, choice.message.content, true]);
        expect(chunks.at(-1).choices[0].finish_reason).toBe(choice.finish_reason);
      }
});

test('the answer names the model that was asked', async () => {
  expect(((await (await served.chat({ max_tokens: 1 })).json()) as any).model).toBe(MODEL.id);
});
