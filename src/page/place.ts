import type { BackendChoice, BrowserReport, BrowserStatus } from '../browser/protocol.ts';
import { ApiError, answerWith } from './api.ts';
import { byId, count, h, size } from './dom.ts';
import { LocalApp, LocalAppError } from './local-app.ts';

/** Where the application runs: on the server that the page came from, or in this browser. `?backend=` of the URL says so. */

const CHOICES: readonly (readonly [BackendChoice | '', string])[] = [
  ['', 'Server'],
  ['auto', 'Browser'],
  ['wasm', 'Browser: WebAssembly'],
  ['webgpu', 'Browser: GPU'],
];

const chosen = new URLSearchParams(location.search).get('backend');
/** Whether conversations are this browser's own. */
export const isLocal = chosen !== null;
/** As a place of conversations in sentences. */
export const placeName = isLocal ? 'this browser' : 'the server';

const urlOf = (choice: string): string => (choice === '' ? './' : `./?backend=${choice}`);

/** What a reader whom the application in the browser fails can do, or whom a host of files alone cannot answer. */
export function localRemedy(error: unknown): { name: string; run: () => void } | undefined {
  if (error instanceof ApiError && error.status === 404 && error.code === 'unknown')
    return { name: 'Run it in this browser', run: () => location.assign(urlOf('auto')) };
  if (!(error instanceof LocalAppError)) return undefined;
  return error.code === 'backend_unavailable' && chosen === 'webgpu'
    ? { name: 'Use WebAssembly', run: () => location.assign(urlOf('wasm')) }
    : { name: 'Reload', run: () => location.reload() };
}

/** Starts the application in the browser where the URL asks for it, and shows what it does. */
export function openPlace(): void {
  const select = byId<HTMLSelectElement>('where');
  select.append(...CHOICES.map(([value, name]) => h('option', { value }, name)));
  select.value = chosen ?? '';
  select.addEventListener('change', () => location.assign(urlOf(select.value)));
  if (chosen === null) return;
  byId('about').textContent =
    'A small model answers in this browser: it is loaded once, and nothing that you write leaves it. Its memory of the conversation is compressed, and kept here: close the page, come back, and go on.';
  if (!CHOICES.some(([value]) => value === chosen && value !== '')) {
    const error = new LocalAppError('invalid_input', 'backend in the URL must be auto, wasm or webgpu');
    answerWith(() => Promise.reject(error));
    return;
  }
  answerWith(new LocalApp(chosen as BackendChoice, show).fetch);
}

function show(status: BrowserStatus): void {
  const line = byId('place');
  const loading = byId('weights');
  loading.hidden = status.state !== 'loading';
  if (status.state === 'chosen') line.textContent = inWords(status.report);
  else if (status.state === 'loading') {
    const { done, total, cached } = status;
    const bar = loading.querySelector('progress')!;
    bar.max = total;
    bar.value = done;
    loading.querySelector('span')!.textContent =
      `${cached ? 'Loading the model' : 'Fetching the model'}: ${size(done)} of ${size(total)}`;
  } else if (status.state === 'ready') {
    const { readyMs, fetchedBytes } = status.timing;
    line.textContent = `${inWords(status.report)} Ready after ${count(readyMs / 1000)} s, ${fetchedBytes > 0 ? `${size(fetchedBytes)} fetched` : 'from what the browser had kept'}.`;
    // Otherwise the browser may clear what it keeps when room is short. It may ask the reader, or not answer at all.
    void navigator.storage?.persist?.().catch(() => false);
  } else line.textContent = status.message;
}

const inWords = ({ backend, what, why }: BrowserReport): string =>
  `Runs in this browser on ${backend === 'webgpu' ? 'its GPU' : 'WebAssembly'} (${what}): ${why}.`;
