import type { Browser, BrowserContext, Page } from 'playwright-core';

/** The chat page as somebody uses it: by roles and names, never by markup. */
export interface ChatPage {
  readonly context: BrowserContext;
  readonly page: Page;
  /** Errors and warnings of the console and the page. */
  readonly complaints: string[];
}

export async function openChat(browser: Browser, url: string, options: object = {}): Promise<ChatPage> {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  const complaints: string[] = [];
  page.on('pageerror', (error) => complaints.push(String(error)));
  page.on('console', (message) => {
    if (message.type() === 'error' || message.type() === 'warning') complaints.push(message.text());
  });
  await page.goto(url);
  return { context, page, complaints };
}

export const input = (page: Page) => page.getByRole('textbox', { name: 'Message' });
/** Answers may hold lists of their own. */
export const messages = (page: Page) => page.getByRole('list', { name: 'Messages' }).locator('> li');
export const listed = (page: Page) =>
  page.getByRole('navigation', { name: 'Conversations' }).getByRole('link');
export const said = (page: Page): Promise<string[]> => page.locator('.message .text').allTextContents();
/** No answer is being written. */
export const idle = (page: Page) => page.getByRole('button', { name: 'Send', exact: true }).waitFor();

export async function ask(page: Page, text: string): Promise<void> {
  await input(page).fill(text);
  await page.keyboard.press('Enter');
}

/** Sends, and waits until the answer is whole: from the key on the page says that it answers. */
export async function turn(page: Page, text: string): Promise<void> {
  await ask(page, text);
  await idle(page);
}

/** Presses Tab until what has the focus has this name. @throws Error when it is not reached */
export async function tabTo(page: Page, name: string | RegExp, key = 'Tab'): Promise<void> {
  for (let i = 0; i < 60; i++) {
    await page.keyboard.press(key);
    const focused = await page.evaluate(() => {
      const element = document.activeElement as HTMLElement | null;
      return element?.getAttribute('aria-label') ?? element?.textContent?.trim() ?? '';
    });
    if (typeof name === 'string' ? focused === name : name.test(focused)) return;
  }
  throw new Error(`the keyboard does not reach ${name}`);
}

/** WCAG 2.2 contrast of text against what is painted behind it, for every element with text of its own. Colours that Chromium computes in sRGB. */
export const lowContrast = (page: Page): Promise<string[]> =>
  page.evaluate(() => {
    type Rgba = [number, number, number, number];
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true })!;
    const parse = (color: string): Rgba => {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
      return [r!, g!, b!, a! / 255];
    };
    const luminance = ([r, g, b]: Rgba): number => {
      const [x, y, z] = [r, g, b].map((part) => {
        const c = part / 255;
        return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * x! + 0.7152 * y! + 0.0722 * z!;
    };
    const behind = (element: Element | null): Rgba => {
      if (!element) return [255, 255, 255, 1];
      const color = parse(getComputedStyle(element).backgroundColor);
      return color[3] > 0.99 ? color : behind(element.parentElement);
    };
    const poor: string[] = [];
    for (const element of document.querySelectorAll<HTMLElement>('body *')) {
      const own = [...element.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.textContent?.trim());
      if (!own || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
      const style = getComputedStyle(element);
      if (style.clipPath !== 'none' || element.closest('.hidden')) continue;
      const [a, b] = [luminance(parse(style.color)), luminance(behind(element))];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (ratio < 4.5)
        poor.push(`${ratio.toFixed(2)} ${element.tagName} "${element.textContent?.slice(0, 30)}"`);
    }
    return poor;
  });

/** Controls without an accessible name, as the browser computes names. */
export const unnamed = (page: Page): Promise<string[]> =>
  page.evaluate(() =>
    [
      ...document.querySelectorAll<HTMLElement>(
        'a, button, input, select, textarea, canvas, dialog[open], nav',
      ),
    ]
      .filter((element) => element.checkVisibility())
      .filter((element) => {
        const labels = 'labels' in element ? [...((element.labels as NodeList | null) ?? [])] : [];
        const by = element.getAttribute('aria-labelledby');
        const texts = [
          element.getAttribute('aria-label'),
          by && document.getElementById(by)?.textContent,
          ...labels.map((label) => label.textContent),
          element instanceof HTMLAnchorElement || element instanceof HTMLButtonElement
            ? element.textContent
            : '',
        ];
        return !texts.some((text) => text?.trim());
      })
      .map((element) => element.outerHTML.slice(0, 80)),
  );
