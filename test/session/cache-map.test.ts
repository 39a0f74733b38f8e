import { beforeAll, describe, expect, test } from 'vitest';
import type { KvCache } from '../../src/cache/cache.ts';
import type { CacheConfig } from '../../src/cache/policy.ts';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { generate } from '../../src/engine/generate.ts';
import { DROP, TIERS } from '../../src/kernels/layout.ts';
import { readHead } from '../../src/session/head.ts';
import { LocalHost } from '../../src/session/local-host.ts';
import { restoreNewest } from '../../src/session/recover.ts';
import { Scheduler } from '../../src/session/scheduler.ts';
import { readState } from '../../src/session/state.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import { pause } from '../helpers/sessions.ts';
import { tinyEngine } from '../helpers/tiny-engine.ts';
import { assistant, GREEDY, prose, read, request, user } from '../helpers/turns.ts';

const never = new AbortController().signal;
const HOT = { ...GREEDY, temperature: 30, topK: 40, seed: 5 };
let engine: ModelEngine;
beforeAll(async () => {
  engine = await tinyEngine('wasm', { context: 4_096 });
});

const bytes = (text: string) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

const POLICIES: Partial<CacheConfig>[] = [
  { policy: 'full' },
  { policy: 'window', ratio: 4 },
  { policy: 'adkvc', ratio: 6 },
];

describe.each(POLICIES)('the map of a cache, policy $policy', (cache) => {
  test('is that of the restored cache: tiers, attention, what is gone; also beside a running turn', async () => {
    const store = new MemoryStore();
    const services = { loadEngine: async () => engine, generate, scheduler: new Scheduler({ pause }) };
    const host = new LocalHost(services, () => store);
    const messages = [user(prose(1_300))];
    const ask = (maxTokens: number) =>
      host.turn('k', 'k', request(messages, { cache, sampling: HOT, maxTokens }), never);
    let journals = 0;
    for (let turn = 0; turn < 4; turn++) {
      messages.push(assistant((await read(await ask(50))).text), user(prose(90, turn + 2)));
      const { states } = readHead(store)!.head;
      journals += readState(store, states.at(-1)!).journal.length;
    }
    // What the stored blocks do not know yet is in the journal.
    if (cache.policy !== 'full') expect(journals).toBeGreaterThan(0);
    const { head } = readHead(store)!;
    const map = await host.cacheMap('k');
    const restored = restoreNewest(store, engine, head.states, Number.POSITIVE_INFINITY).residence!
      .cache as KvCache;
    expect(map).toMatchObject({
      id: 'k',
      position: restored.position,
      exactFrom: Math.max(...restored.blocks.map((_, layer) => restored.compressedEnd(layer))),
      report: { bytes: head.report!.bytes },
    });
    // What was said, position by position, and by whom.
    expect(map.text).toHaveLength(map.position);
    expect(map.messages.map(({ role }) => role)).toEqual(
      Array.from({ length: 8 }, (_, i) => (i % 2 === 0 ? 'user' : 'assistant')),
    );
    const { end } = map.messages[0]!;
    expect(map.text.slice(0, end).join('')).toContain(messages[0]!.content);
    const { kvHeads, layers } = engine.model;
    const counted: Record<string, number> = {};
    for (const { layer, segments } of map.shown)
      for (const [s, { start, tokens, tiers, relevance }] of segments.entries()) {
        expect({ start, tokens }).toEqual(restored.spans[s]);
        const reader = restored.reader(restored.blocks[layer]![s]!);
        const expected = new Uint8Array(kvHeads * tokens);
        for (let h = 0; h < kvHeads; h++) reader.tiers(h, expected, h * tokens);
        expect(bytes(tiers)).toEqual(expected);
        expect(relevance !== null).toBe(restored.tracksMass);
        if (relevance)
          for (const [i, value] of bytes(relevance).entries())
            if (expected[i] === DROP) expect(value).toBe(0);
        for (const id of expected) {
          const name = id === DROP ? 'drop' : TIERS[id]!.name;
          counted[name] = (counted[name] ?? 0) + 1;
        }
      }
    let exact = 0;
    for (let layer = 0; layer < layers; layer++) exact += restored.exactCount(layer) * kvHeads;
    expect({ ...counted, exact }).toEqual(restored.report().tiers);
    if (restored.tracksMass)
      // Each head's most attended token, in each layer, is at 255.
      for (const { segments } of map.shown)
        for (let h = 0; h < kvHeads; h++)
          expect(
            Math.max(
              ...segments.flatMap(({ tokens, relevance }) => [
                ...bytes(relevance!).subarray(h * tokens, (h + 1) * tokens),
              ]),
            ),
          ).toBe(255);
    if (cache.policy === 'window') expect(map.evicted.length).toBe(1);
    if (cache.policy === 'full') expect(map.evicted).toEqual([]);
    restored.dispose();

    // A turn runs: the map is still that of the last commit, and asking takes no lock.
    const running = await ask(200);
    const meanwhile = await host.cacheMap('k', 1);
    expect(meanwhile.position).toBe(map.position);
    expect(meanwhile.shown).toEqual([map.shown[1]]);
    await read(running);
    expect((await host.cacheMap('k', 1)).position).toBeGreaterThan(map.position);
    await expect(host.cacheMap('k', layers)).rejects.toMatchObject({ param: 'layer' });
    host.close();
  });
});

test('a cache whose newest state is damaged: the newest that can be read; none, before the first turn', async () => {
  const store = new MemoryStore();
  const services = { loadEngine: async () => engine, generate, scheduler: new Scheduler({ pause }) };
  const host = new LocalHost(services, () => store);
  await host.create('k', 'k', {});
  expect(await host.cacheMap('k')).toMatchObject({ position: 0, shown: [], evicted: [], report: null });
  const first = await read(await host.turn('k', 'k', request([user(prose(900))]), never));
  const before = (await host.cacheMap('k')).position;
  const messages = [user(prose(900)), assistant(first.text), user(prose(400, 2))];
  await read(await host.turn('k', 'k', request(messages), never));
  const [row] = readHead(store)!.head.states.at(-1)!.refs[0]!;
  const damaged = store.get(row)!;
  damaged[30]! ^= 1;
  store.transaction(() => store.put(row, damaged));
  const map = await host.cacheMap('k');
  expect(map.position).toBeGreaterThan(0);
  expect(map.position).toBeLessThanOrEqual(before + 100);
  host.close();
});

test('past the trained length: gaps are told, and what is left of the text lies where it was said', async () => {
  const short = await tinyEngine('wasm', { context: 768 });
  const store = new MemoryStore();
  const services = { loadEngine: async () => short, generate, scheduler: new Scheduler({ pause }) };
  const host = new LocalHost(services, () => store);
  const said = prose(1_500);
  await read(
    await host.turn('k', 'k', request([user(said)], { cache: { policy: 'adkvc', ratio: 3 } }), never),
  );
  const { head } = readHead(store)!;
  const restored = restoreNewest(store, short, head.states, Number.POSITIVE_INFINITY).residence!
    .cache as KvCache;
  const map = await host.cacheMap('k');
  const { kvHeads, layers } = short.model;
  const gaps = new Set(restored.gaps.order);
  expect(gaps.size).toBeGreaterThan(3);
  expect(map.closed.reduce((sum, [, count]) => sum + count, 0)).toBe(restored.gaps.tokens);
  const isClosed = (position: number) =>
    map.closed.some(([first, count]) => position >= first && position < first + count);
  for (const { layer, segments } of map.shown) {
    // Every segment is told, or closed and of no more bytes.
    const starts = new Map(segments.map((segment) => [segment.start, segment]));
    for (const [s, { start, tokens }] of restored.spans.slice(0, restored.blocks[layer]!.length).entries()) {
      expect(isClosed(start)).toBe(gaps.has(s));
      const expected = new Uint8Array(kvHeads * tokens);
      const reader = restored.reader(restored.blocks[layer]![s]!);
      for (let h = 0; h < kvHeads; h++) reader.tiers(h, expected, h * tokens);
      const told = starts.get(start);
      if (told) expect(bytes(told.tiers)).toEqual(expected);
      else {
        expect(isClosed(start)).toBe(true);
        expect(expected.every((tier) => tier === DROP)).toBe(true);
      }
    }
    expect(starts.size).toBeLessThanOrEqual(restored.spans.length - gaps.size + 1);
  }
  expect(map.shown).toHaveLength(layers);
  // What no head holds includes the gaps; text and positions are those of the whole conversation.
  for (const [first, count] of map.closed)
    for (const position of [first, first + count - 1])
      expect(map.evicted.some(([from, n]) => position >= from && position < from + n)).toBe(true);
  expect(map.text.join('')).toContain(said);
  restored.dispose();
  host.close();
});
