import { createHash } from 'node:crypto';
import type { Browser } from 'playwright-core';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { AdkvcError } from '../../src/core/errors.ts';
import type { AuthConfig } from '../../src/http/auth.ts';
import { type NodeServer, startNodeServer } from '../../src/node.ts';
import { pageFiles } from '../../src/page-files.ts';
import {
  ask,
  type ChatPage,
  idle,
  input,
  listed,
  messages,
  openChat,
  said,
  turn,
} from '../helpers/chat-page.ts';
import { launchChromium } from '../helpers/chromium.ts';
import { FakeSessionHost } from '../helpers/fake-session-host.ts';
import { MODEL } from '../http/fixture.ts';

/** What the page does when things go wrong: it says what, and how to go on, and nothing typed is lost. */
let browser: Browser;
let server: NodeServer | undefined;
let chat: ChatPage;
let host: FakeSessionHost;

beforeAll(async () => {
  browser = await launchChromium();
});
afterAll(() => browser?.close());
afterEach(async () => {
  await chat.context.close();
  await server?.close();
});

async function start(auth: AuthConfig = { anonymous: true }, port = 0): Promise<void> {
  host ??= new FakeSessionHost();
  server = await startNodeServer({ host, auth, model: MODEL, page: await pageFiles(), port });
}
async function fresh(auth?: AuthConfig) {
  host = new FakeSessionHost();
  await start(auth);
  chat = await openChat(browser, `${server!.url}/`);
  return chat.page;
}

test('a server that is gone: said in words, the message is kept, and is sent when it is back', async () => {
  const page = await fresh();
  await turn(page, 'Before');
  const port = Number(new URL(server!.url).port);
  await server!.close();
  await ask(page, 'Into the void');
  await expect.poll(() => page.getByRole('alert').textContent()).toContain('cannot be reached');
  await expect.poll(() => input(page).inputValue()).toBe('Into the void');
  const address = page.url();
  await page.reload().catch(() => {});
  await start({ anonymous: true }, port);
  await page.goto(address);
  await expect.poll(() => input(page).inputValue()).toBe('Into the void');
  await page.getByRole('button', { name: 'Send', exact: true }).click();
  await expect
    .poll(() => said(page))
    .toEqual(['Before', 'Hello there, friend.', 'Into the void', 'Hello there, friend.']);
});

test('429: the page waits as long as it was asked to, says so, and goes on by itself', async () => {
  const page = await fresh();
  host.refusal = new AdkvcError('session_busy', 'the session is busy', { data: { retryAfter: 2 } });
  await ask(page, 'Are you there?');
  await expect.poll(() => page.getByRole('alert').textContent()).toMatch(/busy.*Trying again in [12] s/s);
  expect(host.turns).toHaveLength(1);
  host.refusal = undefined;
  await expect.poll(() => said(page)).toEqual(['Are you there?', 'Hello there, friend.']);
  expect(host.turns).toHaveLength(2);
  await expect.poll(() => page.getByRole('alert').count()).toBe(0);
});

test('429, and the reader stops waiting: the message is theirs again', async () => {
  const page = await fresh();
  host.refusal = new AdkvcError('session_busy', 'the session is busy', { data: { retryAfter: 60 } });
  await ask(page, 'Are you there?');
  await page.getByText(/Trying again in/).waitFor();
  await page.keyboard.press('Escape');
  await idle(page);
  await expect.poll(() => input(page).inputValue()).toBe('Are you there?');
  await expect.poll(() => messages(page).count()).toBe(0);
});

test('a quota is no reason to wait: the remedy is named', async () => {
  const page = await fresh();
  host.refusal = new AdkvcError('session_quota_exceeded', 'this key has 1000 sessions, which is its quota');
  await ask(page, 'One more');
  await expect.poll(() => page.getByRole('alert').textContent()).toContain('Delete conversations');
  expect(host.turns).toHaveLength(1);
  await expect.poll(() => input(page).inputValue()).toBe('One more');
});

test('401: a key is asked for once, a wrong one again, and another key never sees what was remembered', async () => {
  const digest = createHash('sha256').update('secret').digest('hex');
  const page = await fresh({ keys: `me:${digest}` });
  const dialog = page.getByRole('dialog', { name: 'API key' });
  await dialog.getByLabel('Key', { exact: true }).fill('wrong');
  await page.keyboard.press('Enter');
  await dialog.getByText('The server does not know that key.').waitFor();
  await dialog.getByLabel('Key', { exact: true }).fill('secret');
  await page.keyboard.press('Enter');
  await dialog.waitFor({ state: 'hidden' });
  await turn(page, 'With a key');
  await expect.poll(() => said(page)).toEqual(['With a key', 'Hello there, friend.']);
  await expect.poll(() => listed(page).count()).toBe(1);
  await expect.poll(() => page.evaluate(() => JSON.stringify(localStorage))).not.toContain('chat-');
  await page.getByRole('button', { name: 'Forget the API key' }).click();
  await dialog.waitFor();
  await expect.poll(() => listed(page).count()).toBe(0);
  // Who gives none may look at the page, and is told what is missing.
  await dialog.getByRole('button', { name: 'Cancel' }).click();
  await expect.poll(() => page.getByRole('alert').textContent()).toContain('wants an API key');
});

test('an answer that breaks off: what came stays, and Continue asks for the rest', async () => {
  const page = await fresh();
  host.failure = { after: 2, error: { code: 'turn_interrupted', message: 'the server was restarted' } };
  await ask(page, 'Tell me');
  await expect.poll(() => page.getByRole('alert').textContent()).toContain('The server was restarted.');
  await expect.poll(() => said(page)).toEqual(['Tell me', 'Hello there']);
  host.failure = undefined;
  await page.getByRole('alert').getByRole('button', { name: 'Continue' }).click();
  await expect.poll(() => said(page)).toEqual(['Tell me', 'Hello there, friend.']);
});

test('Markdown is shown as what it means, piece by piece; HTML in an answer stays text, and no picture is fetched', async () => {
  const page = await fresh();
  const urls: string[] = [];
  page.on('request', (request) => urls.push(request.url()));
  const answer =
    '## Three *things*\n\n1. **one** `code`\n2. two\n\n```js\nlet x = "<b>";\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n' +
    '<img src="/evil.png" onerror="document.title=1"><script>document.title=2</script> ' +
    '![a picture](http://127.0.0.1:1/p.png) [good](https://example.org/) [bad](javascript:alert(1))';
  host.pieces = answer.match(/[\s\S]{1,7}/g)!;
  await turn(page, 'Show me');
  const text = page.locator('.message.assistant .text');
  await text.getByRole('heading', { name: 'Three things' }).waitFor();
  await expect.poll(() => text.getByRole('listitem').allTextContents()).toEqual(['one code', 'two']);
  await expect.poll(() => text.locator('strong').textContent()).toBe('one');
  await expect.poll(() => text.locator('pre').textContent()).toBe('let x = "<b>";');
  await expect.poll(() => text.getByRole('cell').allTextContents()).toEqual(['1', '2']);
  await expect.poll(() => text.locator('img, script').count()).toBe(0);
  await expect.poll(() => text.textContent()).toContain('<img src="/evil.png" onerror="document.title=1">');
  expect(
    await text.getByRole('link').evaluateAll((links) => links.map((a) => a.getAttribute('href'))),
  ).toEqual(['http://127.0.0.1:1/p.png', 'https://example.org/']);
  expect(urls.filter((url) => url.endsWith('.png'))).toEqual([]);
  // Copied and sent again as it was written.
  expect(host.sessions.values().next().value!.messages[1]!.content).toBe(answer);
});
