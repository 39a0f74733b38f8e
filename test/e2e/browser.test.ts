import { join } from 'node:path';
import { build } from 'esbuild';
import type { Browser, Page } from 'playwright-core';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { loadWasmKernels } from '../../src/cli/load-engine.ts';
import { generate } from '../../src/engine/generate.ts';
import { ISOLATE_CACHE_BYTES } from '../../src/engine/isolate.ts';
import { loadEngine } from '../../src/engine/load.ts';
import { createApp } from '../../src/http/app.ts';
import { servedModel } from '../../src/http/models.ts';
import { type NodeServer, startNodeServer } from '../../src/node.ts';
import { pageFiles } from '../../src/page-files.ts';
import { folderSource } from '../../src/prepare/folder-source.ts';
import { readManifest } from '../../src/runtime/model.ts';
import { LocalHost } from '../../src/session/local-host.ts';
import { Scheduler } from '../../src/session/scheduler.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import { ask, type ChatPage, idle, listed, messages, openChat, said, turn } from '../helpers/chat-page.ts';
import { launchChromium } from '../helpers/chromium.ts';
import { FakeSessionHost } from '../helpers/fake-session-host.ts';
import { pause } from '../helpers/sessions.ts';
import { type TinyServed, tinyServed } from '../helpers/tiny-bundle.ts';
import { MODEL } from '../http/fixture.ts';

/** The whole application inside a real browser: what serves the page serves files alone, and nobody's session is ever asked for. */
const host = new FakeSessionHost();
let tiny: TinyServed;
let server: NodeServer;
let open: ChatPage[] = [];

beforeAll(async () => {
  tiny = await tinyServed({ endless: true, context: 1_024 });
  server = await startNodeServer({
    host,
    auth: { anonymous: true },
    model: MODEL,
    page: await pageFiles(),
    bundle: tiny.bundleDir,
    port: 0,
  });
});
afterAll(async () => {
  await server?.close();
  await tiny?.remove();
  expect(host.turns).toEqual([]);
});
afterEach(async () => {
  for (const { context } of open) await context.close();
  open = [];
});

async function visit(browser: Browser, backend: string): Promise<Page> {
  const chat = await openChat(browser, server.url + (backend === '' ? '/' : `/?backend=${backend}`));
  open.push(chat);
  return chat.page;
}
const place = (page: Page): Promise<string | null> => page.locator('#place').textContent();
const ready = (page: Page) => expect.poll(() => place(page), { timeout: 60_000 }).toMatch(/Ready after/);

/** What an answer says of its turn. */
async function factsOf(page: Page, message: number) {
  const text = (await messages(page).nth(message).textContent())!;
  const [, tokens, cached, prompt] = /([\d,]+) tokens? · ([\d,]+) of ([\d,]+) prompt tokens/.exec(text)!;
  const [made, reused, asked] = [tokens!, cached!, prompt!].map((part) => Number(part.replaceAll(',', '')));
  return { made: made!, reused: reused!, asked: asked! };
}

/** Two turns, a reload, and a third: each reuses all that the one before has fed, which is all but its last token. */
async function conversation(page: Page): Promise<void> {
  await ready(page);
  await turn(page, 'Tell me a story');
  await turn(page, 'And another');
  const [first, second] = [await factsOf(page, 1), await factsOf(page, 3)];
  expect(first.reused).toBe(0);
  expect(second.reused).toBe(first.asked + first.made - 1);
  const kept = await said(page);
  expect(kept).toHaveLength(4);
  await page.reload();
  await expect.poll(() => said(page)).toEqual(kept);
  await turn(page, 'And a third one');
  expect((await factsOf(page, 5)).reused).toBe(second.asked + second.made - 1);
  expect((await said(page)).slice(0, 4)).toEqual(kept);
}

interface Asked {
  readonly content: string;
  readonly max_completion_tokens: number;
}
interface Told {
  readonly text: string;
  readonly prompt: number;
  readonly cached: number;
}

/** Turns of the session "asked" over the API of an application of its own, greedy; it ends afterwards, as a tab does. */
async function converse(page: Page, backend: string, asked: readonly Asked[]) {
  await page.route('**/expose.js', (route) =>
    route.fulfill({
      contentType: 'text/javascript',
      body: "import { LocalApp } from './local-app.js'; globalThis.LocalApp = LocalApp;",
    }),
  );
  await page.addScriptTag({ url: '/expose.js', type: 'module' });
  return page.evaluate(
    async ({ backend, asked, model }) => {
      const { LocalApp } = globalThis as any;
      let report: unknown;
      const app = new LocalApp(backend, (status: { report?: unknown }) => {
        report = status.report ?? report;
      });
      const turns: Told[] = [];
      for (const { content, max_completion_tokens } of asked) {
        const response: Response = await app.fetch('/v1/chat/completions', {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify({
            ...{ model, messages: [{ role: 'user', content }], session_id: 'asked', session_append: true },
            ...{ temperature: 0, max_completion_tokens },
          }),
        });
        const answer = await response.json();
        if (!response.ok) throw new Error(JSON.stringify(answer));
        turns.push({
          text: answer.choices[0].message.content,
          prompt: answer.usage.prompt_tokens,
          cached: answer.usage.prompt_tokens_details.cached_tokens,
        });
      }
      const file = await (await app.fetch('/v1/sessions/asked/export')).arrayBuffer();
      app.end();
      return { report, turns, file: [...new Uint8Array(file)] };
    },
    { backend, asked, model: tiny.modelId },
  );
}

describe('on WebAssembly', () => {
  let browser: Browser;
  beforeAll(async () => {
    browser = await launchChromium();
  });
  afterAll(() => browser?.close());

  test('two turns, a reload and a third: everything fed before is reused, and the weights are not fetched again', async () => {
    const page = await visit(browser, 'wasm');
    const fetched: string[] = [];
    await ready(page);
    await expect
      .poll(() => place(page))
      .toMatch(/WebAssembly \(relaxed SIMD\): asked for by name\..*fetched/);
    page.on('request', (request) => fetched.push(new URL(request.url()).pathname));
    await conversation(page);
    expect(fetched.filter((path) => path.startsWith('/bundle/'))).toEqual(['/bundle/manifest.json']);
    expect(fetched.filter((path) => path.startsWith('/v1/'))).toEqual([]);
    await expect.poll(() => place(page)).toContain('from what the browser had kept');
    expect(open[0]!.complaints).toEqual([]);
  });

  test('a conversation is forked, carried away as a file, deleted and brought back; its cache is shown', async () => {
    const page = await visit(browser, 'wasm');
    await turn(page, 'word '.repeat(300));
    const first = await said(page);
    await page.getByRole('button', { name: /^Cache view/ }).click();
    await page.getByRole('img', { name: /Heat map of bits a number: 2 layers/ }).waitFor();
    await page.keyboard.press('Escape');
    const [download] = await Promise.all([
      page.waitForEvent('download'),
      page.getByRole('button', { name: 'Download', exact: true }).click(),
    ]);
    const origin = page.url();
    await messages(page).nth(1).getByRole('button', { name: /^Fork/ }).click();
    await expect.poll(() => page.url()).not.toBe(origin);
    await expect.poll(() => said(page)).toEqual(first);
    for (const left of [1, 0]) {
      await page
        .getByRole('button', { name: /^Delete/ })
        .first()
        .click();
      const dialog = page.getByRole('dialog');
      await expect.poll(() => dialog.textContent()).toContain('removed from this browser for good');
      await dialog.getByRole('button', { name: 'Delete' }).click();
      await expect.poll(() => listed(page).count()).toBe(left);
    }
    const [chooser] = await Promise.all([
      page.waitForEvent('filechooser'),
      page.getByRole('button', { name: 'Open a downloaded conversation' }).click(),
    ]);
    await chooser.setFiles(await download.path());
    await expect.poll(() => said(page)).toEqual(first);
    await turn(page, 'On');
    expect((await factsOf(page, 3)).reused).toBeGreaterThan(300);
    expect(open[0]!.complaints).toEqual([]);
  });

  test('an answer is stopped; one whose tab was closed leaves the turns before it', async () => {
    const page = await visit(browser, 'wasm');
    await ask(page, 'Tell me a very long story');
    await expect.poll(async () => (await said(page))[1]?.length ?? 0).toBeGreaterThan(3);
    await page.keyboard.press('Escape');
    await idle(page);
    const kept = await said(page);
    await ask(page, 'Tell me another');
    await expect.poll(async () => (await said(page))[3]?.length ?? 0).toBeGreaterThan(3);
    const address = page.url();
    await page.close();
    const again = await open[0]!.context.newPage();
    await again.goto(address);
    await expect.poll(async () => (await said(again)).slice(0, 2)).toEqual(kept);
    await turn(again, 'And now?');
    expect((await said(again)).slice(0, 2)).toEqual(kept);
  });

  test('tokens and the stored conversation are those of Node: it goes on there', async () => {
    const page = await visit(browser, '');
    const asked = [
      { content: `Once ${'upon a time '.repeat(60)}`, max_completion_tokens: 40 },
      { content: 'And then?', max_completion_tokens: 40 },
    ];
    const { turns, file } = await converse(page, 'wasm', asked);
    const engine = await loadEngine({
      source: folderSource(tiny.bundleDir),
      kernels: await loadWasmKernels(),
    });
    const services = { loadEngine: async () => engine, generate, scheduler: new Scheduler({ pause }) };
    const node = new LocalHost({ ...services, cacheBytes: ISOLATE_CACHE_BYTES }, () => new MemoryStore());
    const api = createApp({
      host: node,
      auth: { anonymous: true },
      loadModel: async () => servedModel(await readManifest(folderSource(tiny.bundleDir))),
    });
    const say = async (session_id: string, { content, max_completion_tokens }: Asked): Promise<any> => {
      const response = await api.request('http://localhost/v1/chat/completions', {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({
          ...{ model: tiny.modelId, messages: [{ role: 'user', content }], session_id, session_append: true },
          ...{ temperature: 0, max_completion_tokens },
        }),
      });
      return response.json();
    };
    for (const [i, turn] of asked.entries()) {
      const answer = await say('asked', turn);
      expect(answer.choices[0].message.content).toBe(turns[i]!.text);
      expect(answer.usage.prompt_tokens_details.cached_tokens).toBe(turns[i]!.cached);
    }
    const imported = await api.request('http://localhost/v1/sessions/import?id=carried', {
      method: 'POST',
      headers: { 'content-type': 'application/octet-stream' },
      body: Uint8Array.from(file),
    });
    expect(imported.status).toBe(201);
    const on = { content: 'And on?', max_completion_tokens: 40 };
    const [there, here] = [await say('carried', on), await say('asked', on)];
    expect(there.choices[0].message.content).toBe(here.choices[0].message.content);
    expect(there.usage).toEqual(here.usage);
    node.close();
  });

  test('the browser’s own files pass the conformance suite of every store', async () => {
    const { outputFiles } = await build({
      entryPoints: [join(import.meta.dirname, '../helpers/opfs-conformance.ts')],
      alias: { vitest: join(import.meta.dirname, '../helpers/small-expect.ts') },
      ...{ bundle: true, write: false, format: 'esm' },
    });
    const page = await visit(browser, '');
    await page.route('**/conformance.js', (route) =>
      route.fulfill({ contentType: 'text/javascript', body: outputFiles[0]!.text }),
    );
    const results = await page.evaluate(
      () =>
        new Promise<{ title: string; error: string | null }[]>((resolve, reject) => {
          const worker = new Worker('/conformance.js', { type: 'module' });
          worker.onmessage = ({ data }) => resolve(data);
          worker.onerror = ({ message }) => reject(new Error(message));
          worker.postMessage('run');
        }),
    );
    expect(results.filter(({ error }) => error !== null)).toEqual([]);
    expect(results.length).toBeGreaterThan(9);
  });

  test('a second tab is told that the first has the conversations', async () => {
    const page = await visit(browser, 'wasm');
    await ready(page);
    const second = await open[0]!.context.newPage();
    await second.goto(page.url());
    await expect.poll(() => second.getByRole('alert').textContent()).toMatch(/open in another tab.*Reload/);
    await page.close();
    await second.getByRole('button', { name: 'Reload' }).click();
    await ready(second);
  });

  test('who asks for a GPU that is not there is told so, and what to do; nothing else is taken instead', async () => {
    const page = await visit(browser, 'webgpu');
    await expect.poll(() => page.getByRole('alert').textContent()).toMatch(/WebGPU was asked for/);
    await ask(page, 'Hello?');
    await expect.poll(() => page.getByRole('alert').textContent()).toMatch(/WebGPU was asked for/);
    await expect.poll(() => messages(page).count()).toBe(0);
    await page.reload();
    await page.getByRole('button', { name: 'Use WebAssembly' }).click();
    await ready(page);
  });

  test('on a host that has files alone the page offers to run here', async () => {
    const chat = await openChat(browser, `${server.url}/health`);
    open.push(chat);
    await chat.page.route('**/v1/**', (route) => route.fulfill({ status: 404, body: 'no such file' }));
    await chat.page.goto(`${server.url}/`);
    await chat.page.getByRole('button', { name: 'Run it in this browser' }).click();
    await ready(chat.page);
  });

  test('auto says why WebAssembly was taken; an unknown backend is refused by name', async () => {
    const page = await visit(browser, 'auto');
    await ready(page);
    await expect.poll(() => place(page)).toMatch(/WebAssembly \(relaxed SIMD\): .*(adapter|WebGPU)/);
    const other = await visit(browser, 'fpga');
    await expect.poll(() => other.getByRole('alert').textContent()).toContain('auto, wasm or webgpu');
  });
});

describe('on WebGPU, a software adapter', () => {
  let browser: Browser;
  beforeAll(async () => {
    browser = await launchChromium({ webgpu: true });
  });
  afterAll(() => browser?.close());

  test('two turns, another worker, and a third: everything fed before is reused', async () => {
    const page = await visit(browser, '');
    const first = await converse(page, 'webgpu', [
      { content: 'Hello', max_completion_tokens: 3 },
      { content: 'Go on', max_completion_tokens: 3 },
    ]);
    expect(first.report).toMatchObject({ backend: 'webgpu', why: 'asked for by name' });
    expect(first.turns.map(({ cached }) => cached)).toEqual([0, first.turns[0]!.prompt + 3 - 1]);
    const second = await converse(page, 'webgpu', [{ content: 'And on', max_completion_tokens: 3 }]);
    expect(second.turns[0]!.cached).toBe(first.turns[1]!.prompt + 3 - 1);
  });

  test('auto leaves a software adapter alone', async () => {
    const page = await visit(browser, 'auto');
    await ready(page);
    await expect.poll(() => place(page)).toMatch(/WebAssembly.*processor in disguise.*swiftshader/);
  });
});
