import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadWasmKernels } from '../../src/cli/load-engine.ts';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { generate } from '../../src/engine/generate.ts';
import { loadEngine } from '../../src/engine/load.ts';
import { loadWebGpuEngine, type WebGpuEngine } from '../../src/engine/load-webgpu.ts';
import { openWebGpuInNode } from '../../src/kernels/webgpu-node.ts';
import { writeBundle } from '../../src/prepare/bundle.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { openModel } from '../../src/prepare/open-model.ts';
import { LocalHost } from '../../src/session/local-host.ts';
import { Scheduler } from '../../src/session/scheduler.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import { pause } from '../helpers/sessions.ts';
import { writeTinyGguf } from '../helpers/tiny-gguf.ts';
import { assistant, GREEDY, prose, read, request, user } from '../helpers/turns.ts';
import { shaders } from '../helpers/webgpu.ts';

/** Conversations that move between WebAssembly and a GPU. Without an adapter this fails: what is expected to be there must not be skipped. */
const alive = setInterval(() => {}, 1000);
const device = await openWebGpuInNode();
const folder = mkdtempSync(join(tmpdir(), 'adkvc-backends-'));
let wasm: ModelEngine;
let gpu: WebGpuEngine;
beforeAll(async () => {
  const model = await openModel(
    writeTinyGguf(join(folder, 'tiny.gguf'), { layers: 1, context: 1024, endless: true }),
  );
  await writeBundle(model, join(folder, 'bundle'), { form: 'exact' });
  await model.close();
  const source = folderSource(join(folder, 'bundle'));
  wasm = await loadEngine({ source, kernels: await loadWasmKernels(64e6) });
  gpu = await loadWebGpuEngine({ device, source, shaders: shaders(), maxBytes: 64e6 });
});
afterAll(() => {
  device.destroy();
  clearInterval(alive);
  rmSync(folder, { recursive: true, force: true });
});

const host = (engine: ModelEngine) =>
  new LocalHost(
    { loadEngine: async () => engine, generate, scheduler: new Scheduler({ pause }) },
    () => new MemoryStore(),
  );
const never = new AbortController().signal;
const TURN = {
  maxTokens: 6,
  sampling: { ...GREEDY, topLogprobs: 3 },
  cache: { policy: 'adkvc', ratio: 3, window: 16 },
};

test('a session goes on on the other backend from the stored cache: the same greedy tokens, log-probabilities within 2e-3', async () => {
  for (const [from, to] of [
    [wasm, gpu],
    [gpu, wasm],
  ] as const) {
    const here = host(from);
    const messages = [user(prose(150, 2))];
    messages.push(assistant((await read(await here.turn('k', 'k', request(messages, TURN), never))).text));
    const next = request([...messages, user('more')], TURN);

    const there = host(to);
    const moved = await there.import('k', 'k', (await here.export('k')).stream, { foreignNumerics: true });
    expect(moved.foreign).toEqual({ numerics: from.numerics, tokens: expect.any(Number) });
    expect(moved.foreign!.tokens).toBeGreaterThan(128);
    const a = await read(await here.turn('k', 'k', next, never));
    const b = await read(await there.turn('k', 'k', next, never));
    expect(b.ids).toEqual(a.ids);
    expect(b.started.cachedTokens).toBe(a.started.cachedTokens);
    expect(b.finished.recovered).toBeUndefined();
    const logprobs = ({ events }: typeof a): number[] =>
      events.flatMap((event) => (event.type === 'token' ? event.top!.map(({ logprob }) => logprob) : []));
    expect(logprobs(a).length).toBeGreaterThan(3);
    logprobs(a).forEach((x, i) => {
      expect(Math.abs(x - logprobs(b)[i]!)).toBeLessThan(2e-3);
    });
    expect((await there.get('k')).foreign).toEqual(moved.foreign);

    // Not asked for by name: the conversation is read again.
    const anew = host(to);
    const plain = await anew.import('k', 'k', (await here.export('k')).stream);
    expect(plain.foreign).toBeUndefined();
    for (const h of [here, there, anew]) h.close();
  }
});

test('turns that run at once go together through the device, and say what each says alone', async () => {
  const asked = [
    request([user(prose(20, 3))], { ...TURN, sampling: GREEDY, maxTokens: 12 }),
    // Reads all logits, while the others read their candidates.
    request([user(prose(30, 4))], { ...TURN, maxTokens: 12 }),
    request([user(prose(10, 5))], {
      ...TURN,
      ...{ sampling: { ...GREEDY, temperature: 0.8, topK: 8, seed: 5 }, maxTokens: 12 },
    }),
  ];
  const alone = [];
  const apart = host(gpu);
  for (const [i, one] of asked.entries())
    alone.push(await read(await apart.turn(`k${i}`, `k${i}`, one, never)));
  const { forward } = gpu;
  const { step } = forward;
  const passes: number[] = [];
  forward.step = (jobs) => {
    passes.push(jobs.length);
    return step.call(forward, jobs);
  };
  const together = host(gpu);
  const answers = await Promise.all(
    asked.map(async (one, i) => read(await together.turn(`k${i}`, `k${i}`, one, never))),
  );
  forward.step = step;
  for (const [i, { ids, events }] of answers.entries()) {
    expect(ids).toHaveLength(12);
    expect(ids).toEqual(alone[i]!.ids);
    expect(events.filter(({ type }) => type === 'token')).toEqual(
      alone[i]!.events.filter(({ type }) => type === 'token'),
    );
  }
  // 11 tokens of each are fed one by one.
  expect(passes.reduce((sum, jobs) => sum + jobs, 0)).toBe(33);
  expect(Math.max(...passes)).toBe(3);
  for (const h of [apart, together]) h.close();
});
