import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { restoreCache } from '../../src/cache/restore.ts';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { generate } from '../../src/engine/generate.ts';
import {
  RECORD_HEADER_BYTES,
  recordCounts,
  recordParts,
  SEGMENT_HEADER_BYTES,
} from '../../src/kernels/layout.ts';
import { LocalHost } from '../../src/session/local-host.ts';
import { Scheduler } from '../../src/session/scheduler.ts';
import { NodeSqliteStore } from '../../src/session/store/node-sqlite.ts';
import { pause } from '../helpers/sessions.ts';
import { tinyEngine } from '../helpers/tiny-engine.ts';
import { assistant, GREEDY, prose, read, request, system, user } from '../helpers/turns.ts';

/** Forks and imports with the real engine, over SQLite files. Random weights: hot enough that a change of logits is seen. */
const HOT = { maxTokens: 30, sampling: { ...GREEDY, temperature: 30, topK: 40, seed: 5 } };
const never = new AbortController().signal;
let engine: ModelEngine;
let folder: string;
beforeAll(async () => {
  engine = await tinyEngine('wasm', { context: 4_096 });
  folder = mkdtempSync(join(tmpdir(), 'adkvc-transfer-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const open = (name: string) =>
  new LocalHost(
    { loadEngine: async () => engine, generate, scheduler: new Scheduler({ pause }) },
    (key) => new NodeSqliteStore(join(folder, `${name}-${key}.sqlite`)),
  );

test('two conversations over one long prefix: the second starts from the stored state of the first', async () => {
  const host = open('prefix');
  const messages = [system(prose(2_500, 3)), user('one?')];
  const timed = async (key: string, question: string) => {
    const start = performance.now();
    const events = await host.turn(key, key, request([messages[0]!, user(question)], HOT), never);
    let first = 0;
    const all = [];
    for await (const event of events) {
      if (event.type === 'token' && first === 0) first = performance.now() - start;
      all.push(event);
    }
    const started = all.find((event) => event.type === 'started')!;
    const ids = all.filter((event) => event.type === 'token').map(({ id }) => id);
    return { first, cached: started.cachedTokens, prompt: started.promptTokens, ids };
  };
  await timed('document', 'one?');
  const alone = await timed('alone', 'and two?');
  const start = performance.now();
  await host.fork('document', { key: 'fork', id: 'fork' }, { messages: 1 });
  const forking = performance.now() - start;
  const forked = await timed('fork', 'and two?');
  host.close();
  console.log(
    `first token after ${alone.first.toFixed(0)} ms alone, ${forked.first.toFixed(0)} ms from a fork (made in ${forking.toFixed(0)} ms): ${forked.cached} of ${forked.prompt} tokens reused`,
  );
  expect(forked.ids).toEqual(alone.ids);
  expect(alone.cached).toBe(0);
  expect(forked.prompt - forked.cached).toBeLessThan(128 + 40);
});

test('exported, imported into another folder by another host: the same tokens, nothing fed again', async () => {
  const here = open('here');
  const messages = [user(prose(1_300))];
  messages.push(assistant((await read(await here.turn('k', 'k', request(messages, HOT), never))).text));
  const { stream } = await here.export('k');
  const there = open('there');
  await there.import('k', 'k', stream);
  const next = request([...messages, user('more')], HOT);
  const a = await read(await here.turn('k', 'k', next, never));
  const b = await read(await there.turn('k', 'k', next, never));
  here.close();
  there.close();
  expect(b.ids).toEqual(a.ids);
  expect(b.started).toEqual(a.started);
  expect(b.started.cachedTokens).toBeGreaterThan(1_300);
});

test('a stored block that lies about itself is refused before a kernel reads it', async () => {
  const cache = engine.createCache({ ...DEFAULT_CACHE, policy: 'adkvc', ratio: 5 });
  await engine.feed(
    cache,
    Array.from({ length: 700 }, (_, i) => (i * 7) % 200),
    'none',
  );
  const context = cache.context;
  const { header } = cache;
  const hot = Array.from({ length: cache.layers }, (_, layer) => cache.hot(layer));
  const blocks = Array.from({ length: cache.layers }, (_, layer) =>
    Array.from({ length: header.segments }, (_, segment) => cache.block(layer, segment)),
  );
  cache.dispose();
  const reader = (change: (block: Uint8Array) => void, at: number) => ({
    header,
    journal: [],
    hot: (layer: number) => hot[layer]!,
    block: (layer: number, segment: number) => {
      const bytes = blocks[layer]![segment]!.slice();
      if (layer * header.segments + segment === at) change(bytes);
      return { version: header.position, bytes };
    },
  });
  restoreCache(
    context,
    reader(() => {}, -1),
  ).dispose();
  // Header and directory, then the first record's tiers, counts and map: every bit of them is looked at.
  const block = blocks[0]![1]!;
  const view = new DataView(block.buffer);
  const record = view.getUint32(SEGMENT_HEADER_BYTES, true);
  const tokens = view.getUint32(4, true);
  const counts = recordCounts(block, record);
  const { map } = recordParts(tokens, counts, cache.context.model.headDim);
  expect(map).toBeGreaterThan(0);
  const places = [...Array(SEGMENT_HEADER_BYTES + 4).keys(), record, record + 1];
  for (let i = 0; i < counts.filter((n) => n > 0).length; i++) places.push(record + RECORD_HEADER_BYTES + i);
  for (let i = 0; i < tokens >> 1; i++) places.push(record + map + i);
  for (const place of places)
    for (const bit of [0, 2, 3, 7])
      expect(
        () =>
          restoreCache(
            context,
            reader((block) => void (block[place]! ^= 1 << bit), 1),
          ).dispose(),
        `bit ${bit} of byte ${place}`,
      ).toThrow(/segment 1 /);
  expect(engine.ledger().caches).toBe(0);
});
