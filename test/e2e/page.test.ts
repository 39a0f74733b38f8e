import type { Browser, BrowserContext, Page } from 'playwright-core';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { launchChromium } from '../helpers/chromium.ts';
import { startServer, type TestServer } from '../helpers/server.ts';
import { type TinyServed, tinyServed } from '../helpers/tiny-bundle.ts';

/** The chat page in a real browser, over workerd and a tiny model of random weights. */
let tiny: TinyServed;
let server: TestServer;
let browser: Browser;
let context: BrowserContext;
let page: Page;
/** What a reader's console would show. */
let complaints: string[];

beforeAll(async () => {
  browser = await launchChromium();
  tiny = await tinyServed({ untied: true, context: 1024 });
  server = await startServer(tiny);
});
afterAll(async () => {
  await browser?.close();
  await server?.stop();
  await tiny?.remove();
});
beforeEach(async () => {
  complaints = [];
  context = await browser.newContext();
  page = await context.newPage();
  page.on('pageerror', (error) => complaints.push(String(error)));
  page.on('console', (message) => {
    if (message.type() === 'error' || message.type() === 'warning') complaints.push(message.text());
  });
  await page.goto(`${server.url}/`);
});
afterEach(() => context.close());

const input = () => page.getByRole('textbox', { name: 'Message' });
const messages = () => page.getByRole('log', { name: 'Conversation' }).getByRole('listitem');
const idle = () => page.getByRole('button', { name: 'Send' }).waitFor({ state: 'visible' });
const cacheLine = () => page.getByRole('note');

async function ask(text: string): Promise<void> {
  await input().fill(text);
  await page.keyboard.press('Enter');
}

test('a conversation streams, tells its cache, and is there again after a reload and in another tab', async () => {
  await ask('Tell me a story');
  await expect.poll(async () => (await messages().nth(1).textContent())?.length ?? 0).toBeGreaterThan(3);
  await idle();
  await expect
    .poll(() => cacheLine().textContent())
    .toMatch(
      /\d+ tokens cached in [\d.]+ MB · [\d.]+× smaller than fp16 .* tokens\/s · 0 of \d+ prompt tokens reused/,
    );
  const said = await messages().allTextContents();
  expect(said.length).toBe(2);

  await page.reload();
  await expect.poll(() => messages().allTextContents()).toEqual(said);
  await ask('And another');
  await idle();
  // All that the first turn fed is reused.
  await expect.poll(() => cacheLine().textContent()).toMatch(/[1-9]\d* of \d+ prompt tokens reused/);

  const other = await context.newPage();
  await other.goto(page.url());
  await expect.poll(() => other.getByRole('listitem').count()).toBe(4);
  expect(complaints).toEqual([]);
});

test('Escape stops an answer, and the conversation goes on', async () => {
  await ask('Tell me a very long story');
  await expect.poll(async () => (await messages().nth(1).textContent())?.length ?? 0).toBeGreaterThan(3);
  await page.keyboard.press('Escape');
  await idle();
  await expect.poll(() => page.getByRole('status').textContent()).toBe('Stopped.');
  const kept = (await messages().nth(1).textContent())!;
  await ask('Go on');
  await idle();
  expect(await messages().count()).toBe(4);
  await page.reload();
  // What was said until the stop is kept: at least what was shown.
  await expect.poll(async () => (await messages().nth(1).textContent())?.startsWith(kept)).toBe(true);
  expect(complaints).toEqual([]);
});

test('a new conversation is empty and has an address of its own', async () => {
  await ask('Hello');
  await idle();
  const before = page.url();
  await page.keyboard.press('Alt+KeyN');
  await expect.poll(() => messages().count()).toBe(0);
  expect(page.url()).not.toBe(before);
  expect(complaints).toEqual([]);
});

test('a message that was refused can be sent again', async () => {
  // More than a conversation may ever hold, and less than a body may.
  await ask('word '.repeat(120_000));
  await expect.poll(() => page.getByRole('status').textContent(), { timeout: 15_000 }).toContain('tokens');
  expect(await messages().count()).toBe(0);
  expect(await input().inputValue()).toContain('word word');
});

test('nothing of the page comes from elsewhere or stands inline', async () => {
  const urls: string[] = [];
  page.on('request', (request) => urls.push(request.url()));
  await page.reload();
  await page.waitForLoadState('networkidle');
  expect(urls.filter((url) => !url.startsWith(server.url))).toEqual([]);
  // The session of a page that nobody wrote in yet is not found: the browser logs that too.
  expect(complaints.filter((text) => !text.includes('404'))).toEqual([]);
});

test.each([
  [320, 'light'],
  [1200, 'dark'],
] as const)('at %i pixels, %s: nothing is cut off, and text stands out', async (width, colorScheme) => {
  await page.setViewportSize({ width, height: 600 });
  await page.emulateMedia({ colorScheme });
  await ask('Hello');
  await idle();
  const { wide, contrast } = await page.evaluate(() => {
    const luminance = (color: string): number => {
      const [r, g, b] = color.match(/[\d.]+/g)!.map((part) => {
        const c = Number(part) / 255;
        return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * r! + 0.7152 * g! + 0.0722 * b!;
    };
    const style = getComputedStyle(document.querySelector('.message.assistant')!);
    const [a, b] = [luminance(style.color), luminance(style.backgroundColor)];
    return {
      wide: document.documentElement.scrollWidth > innerWidth,
      contrast: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05),
    };
  });
  expect(wide).toBe(false);
  // https://www.w3.org/TR/WCAG22/#contrast-minimum
  expect(contrast).toBeGreaterThan(4.5);
});
