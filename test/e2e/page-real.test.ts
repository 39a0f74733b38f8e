import type { Browser } from 'playwright-core';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { bundleFolder } from '../../src/cli/bundle-folder.ts';
import { loadCliEngine } from '../../src/cli/load-engine.ts';
import { localSessions } from '../../src/cli/local-sessions.ts';
import { servedModel } from '../../src/http/models.ts';
import { type NodeServer, startNodeServer } from '../../src/node.ts';
import { pageFiles } from '../../src/page-files.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { readManifest } from '../../src/runtime/model.ts';
import { messages, openChat, said, turn } from '../helpers/chat-page.ts';
import { launchChromium } from '../helpers/chromium.ts';

/** The page over the embedded model: what a visitor sees first. */
let browser: Browser;
let server: NodeServer;
let close: () => void;

beforeAll(async () => {
  browser = await launchChromium();
  const engine = await loadCliEngine({ backend: 'wasm' });
  const host = await localSessions(engine, undefined);
  close = () => host.close();
  server = await startNodeServer({
    host,
    auth: { anonymous: true },
    model: servedModel(await readManifest(folderSource(await bundleFolder('compact')))),
    page: await pageFiles(),
    bundle: await bundleFolder('compact'),
    port: 0,
  });
});
afterAll(async () => {
  await browser?.close();
  await server?.close();
  close?.();
});

test('the embedded model answers with sense, and goes on from its cache', async () => {
  const { page, complaints, context } = await openChat(browser, `${server.url}/`);
  await turn(page, 'What is the capital of France? Answer in one sentence.');
  expect((await said(page))[1]).toContain('Paris');
  await turn(page, 'And what is the capital of Italy? Answer in one sentence.');
  expect((await said(page))[3]).toContain('Rome');
  // Everything of the first turn but the token that ended it is reused.
  await expect
    .poll(() => messages(page).nth(3).textContent())
    .toMatch(/[\d.]+ tokens\/s · [\d,]+ tokens · [1-9]\d+ of \d+ prompt tokens reused/);
  expect(complaints).toEqual([]);
  await context.close();
});

test('inside the browser: the same answers, with no network but for the files', async () => {
  const { page, complaints, context } = await openChat(browser, `${server.url}/?backend=wasm`);
  const asked: string[] = [];
  page.on('request', (request) => asked.push(new URL(request.url()).pathname));
  await page.getByText(/Ready after/).waitFor({ timeout: 120_000 });
  await turn(page, 'What is the capital of France? Answer in one sentence.');
  expect((await said(page))[1]).toContain('Paris');
  await page.reload();
  await expect.poll(() => messages(page).count()).toBe(2);
  await turn(page, 'And what is the capital of Italy? Answer in one sentence.');
  expect((await said(page))[3]).toContain('Rome');
  await expect
    .poll(() => messages(page).nth(3).textContent())
    .toMatch(/ [1-9]\d+ of \d+ prompt tokens reused/);
  expect(asked.filter((path) => path.startsWith('/v1/'))).toEqual([]);
  expect(complaints).toEqual([]);
  await context.close();
});
