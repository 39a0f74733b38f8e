import {
  ApiError,
  deleteSession,
  exportSession,
  forkSession,
  getKey,
  hasKey,
  importSession,
  loadModel,
  loadSession,
  type Model,
  setKey,
} from './api.ts';
import { CacheView } from './cache-view.ts';
import { Composer } from './composer.ts';
import { Conversation, type Notice, type Shell } from './conversation.ts';
import { askForKey, confirmDeletion } from './dialogs.ts';
import { byId, count, h } from './dom.ts';
import { describe } from './errors.ts';
import type { MessageActions, MessageView } from './message-view.ts';
import { localRemedy, openPlace, placeName } from './place.ts';
import { Sidebar } from './sidebar.ts';

/** Wires the page's parts together. The conversation's name stands in the URL: a reload, a bookmark and the back button lead to it. */

/** Stands for the conversation that nobody wrote in yet, which has no name in the URL. */
const UNNAMED = 'new';
const THEME = 'adkvc-theme';
/** --ground of page.css. */
const FRAME = { light: '#ffffff', dark: '#141715' };
/** By then the browser has begun to write a download. */
const DOWNLOAD_MS = 60_000;
const SUGGESTIONS = [
  'Explain how a cache works, with an example from a kitchen.',
  'Write a short poem about the sea in winter.',
  'Give me three tips for a calm morning.',
];
/** The list is asked for again when the reader comes back to the page after this long, ms. */
const STALE_LIST_MS = 10_000;
/** Nearer to the end than this the page follows the answer, px. */
const FOLLOW_PX = 80;

const parts = {
  title: byId('title'),
  scroller: byId('scroller'),
  messages: byId('messages'),
  empty: byId('empty'),
  loading: byId('loading'),
  download: byId<HTMLButtonElement>('download'),
  importFile: byId<HTMLInputElement>('import-file'),
  notice: byId('notice'),
  announcer: byId('announcer'),
  model: byId('model'),
  forgetKey: byId<HTMLButtonElement>('forget-key'),
  theme: byId<HTMLSelectElement>('theme'),
};

const idInUrl = (): string | undefined => /^#([A-Za-z0-9_.-]{1,128})$/.exec(location.hash)?.[1];
const newId = (): string => `chat-${crypto.randomUUID()}`;

/** Those that answer go on while another is looked at. */
const running = new Map<string, Conversation>();
let served: Promise<Model> | undefined;
let current: Conversation;
let listed = 0;

const actions: MessageActions = {
  edit: (view) => composer.edit(view.content, current.views.indexOf(view)),
  fork: (view) => void fork(view),
  regenerate: () => void current.regenerate(),
  resume: () => void current.resume(),
  told: (text) => announce(text),
};

let asking: Promise<string | null> | undefined;
/** The reader gave no key: nothing asks for one again until they do something. */
let declined = false;
/** Whoever waits for a key waits for the same dialog. */
async function withKey<T>(work: () => Promise<T>): Promise<T> {
  for (;;) {
    const before = getKey();
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof ApiError && error.code === 'invalid_api_key') || declined) throw error;
      if (getKey() !== before) continue;
      asking ??= askForKey(
        before === null ? 'This server asks for a key.' : 'The server does not know that key.',
      ).finally(() => {
        asking = undefined;
      });
      const key = await asking;
      if (key === null) {
        declined = true;
        throw error;
      }
      setKey(key);
      parts.forgetKey.hidden = false;
    }
  }
}

const shell: Shell = {
  actions,
  withKey,
  model: async () => (await model()).id,
  changed(conversation) {
    if (conversation.running) {
      if (!running.has(conversation.id)) nameInUrl(conversation);
      running.set(conversation.id, conversation);
    } else if (running.delete(conversation.id)) void refreshEntry(conversation);
    if (conversation === current) draw();
    sidebar.show(current.id, new Set(running.keys()));
  },
  announce: (conversation, text) => conversation === current && announce(text),
  notice: (conversation) => conversation === current && drawNotice(),
  giveBack: (conversation, draft) => composer.giveBack(conversation.id, draft),
  resubmit: () => composer.submit(),
};

const composer = new Composer({
  send: (draft) => void current.send(draft),
  stop: () => current.stop(),
  up() {
    const last = current.views.findLast(({ role }) => role === 'user');
    if (last && !current.running) actions.edit(last);
  },
});
const cacheView = new CacheView();
const sidebar = new Sidebar((id, title) => void remove(id, title));

function model(): Promise<Model> {
  served ??= loadModel().catch((error: unknown) => {
    served = undefined;
    throw error;
  });
  return served;
}

function announce(text: string): void {
  parts.announcer.textContent = '';
  // An equal text is read again only if it was gone meanwhile.
  requestAnimationFrame(() => (parts.announcer.textContent = text));
}

/** A conversation gets its name in the URL with its first message. */
function nameInUrl(conversation: Conversation): void {
  if (conversation === current && idInUrl() !== conversation.id) {
    window.history.pushState(null, '', `#${conversation.id}`);
    composer.keepUnder(conversation.id);
  }
}

function draw(): void {
  const { running: answers, empty, title } = current;
  const name = sidebar.titleOf(current.id) || title || 'New conversation';
  parts.title.textContent = name;
  document.title = empty ? 'ADKVC' : `${name} – ADKVC`;
  parts.empty.hidden = !empty || answers || idInUrl() !== undefined;
  parts.download.hidden = empty || answers;
  parts.messages.setAttribute('aria-busy', String(answers));
  composer.running = answers;
  cacheView.show(current.id, current.cache);
}

let counting: ReturnType<typeof setInterval> | undefined;
function drawNotice(): void {
  clearInterval(counting);
  const { notice } = current;
  parts.notice.hidden = !notice;
  parts.notice.className = notice?.kind ?? '';
  parts.notice.replaceChildren(...(notice ? noticeParts(notice) : []));
}

function noticeParts({ text, action, countdown }: Notice): Node[] {
  const shown: Node[] = [h('p', {}, text)];
  if (countdown !== undefined) {
    shown.push(h('p', { class: 'hidden' }, `The page tries again in ${countdown} seconds.`));
    // Seconds are for the eye: read out, each would be an alert.
    const seconds = h('p', { 'aria-hidden': 'true', class: 'faint' });
    const end = Date.now() + countdown * 1000;
    const tick = (): void => {
      seconds.textContent = `Trying again in ${Math.max(0, Math.ceil((end - Date.now()) / 1000))} s`;
    };
    tick();
    counting = setInterval(tick, 250);
    shown.push(seconds);
  }
  if (action) shown.push(h('button', { type: 'button', click: action.run }, action.name));
  else if (countdown === undefined)
    shown.push(
      h('button', { type: 'button', class: 'quiet icon', 'aria-label': 'Dismiss', click: dismiss }, '✕'),
    );
  return shown;
}

function dismiss(): void {
  current.notice = undefined;
  drawNotice();
  composer.focus();
}

/** Keeps the end in sight, unless the reader has scrolled up. */
function follow(always = false): void {
  const { scroller } = parts;
  const distance = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  if (always || distance < FOLLOW_PX + lastHeight()) scroller.scrollTop = scroller.scrollHeight;
}
let heightBefore = 0;
/** What was added since the last look does not count as scrolled up. */
function lastHeight(): number {
  const grown = parts.scroller.scrollHeight - heightBefore;
  heightBefore = parts.scroller.scrollHeight;
  return Math.max(0, grown);
}

/** Shows a conversation, and loads what the server holds of it. @param id undefined: a new one */
async function open(id: string | undefined): Promise<void> {
  const conversation = show(id);
  if (id && !conversation.running) await load(conversation);
}

function show(id: string | undefined): Conversation {
  const conversation = (id && running.get(id)) || new Conversation(id ?? newId(), shell, id === undefined);
  current = conversation;
  parts.messages.replaceChildren(conversation.list);
  parts.loading.hidden = true;
  composer.open(conversation.id, id ?? UNNAMED);
  sidebar.close();
  sidebar.show(conversation.id, new Set(running.keys()));
  draw();
  drawNotice();
  requestAnimationFrame(() => follow(true));
  return conversation;
}

async function load(conversation: Conversation): Promise<void> {
  const { id } = conversation;
  const known = sidebar.knows(id);
  parts.loading.hidden = false;
  try {
    const found = await conversation.load();
    if (!found && known) {
      sidebar.forget(id);
      conversation.notice = {
        kind: 'told',
        text: `This conversation is no longer kept by ${placeName}: it was deleted, or expired unused. What you write here begins it anew.`,
      };
    }
    loaded(conversation);
    if (!(await conversation.catchUp(() => conversation === current && !conversation.running))) return;
  } catch (error) {
    conversation.notice = {
      kind: 'failed',
      text: describe(error),
      action: localRemedy(error) ?? { name: 'Try again', run: () => void start(id) },
    };
  }
  loaded(conversation);
}

function loaded(conversation: Conversation): void {
  if (conversation !== current) return;
  parts.loading.hidden = true;
  draw();
  drawNotice();
  requestAnimationFrame(() => follow(true));
}

async function fork(view: MessageView): Promise<void> {
  const messages = current.views.indexOf(view) + 1;
  const from = current;
  const id = newId();
  try {
    await withKey(() => forkSession(from.id, id, messages));
    location.hash = id;
    announce('Forked: this copy goes on apart.');
    void refreshList();
  } catch (error) {
    from.notice = { kind: 'failed', text: describe(error) };
    if (from === current) drawNotice();
  }
}

async function remove(id: string, title: string): Promise<void> {
  if (!(await confirmDeletion(title))) return;
  try {
    await withKey(() => deleteSession(id));
  } catch (error) {
    // Gone is gone, whoever deleted it.
    if (!(error instanceof ApiError && error.status === 404)) return tellFailure(error);
  }
  sidebar.forget(id);
  announce('Deleted.');
  if (id === current.id) location.hash = '';
  else composer.focus();
}

async function refreshList(): Promise<void> {
  listed = Date.now();
  // The list itself says when it could not be had.
  await withKey(() => sidebar.refresh()).catch(() => {});
  draw();
}

/** After a turn one conversation has changed, and the server need not ask all the others how they are. */
async function refreshEntry({ id, empty }: Conversation): Promise<void> {
  // What was stopped or refused before anything was said need not be there.
  if (empty) return;
  await loadSession(id).then(
    (session) => sidebar.update(session),
    () => {},
  );
  if (id === current.id) draw();
}

async function download(): Promise<void> {
  const { id, title } = current;
  try {
    const file = await withKey(() => exportSession(id));
    const url = URL.createObjectURL(file);
    const name = title.replaceAll(/[^\p{L}\p{N}]+/gu, '-').slice(0, 40) || id;
    h('a', { href: url, download: `${name}.adkvc` }).click();
    setTimeout(() => URL.revokeObjectURL(url), DOWNLOAD_MS);
    announce('Downloaded.');
  } catch (error) {
    tellFailure(error);
  }
}

/** A file that was downloaded goes on here, as a conversation of its own. */
async function importFile(file: File): Promise<void> {
  const id = newId();
  try {
    sidebar.update(await withKey(() => importSession(file, id)));
    location.hash = id;
    announce('Opened.');
  } catch (error) {
    tellFailure(error);
  }
}

function tellFailure(error: unknown): void {
  current.notice = { kind: 'failed', text: describe(error) };
  sidebar.close();
  drawNotice();
}

/** What is typed at once is kept; the model's name comes first, so that a key is asked for once; then the list and the conversation. */
async function start(id: string | undefined): Promise<void> {
  const conversation = show(id);
  try {
    const { id: name, context_length } = await withKey(model);
    parts.model.textContent = `${name}, ${count(context_length)} tokens of context`;
  } catch (error) {
    // With a conversation, that tells why it cannot be shown.
    if (id === undefined) {
      const action = localRemedy(error) ?? { name: 'Try again', run: () => void start(idInUrl()) };
      conversation.notice = { kind: 'failed', text: describe(error), action };
      drawNotice();
      return;
    }
  }
  await Promise.all([id !== undefined && !conversation.running && load(conversation), refreshList()]);
}

function applyTheme(theme: string): void {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  parts.theme.value = theme;
  // The browser's frame follows the page.
  for (const meta of document.querySelectorAll<HTMLMetaElement>('meta[name="theme-color"]')) {
    const own = meta.media.includes('dark') ? 'dark' : 'light';
    meta.content = FRAME[(theme || own) as keyof typeof FRAME];
  }
}

function suggest(text: string): void {
  composer.set({ content: text });
  composer.submit();
}
byId('suggestions').append(
  ...SUGGESTIONS.map((text) => h('button', { type: 'button', click: () => suggest(text) }, text)),
);
byId('new').addEventListener('click', () => fresh());
function fresh(): void {
  if (idInUrl() === undefined) {
    sidebar.close();
    if (!current.empty) void open(undefined);
    composer.focus();
  } else location.hash = '';
}
parts.download.addEventListener('click', () => void download());
byId('import').addEventListener('click', () => parts.importFile.click());
parts.importFile.addEventListener('change', () => {
  const [file] = parts.importFile.files ?? [];
  parts.importFile.value = '';
  if (file) void importFile(file);
});
parts.messages.addEventListener('drawn', () => follow());
parts.scroller.addEventListener('scroll', () => (heightBefore = parts.scroller.scrollHeight), {
  passive: true,
});
parts.theme.addEventListener('change', () => {
  localStorage.setItem(THEME, parts.theme.value);
  applyTheme(parts.theme.value);
  cacheView.redraw();
});
parts.forgetKey.addEventListener('click', () => {
  setKey(null);
  sidebar.clear();
  location.assign('/');
});
document.addEventListener('keydown', (event) => {
  // Escape and the rest belong to what lies over the page.
  if (document.querySelector('dialog:modal, :popover-open') && !cacheView.open) return;
  if (event.key === 'Escape') current.stop();
  if (!event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.code === 'KeyN') fresh();
  else if (event.code === 'KeyC') cacheView.toggle();
  else return;
  event.preventDefault();
});
window.addEventListener('hashchange', () => {
  const id = idInUrl();
  if (id !== current.id) void open(id);
});
document.addEventListener('visibilitychange', () => {
  if (!document.hidden && Date.now() - listed > STALE_LIST_MS) void refreshList();
});

for (const act of ['pointerdown', 'keydown'])
  document.addEventListener(
    act,
    () => {
      declined = false;
    },
    true,
  );

openPlace();
applyTheme(localStorage.getItem(THEME) ?? '');
parts.forgetKey.hidden = !hasKey();
void start(idInUrl());
