import { type Answer, ApiError, history, type Model, model, send, setKey } from './api.ts';
import { addMessage, askForKey, follow, parts, setRunning, showCache, showStatus } from './view.ts';

/** The conversation's name stands in the URL, so that a reload, a bookmark and another tab lead back to it. */
const STORED = 'adkvc-session';
let sessionId = '';
let served: Model | undefined;
let running: AbortController | undefined;
/** Nothing is stored yet: the first message makes the session. */
let first = true;

const newId = (): string => `page-${crypto.randomUUID()}`;
const idInUrl = (): string | null => /^#([A-Za-z0-9_.-]{1,128})$/.exec(location.hash)?.[1] ?? null;

function setSession(id: string): void {
  sessionId = id;
  localStorage.setItem(STORED, id);
  if (idInUrl() !== id) window.history.replaceState(null, '', `#${id}`);
}

/** Runs `work`; where the server wants a key it is asked for, and `work` runs again. */
async function withKey<T>(work: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof ApiError && error.code === 'invalid_api_key')) throw error;
      setKey(await askForKey());
    }
  }
}

const describe = (error: unknown): string => {
  if (error instanceof ApiError) return error.message;
  // fetch's own failure.
  if (error instanceof TypeError) return 'The server cannot be reached. Is it running?';
  return error instanceof Error ? error.message : String(error);
};

/** @param isNew the server cannot know it yet, and is not asked */
async function open(id: string, isNew = false): Promise<void> {
  setSession(id);
  parts.messages.replaceChildren();
  showCache(null);
  showStatus('');
  try {
    served ??= await withKey(model);
    parts.model.textContent = `${served.id}, context ${served.context_length}`;
    const stored = isNew ? undefined : await withKey(() => history(id));
    first = stored === undefined || stored.messages.length === 0;
    for (const message of stored?.messages ?? []) addMessage(message);
    showCache(stored?.cache ?? null);
  } catch (error) {
    showStatus(describe(error), true);
  }
  parts.input.focus();
}

async function submit(): Promise<void> {
  const content = parts.input.value.trim();
  if (content === '' || running) return;
  parts.input.value = '';
  const question = addMessage({ role: 'user', content });
  const answer = addMessage({ role: 'assistant', content: '' });
  answer.classList.add('running');
  const abort = new AbortController();
  running = abort;
  setRunning(true);
  showStatus('Waiting …');
  let began = false;
  try {
    served ??= await withKey(model);
    const modelId = served.id;
    const result: Answer = await withKey(() =>
      send(
        sessionId,
        modelId,
        { role: 'user', content },
        first,
        {
          progress: (position, total) => showStatus(`Reading ${position} of ${total} tokens …`),
          text: (piece) => {
            if (!began) showStatus('Writing …');
            began = true;
            answer.textContent += piece;
            follow();
          },
        },
        abort.signal,
      ),
    );
    showCache(result.turn.cache, result);
    showStatus(result.reason === 'length' ? 'Stopped at the token limit.' : '');
    first = false;
  } catch (error) {
    if (abort.signal.aborted) {
      showStatus('Stopped.');
      await settle();
    } else {
      showStatus(describe(error), true);
      answer.classList.add('failed');
      if (!began) {
        // Nothing was said: the message goes back to where it can be sent again.
        question.remove();
        answer.remove();
        parts.input.value = content;
      }
    }
  } finally {
    answer.classList.remove('running');
    running = undefined;
    setRunning(false);
    parts.input.focus();
  }
}

/** After a stop the server commits what was said until then; the page shows what is kept. */
async function settle(): Promise<void> {
  const SETTLE_MS = 300;
  await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
  const stored = await history(sessionId).catch(() => undefined);
  first = !stored || stored.messages.length === 0;
  showCache(stored?.cache ?? null);
}

parts.composer.addEventListener('submit', (event) => {
  event.preventDefault();
  void submit();
});
parts.input.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  void submit();
});
parts.stop.addEventListener('click', () => running?.abort());
parts.fresh.addEventListener('click', () => void open(newId(), true));
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') running?.abort();
  if (event.altKey && event.code === 'KeyN' && !running) {
    event.preventDefault();
    void open(newId(), true);
  }
});
window.addEventListener('hashchange', () => {
  const id = idInUrl();
  if (id && id !== sessionId && !running) void open(id);
});

const known = idInUrl() ?? localStorage.getItem(STORED);
void open(known ?? newId(), known === null);
