import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import OpenAI from 'openai';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadWasmKernels } from '../src/cli/load-engine.ts';
import { localSessions } from '../src/cli/local-sessions.ts';
import { loadEngine } from '../src/engine/load.ts';
import type { Engine } from '../src/engine/types.ts';
import { servedModel } from '../src/http/models.ts';
import { type NodeServer, startNodeServer } from '../src/node.ts';
import { pageFiles } from '../src/page-files.ts';
import { folderSource } from '../src/prepare/folder-source.ts';
import { readManifest } from '../src/runtime/model.ts';
import { type TinyServed, tinyServed } from './helpers/tiny-bundle.ts';

/** The Node host: the same API over SQLite files, resumed by another process. */
let tiny: TinyServed;
let engine: Engine;

beforeAll(async () => {
  tiny = await tinyServed({ untied: true });
  engine = await loadEngine({ source: folderSource(tiny.bundleDir), kernels: await loadWasmKernels(64e6) });
});
afterAll(() => tiny?.remove());

async function serve(folder: string | undefined): Promise<NodeServer & { client: OpenAI }> {
  const host = await localSessions(engine, folder);
  const server = await startNodeServer({
    host,
    auth: { anonymous: true },
    model: servedModel(await readManifest(folderSource(tiny.bundleDir))),
    page: await pageFiles(),
    port: 0,
  });
  const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'unused', maxRetries: 0 });
  const close = async (): Promise<void> => {
    await server.close();
    host.close();
  };
  return { url: server.url, close, client };
}

const turn = (client: OpenAI, messages: OpenAI.ChatCompletionMessageParam[]) =>
  client.chat.completions.create({ model: tiny.modelId, messages, max_tokens: 6, temperature: 0 });

test('a conversation goes on from its SQLite file after the server is closed and started again', async () => {
  const folder = mkdtempSync(join(tiny.folder, 'sessions-'));
  const opening = [{ role: 'user' as const, content: 'Hello there' }];
  const first = await serve(folder);
  const one = await turn(first.client, opening);
  await first.close();
  expect(readdirSync(folder).filter((name) => name.endsWith('.sqlite')).length).toBe(1);

  const second = await serve(folder);
  const content = one.choices[0]!.message.content;
  const two = await turn(second.client, [
    ...opening,
    { role: 'assistant', content },
    { role: 'user', content: 'On' },
  ]);
  await second.close();
  expect(two.usage!.prompt_tokens_details!.cached_tokens).toBe(one.usage!.total_tokens - 1);
  rmSync(folder, { recursive: true });
});

test('serves the page with its headers, and sessions in memory when there is no folder', async () => {
  const server = await serve(undefined);
  try {
    const page = await fetch(server.url);
    expect(page.headers.get('content-security-policy')).toContain("default-src 'none'");
    expect(await page.text()).toContain('<title>ADKVC</title>');
    const script = await fetch(`${server.url}/page.js`);
    expect(script.headers.get('content-type')).toContain('text/javascript');
    expect(await script.text()).not.toMatch(/from '\.\/\w+\.ts'/);
    expect((await turn(server.client, [{ role: 'user', content: 'Hi' }])).choices.length).toBe(1);
  } finally {
    await server.close();
  }
});

test('a client that leaves ends the turn, and the next one is served', async () => {
  const server = await serve(undefined);
  try {
    const stream = await server.client.chat.completions.create({
      model: tiny.modelId,
      messages: [{ role: 'user', content: 'Go on for long' }],
      max_tokens: 200,
      stream: true,
    });
    let seen = 0;
    for await (const _ of stream) if (++seen === 3) break;
    const next = await turn(server.client, [{ role: 'user', content: 'Go on for long' }]);
    expect(next.usage!.completion_tokens).toBeGreaterThan(0);
  } finally {
    await server.close();
  }
});

test('a port in use is an error with its code', async () => {
  const server = await serve(undefined);
  const port = Number(new URL(server.url).port);
  await expect(
    startNodeServer({
      host: await localSessions(engine, undefined),
      auth: {},
      model: servedModel(await readManifest(folderSource(tiny.bundleDir))),
      page: new Map(),
      port,
    }),
  ).rejects.toMatchObject({ code: 'EADDRINUSE' });
  await server.close();
});
