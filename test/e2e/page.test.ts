import type { Browser, Page } from 'playwright-core';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import type { CacheMap } from '../../src/page/api.ts';
import {
  ask,
  type ChatPage,
  idle,
  input,
  listed,
  lowContrast,
  messages,
  openChat,
  said,
  tabTo,
  turn,
  unnamed,
} from '../helpers/chat-page.ts';
import { launchChromium } from '../helpers/chromium.ts';
import { startServer, type TestServer } from '../helpers/server.ts';
import { type TinyServed, tinyServed } from '../helpers/tiny-bundle.ts';

/** The chat page in a real browser, over workerd and a tiny model of random weights. */
let tiny: TinyServed;
let server: TestServer;
let browser: Browser;
let chat: ChatPage;
let page: Page;

beforeAll(async () => {
  browser = await launchChromium();
  tiny = await tinyServed({ endless: true, context: 1024 });
  server = await startServer(tiny);
});
afterAll(async () => {
  await browser?.close();
  await server?.stop();
  await tiny?.remove();
});
beforeEach(async () => {
  chat = await openChat(browser, `${server.url}/`);
  page = chat.page;
});
afterEach(() => chat.context.close());

const cacheButton = () => page.getByRole('button', { name: /^Cache view/ });
const answer = (index = 1) => page.locator('.message .text').nth(index);

test('a conversation streams, tells its speed and its cache, and is there again after a reload and on another device', async () => {
  await ask(page, 'Tell me a story');
  await expect.poll(async () => (await answer().textContent())?.length ?? 0).toBeGreaterThan(3);
  await idle(page);
  await expect
    .poll(() => messages(page).nth(1).textContent())
    .toMatch(/[\d.]+ tokens\/s · [\d,]+ tokens · 0 of \d+ prompt tokens reused/);
  await expect
    .poll(() => cacheButton().getAttribute('aria-label'))
    .toMatch(/\d+ tokens in [\d.]+ [kM]B, [\d.]+ times/);
  const kept = await said(page);
  expect(kept.length).toBe(2);

  await page.reload();
  await expect.poll(() => said(page)).toEqual(kept);
  await turn(page, 'And another');
  // All that the first turn fed is reused.
  await expect
    .poll(() => messages(page).nth(3).textContent())
    .toMatch(/ [1-9]\d* of \d+ prompt tokens reused/);

  // Nothing but the key is shared with another browser.
  const other = await openChat(browser, `${server.url}/`);
  await listed(other.page).filter({ hasText: 'Tell me a story' }).first().click();
  await expect.poll(() => said(other.page)).toHaveLength(4);
  expect([...chat.complaints, ...other.complaints]).toEqual([]);
  await other.context.close();
});

test('Escape stops an answer, what was said is kept, and the conversation goes on', async () => {
  await ask(page, 'Tell me a very long story');
  await expect.poll(async () => (await answer().textContent())?.length ?? 0).toBeGreaterThan(3);
  await page.keyboard.press('Escape');
  await idle(page);
  const kept = (await answer().textContent())!;
  await turn(page, 'Go on');
  await expect.poll(() => messages(page).count()).toBe(4);
  await page.reload();
  await expect.poll(async () => (await said(page))[1]).toBe(kept);
  expect(chat.complaints).toEqual([]);
});

test('left in the middle of its first answer, a conversation is there with what was said until then', async () => {
  await ask(page, 'Tell me a story without end');
  await expect.poll(async () => (await answer().textContent())?.length ?? 0).toBeGreaterThan(3);
  // Another device waits for the answer that is being written here; what it says comes after.
  const other = await openChat(browser, page.url());
  await ask(other.page, 'And then?');
  await page.reload();
  await expect.poll(async () => (await said(page))[0]).toBe('Tell me a story without end');
  await expect.poll(() => messages(other.page).count()).toBe(4);
  await idle(other.page);
  const [first, begun, second] = await said(other.page);
  expect([first, second]).toEqual(['Tell me a story without end', 'And then?']);
  expect(begun!.length).toBeGreaterThan(3);
  await page.reload();
  await expect.poll(() => said(page)).toEqual(await said(other.page));
  expect([...chat.complaints, ...other.complaints]).toEqual([]);
  await other.context.close();
});

test('what is sent before a conversation is loaded comes after all that it holds', async () => {
  await turn(page, 'Before');
  const before = await said(page);
  let answerLoad = (): void => {};
  const asked = new Promise<void>((resolve) => {
    answerLoad = resolve;
  });
  await page.route('**/messages', async (route) => {
    await asked;
    await route.continue();
  });
  await page.reload();
  await ask(page, 'At once');
  await page.getByRole('button', { name: 'Stop' }).waitFor();
  answerLoad();
  await expect.poll(() => messages(page).count()).toBe(4);
  await idle(page);
  expect((await said(page)).slice(0, 3)).toEqual([...before, 'At once']);
  await page.reload();
  await expect.poll(async () => (await said(page)).slice(0, 3)).toEqual([...before, 'At once']);
  expect(chat.complaints).toEqual([]);
});

test.each(['Answer again', 'Edit this message'])(
  '“%s” waits for an answer that is written elsewhere, and cuts nothing unseen',
  async (action) => {
    await turn(page, 'First question');
    let elsewhere = true;
    await page.route(/\/v1\/sessions\/[^/?]+$/, async (route) => {
      const response = await route.fetch();
      const session = await response.json();
      await route.fulfill({ response, json: { ...session, busy: elsewhere } });
    });
    await page.reload();
    await expect.poll(() => messages(page).count()).toBe(2);
    const edits = action === 'Edit this message';
    await messages(page)
      .nth(edits ? 0 : 1)
      .getByRole('button', { name: action })
      .click();
    if (edits) await expect.poll(() => input(page).inputValue()).toBe('First question');
    if (edits) await ask(page, 'Edited');
    await page.getByRole('button', { name: 'Stop' }).waitFor();
    const model = (await (await fetch(`${server.url}/v1/models`)).json()).data[0].id;
    const session_id = new URL(page.url()).hash.slice(1);
    const answered = await fetch(`${server.url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({
        ...{ model, session_id, session_append: true, max_tokens: 8 },
        messages: [{ role: 'user', content: 'From another device' }],
      }),
    });
    expect(answered.status).toBe(200);
    elsewhere = false;
    await idle(page);
    expect((await said(page))[2]).toBe('From another device');
    expect(await messages(page).count()).toBe(4);
    expect(await page.getByText('gone on elsewhere').isVisible()).toBe(true);
    expect(await input(page).inputValue()).toBe(edits ? 'Edited' : '');
    expect(chat.complaints).toEqual([]);
  },
);

test('an earlier message is edited: what followed it goes, and what came before is reused', async () => {
  await turn(page, 'First question');
  await turn(page, 'Second question');
  const before = await said(page);
  await input(page).fill('half a thought');
  await messages(page).nth(2).getByRole('button', { name: 'Edit this message' }).click();
  await expect.poll(() => input(page).inputValue()).toBe('Second question');
  await turn(page, 'Another second question');
  const after = await said(page);
  expect(after.slice(0, 3)).toEqual([...before.slice(0, 2), 'Another second question']);
  expect(after).toHaveLength(4);
  await expect
    .poll(() => messages(page).nth(3).textContent())
    .toMatch(/ [1-9]\d* of \d+ prompt tokens reused/);
  // What was being typed when the edit began is there again.
  await expect.poll(() => input(page).inputValue()).toBe('half a thought');
  await page.reload();
  await expect.poll(() => said(page)).toEqual(after);
  await expect.poll(() => input(page).inputValue()).toBe('half a thought');
  expect(chat.complaints).toEqual([]);
});

test('a fork goes on apart; another answer is drawn; a conversation is deleted after a question', async () => {
  await turn(page, 'A question about forks');
  await turn(page, 'And a second');
  const [origin, first] = [page.url(), await said(page)];
  await messages(page).nth(1).getByRole('button', { name: /^Fork/ }).click();
  await expect.poll(() => page.url()).not.toBe(origin);
  await expect.poll(() => said(page)).toEqual(first.slice(0, 2));
  await messages(page).nth(1).getByRole('button', { name: 'Answer again' }).click();
  await idle(page);
  expect((await said(page))[0]).toBe(first[0]);
  await page.goBack();
  await expect.poll(() => said(page)).toEqual(first);

  const entries = await listed(page).count();
  await page.getByRole('button', { name: 'Delete “A question about forks”' }).first().click();
  await page.getByRole('dialog').getByRole('button', { name: 'Cancel' }).click();
  await expect.poll(() => listed(page).count()).toBe(entries);
  await page.getByRole('button', { name: 'Delete “A question about forks”' }).first().click();
  await page.getByRole('dialog').getByRole('button', { name: 'Delete' }).click();
  await expect.poll(() => listed(page).count()).toBe(entries - 1);
  expect(chat.complaints).toEqual([]);
});

test('an answer goes on while another conversation is looked at', async () => {
  await ask(page, 'A long answer, please');
  await expect.poll(() => messages(page).count()).toBe(2);
  await expect.poll(() => page.url()).toContain('#');
  const first = page.url();
  await page.keyboard.press('Alt+KeyN');
  await expect.poll(() => messages(page).count()).toBe(0);
  expect(page.url()).not.toBe(first);
  await turn(page, 'Something else');
  await page.goto(first);
  await expect.poll(() => said(page)).toHaveLength(2);
  await idle(page);
  expect((await said(page))[1]!.length).toBeGreaterThan(3);
  expect(chat.complaints).toEqual([]);
});

test('the cache view: totals, tiers, map, positions and what is gone', async () => {
  await page.evaluate(async () => {
    const post = (path: string, body: object) =>
      fetch(path, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(body),
      });
    await post('/v1/sessions', { id: 'seen', policy: 'window', ratio: 4 });
  });
  await page.goto(`${server.url}/#seen`);
  await page.reload();
  await turn(page, 'word '.repeat(420));
  await cacheButton().click();
  const view = page.getByRole('dialog', { name: 'Cache' });
  await expect.poll(() => view.getByRole('row').count()).toBeGreaterThan(2);
  await expect.poll(() => view.textContent()).toMatch(/smaller than fp16.*held now.*as fp16.*peak/);
  await expect
    .poll(() => view.textContent())
    .toMatch(/% of all cells were evicted by some head; [\d,]+ positions of/);
  // The conversation is longer than the model was trained for.
  await expect.poll(() => view.textContent()).toMatch(/[\d,]+ positions of these are closed/);
  const map = view.getByRole('img', { name: /Heat map of bits a number: 2 layers by [\d,]+ positions/ });
  const colours = () =>
    map.evaluate((canvas: HTMLCanvasElement) => {
      const { data } = canvas.getContext('2d')!.getImageData(0, 0, canvas.width, canvas.height);
      return new Set(Array.from({ length: data.length / 4 }, (_, i) => data.slice(i * 4, i * 4 + 3).join()))
        .size;
    });
  await expect.poll(() => colours()).toBeGreaterThan(1);
  const slider = view.getByRole('slider', { name: 'Position' });
  await slider.fill('0');
  await expect.poll(() => slider.getAttribute('aria-valuetext')).toMatch(/^Position 0.*held exactly/);
  await slider.fill('100');
  await expect
    .poll(() => slider.getAttribute('aria-valuetext'))
    .toMatch(/^Position 100 “.+” \(You\): evicted/);
  await view.getByRole('combobox', { name: 'Layer' }).selectOption('1');
  await view.getByRole('img', { name: /2 heads of layer 2/ }).waitFor();
  await view.getByRole('button', { name: 'Relevance' }).click();
  await view.getByRole('img', { name: /Heat map of relevance/ }).waitFor();
  await view.getByText('The text as the cache holds it').click();
  // The text is made when the browser tells of the opening, which it does later than the click.
  await view.locator('del').first().waitFor();
  await expect.poll(() => unnamed(page)).toEqual([]);
  await page.keyboard.press('Escape');
  await expect.poll(() => view.count()).toBe(0);
  await expect.poll(() => cacheButton().evaluate((button) => button === document.activeElement)).toBe(true);
  expect(chat.complaints).toEqual([]);
});

test('past the trained length the map has gaps, and is that of the API', async () => {
  await page.evaluate(() =>
    fetch('/v1/sessions', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ id: 'long', policy: 'adkvc', ratio: 4 }),
    }),
  );
  await page.goto(`${server.url}/#long`);
  await page.reload();
  const text = Array.from({ length: 330 }, (_, i) => `word${i} `).join('');
  await turn(page, text);
  const map = (await (await fetch(`${server.url}/v1/sessions/long/cache`)).json()) as CacheMap;
  expect(map.tokens).toBeGreaterThan(1_500);
  expect(map.closed.length).toBeGreaterThan(0);
  await cacheButton().click();
  const view = page.getByRole('dialog', { name: 'Cache' });
  const slider = view.getByRole('slider', { name: 'Position' });
  await expect.poll(() => slider.getAttribute('max')).toBe(String(map.tokens - 1));
  const at = async (position: number): Promise<string> => {
    await slider.fill(String(position));
    return (await slider.getAttribute('aria-valuetext'))!;
  };
  const held = map.data[0]!.segments.map(({ start }) => start);
  for (const [first, count] of map.closed) {
    await expect.poll(() => at(first)).toContain(': evicted');
    await expect.poll(() => at(first + count - 1)).toContain(': evicted');
    expect(held).not.toContain(first);
  }
  await expect.poll(() => at(map.tokens - 1)).toContain('held exactly');
  await expect.poll(() => at(0)).toContain('held exactly');
  expect(chat.complaints).toEqual([]);
});

test('a conversation is downloaded, opened again as another one, and goes on there; a file that is none is refused by name', async () => {
  await turn(page, 'To be carried away');
  const first = await said(page);
  const [download] = await Promise.all([
    page.waitForEvent('download'),
    page.getByRole('button', { name: 'Download', exact: true }).click(),
  ]);
  expect(download.suggestedFilename()).toBe('To-be-carried-away.adkvc');
  const open = async (file: string | { name: string; mimeType: string; buffer: Buffer }) => {
    const [chooser] = await Promise.all([
      page.waitForEvent('filechooser'),
      page.getByRole('button', { name: 'Open a downloaded conversation' }).click(),
    ]);
    await chooser.setFiles(file);
  };
  const origin = page.url();
  await open(await download.path());
  await expect.poll(() => page.url()).not.toBe(origin);
  await expect.poll(() => said(page)).toEqual(first);
  await turn(page, 'And on');
  await expect
    .poll(() => messages(page).nth(3).textContent())
    .toMatch(/ [1-9]\d* of \d+ prompt tokens reused/);
  await page.goto(origin);
  await expect.poll(() => said(page)).toEqual(first);
  await open({ name: 'x.adkvc', mimeType: 'text/plain', buffer: Buffer.alloc(4_000, 'no conversation') });
  await expect.poll(() => page.getByRole('alert').textContent()).toContain('xport');
});

test('pages of the list that were asked for stay when a turn ends, and after coming back', async () => {
  await page.evaluate(async () => {
    for (let i = 0; i < 35; i++)
      await fetch('/v1/sessions', {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ id: `many-${i}` }),
      });
  });
  await page.reload();
  await expect.poll(() => listed(page).count()).toBe(30);
  const more = page.getByRole('button', { name: 'Show more' });
  await more.click();
  await expect.poll(() => listed(page).count()).toBeGreaterThan(34);
  const all = await listed(page).count();
  await turn(page, 'One more');
  await expect.poll(() => listed(page).count()).toBe(all + 1);
  await page.evaluate(async () => {
    for (let i = 0; i < 35; i++) await fetch(`/v1/sessions/many-${i}`, { method: 'DELETE' });
  });
  expect(chat.complaints).toEqual([]);
});

test('the keyboard alone: send, stop, edit, fork, cache view, new, switch', async () => {
  await expect.poll(() => input(page).evaluate((field) => field === document.activeElement)).toBe(true);
  const send = async (text: string, then: number) => {
    await page.keyboard.type(text);
    await expect.poll(() => input(page).inputValue()).toBe(text);
    await page.keyboard.press('Enter');
    await expect.poll(() => messages(page).count()).toBe(then);
  };
  await send('By keyboard', 2);
  await idle(page);
  await send('Go on', 4);
  await expect.poll(async () => (await answer(3).textContent())?.length ?? 0).toBeGreaterThan(3);
  await page.keyboard.press('Escape');
  await idle(page);
  await page.keyboard.press('ArrowUp');
  await expect.poll(() => input(page).inputValue()).toBe('Go on');
  await page.keyboard.press('Escape');
  await expect.poll(() => input(page).inputValue()).toBe('');
  await send('Once more', 6);
  await idle(page);
  const first = page.url();
  await tabTo(page, /^Fork/, 'Shift+Tab');
  await page.keyboard.press('Enter');
  await expect.poll(() => page.url()).not.toBe(first);
  await expect.poll(() => messages(page).count()).toBe(6);
  await page.keyboard.press('Alt+KeyC');
  await page.getByRole('dialog', { name: 'Cache' }).waitFor();
  await page.keyboard.press('Escape');
  await page.keyboard.press('Alt+KeyN');
  await expect.poll(() => messages(page).count()).toBe(0);
  await tabTo(page, /^By keyboard/, 'Shift+Tab');
  await page.keyboard.press('Enter');
  await expect.poll(() => messages(page).count()).toBe(6);
  expect(chat.complaints).toEqual([]);
});

test('a screen reader is told of an answer once, not of every token', async () => {
  await page.evaluate(() => {
    const told: string[] = [];
    (window as any).told = told;
    for (const region of document.querySelectorAll('[role=status], [role=alert], [role=log], [aria-live]'))
      new MutationObserver(() => told.push(region.textContent ?? '')).observe(region, {
        childList: true,
        subtree: true,
        characterData: true,
      });
  });
  await turn(page, 'Speak to me');
  const whole = (await said(page))[1]!;
  const told = () => page.evaluate(() => (window as any).told as string[]);
  await expect.poll(async () => (await told()).at(-1)).toBe(whole);
  expect((await told()).length).toBeLessThan(8);
});

test('a message that was refused can be sent again', async () => {
  // More than a conversation may ever hold, and less than a body may.
  await ask(page, 'word '.repeat(120_000));
  await expect.poll(() => page.getByRole('alert').textContent()).toContain('tokens');
  await expect.poll(() => messages(page).count()).toBe(0);
  await expect.poll(() => input(page).inputValue()).toContain('word word');
});

test('nothing of the page comes from elsewhere or stands inline', async () => {
  const urls: string[] = [];
  page.on('request', (request) => urls.push(request.url()));
  await page.reload();
  await page.waitForLoadState('networkidle');
  expect(urls.filter((url) => !url.startsWith(server.url))).toEqual([]);
  expect(
    await page.evaluate(() => document.querySelectorAll('[style], style, script:not([src])').length),
  ).toBe(0);
  expect(chat.complaints).toEqual([]);
});

// https://www.w3.org/TR/WCAG22/#contrast-minimum
test.each([
  [320, 'light'],
  [390, 'dark'],
  [1280, 'light'],
  [1280, 'dark'],
] as const)(
  'at %i pixels, %s: nothing is cut off, all text stands out, everything has a name',
  async (width, colorScheme) => {
    await page.setViewportSize({ width, height: 700 });
    await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
    await expect.poll(() => lowContrast(page)).toEqual([]);
    await turn(page, 'Hello');
    const frame = () =>
      page.evaluate(
        (scheme) =>
          document.querySelector<HTMLMetaElement>(`meta[name="theme-color"][media*="${scheme}"]`)!.content,
        colorScheme,
      );
    await expect.poll(() => frame()).toBe(colorScheme === 'dark' ? '#141715' : '#ffffff');
    const check = async () => {
      await expect
        .poll(() => page.evaluate(() => document.documentElement.scrollWidth <= innerWidth))
        .toBe(true);
      await expect.poll(() => lowContrast(page)).toEqual([]);
      await expect.poll(() => unnamed(page)).toEqual([]);
    };
    await check();
    if (width < 768) {
      await page.getByRole('button', { name: 'Conversations' }).click();
      await listed(page).first().waitFor();
      await check();
      await page.keyboard.press('Escape');
    }
    await cacheButton().click();
    await page.getByRole('dialog', { name: 'Cache' }).getByRole('row').nth(1).waitFor();
    await check();
  },
);
