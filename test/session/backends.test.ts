import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { loadWasmKernels } from '../../src/cli/load-engine.ts';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { generate } from '../../src/engine/generate.ts';
import { loadEngine } from '../../src/engine/load.ts';
import { loadWebGpuEngine, type WebGpuEngine } from '../../src/engine/load-webgpu.ts';
import { startNodeServer } from '../../src/node.ts';
import { writeBundle } from '../../src/prepare/bundle.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { openModel } from '../../src/prepare/open-model.ts';
import { LocalHost } from '../../src/session/local-host.ts';
import { Scheduler } from '../../src/session/scheduler.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import { pause } from '../helpers/sessions.ts';
import { writeTinyGguf } from '../helpers/tiny-gguf.ts';
import { assistant, GREEDY, prose, read, request, user } from '../helpers/turns.ts';
import { shaders, testDevice } from '../helpers/webgpu.ts';
import { MODEL } from '../http/fixture.ts';

/** Conversations that move between WebAssembly and a GPU. Without an adapter this fails: what is expected to be there must not be skipped. */
const device = await testDevice();
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
afterAll(() => rmSync(folder, { recursive: true, force: true }));

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

test('turns of a server that run at once go together through the device, and say what each says alone', async () => {
  const model = { ...MODEL, contextLength: 1024, cache: { ...DEFAULT_CACHE, ratio: 3 } };
  const asked: Record<string, unknown>[] = [
    { messages: [user(prose(20, 3))], temperature: 0 },
    // Reads all logits, while the others read their candidates.
    { messages: [user(prose(30, 4))], temperature: 0, logprobs: true, top_logprobs: 3 },
    { messages: [user(prose(10, 5))], temperature: 0.8, top_k: 8, seed: 5 },
  ];
  const served = async (
    by: LocalHost,
    run: (ask: (body: Record<string, unknown>) => Promise<unknown>) => Promise<unknown[]>,
  ): Promise<unknown[]> => {
    const server = await startNodeServer({
      ...{ host: by, model, auth: { anonymous: true }, page: new Map(), port: 0 },
    });
    const answers = await run(async (body) => {
      const response = await fetch(`${server.url}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ model: MODEL.id, max_tokens: 12, ...body }),
      });
      const { choices, usage } = await response.json();
      return { status: response.status, choices, usage };
    });
    await server.close();
    by.close();
    return answers;
  };
  const alone = await served(host(gpu), async (ask) => {
    const answers = [];
    for (const body of asked) answers.push(await ask(body));
    return answers;
  });

  const { forward } = gpu;
  const { step } = forward;
  const passes: number[] = [];
  forward.step = (jobs) => {
    passes.push(jobs.length);
    return step.call(forward, jobs);
  };
  const gathered = host(gpu);
  // Nobody begins before all are there, however slowly they come.
  const { turn } = gathered;
  const { promise: complete, resolve } = Promise.withResolvers<void>();
  let arrived = 0;
  gathered.turn = async (...args) => {
    if (++arrived === asked.length) resolve();
    await complete;
    return turn.apply(gathered, args);
  };
  const together = await served(gathered, (ask) => Promise.all(asked.map(ask)));
  forward.step = step;
  expect(together).toEqual(alone);
  expect(alone).toMatchObject(
    asked.map(() => ({
      status: 200,
      choices: [{ finish_reason: 'length' }],
      usage: { completion_tokens: 12 },
    })),
  );
  // 11 tokens of each are fed one by one.
  expect(passes.reduce((sum, jobs) => sum + jobs, 0)).toBe(33);
  expect(Math.max(...passes)).toBe(3);
});
