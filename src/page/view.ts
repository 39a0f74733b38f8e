import type { Answer, Cache, Message } from './api.ts';

/** The page's elements, and what is shown in them. */

const element = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;

export const parts = {
  model: element<HTMLParagraphElement>('model'),
  messages: element<HTMLOListElement>('messages'),
  status: element<HTMLParagraphElement>('status'),
  cache: element<HTMLParagraphElement>('cache'),
  composer: element<HTMLFormElement>('composer'),
  input: element<HTMLTextAreaElement>('input'),
  send: element<HTMLButtonElement>('send'),
  stop: element<HTMLButtonElement>('stop'),
  fresh: element<HTMLButtonElement>('new'),
  keyDialog: element<HTMLDialogElement>('key-dialog'),
  keyForm: element<HTMLFormElement>('key-form'),
  key: element<HTMLInputElement>('key'),
};

const SPEAKER = { user: 'You', assistant: 'Model', system: 'System' };
const number = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });
/** 1 MB = 1e6 bytes. */
const megabytes = (bytes: number): string => `${number.format(bytes / 1e6)} MB`;

export function addMessage({ role, content }: Message): HTMLLIElement {
  const item = document.createElement('li');
  item.className = `message ${role}`;
  item.setAttribute('aria-label', SPEAKER[role]);
  item.textContent = content;
  parts.messages.append(item);
  follow(true);
  return item;
}

/** Keeps the end in sight, unless the reader has scrolled up. */
export function follow(always = false): void {
  const scroller = parts.messages.parentElement!;
  const distance = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  if (always || distance < 80) scroller.scrollTop = scroller.scrollHeight;
}

export function showStatus(text: string, failed = false): void {
  parts.status.textContent = text;
  parts.status.classList.toggle('failed', failed);
}

export function showCache(cache: Cache | null, answer?: Answer): void {
  if (!cache) {
    parts.cache.textContent = '';
    return;
  }
  const facts = [
    `${number.format(cache.tokens)} tokens cached in ${megabytes(cache.bytes)}`,
    `${number.format(cache.ratio)}× smaller than fp16 (${megabytes(cache.fp16_bytes)})`,
  ];
  if (answer) {
    const { usage, turn } = answer;
    const seconds = turn.timing.decode_ms / 1000;
    if (seconds > 0) facts.push(`${number.format(usage.completion_tokens / seconds)} tokens/s`);
    facts.push(
      `${number.format(usage.prompt_tokens_details.cached_tokens)} of ${number.format(usage.prompt_tokens)} prompt tokens reused`,
    );
    if (turn.recovered) facts.push(`restored: ${turn.recovered.reason}`);
  }
  parts.cache.textContent = facts.join(' · ');
}

export function setRunning(running: boolean): void {
  parts.send.hidden = running;
  parts.stop.hidden = !running;
  parts.fresh.disabled = running;
  // A screen reader reads the answer once it is whole.
  parts.messages.setAttribute('aria-busy', String(running));
}

/** Resolves with the key that the reader gives. */
export function askForKey(): Promise<string> {
  parts.key.value = '';
  parts.keyDialog.showModal();
  return new Promise((resolve) => {
    parts.keyDialog.addEventListener('close', () => resolve(parts.key.value), { once: true });
  });
}
