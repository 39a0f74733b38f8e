import { hasKey, listSessions, type Session, type SessionPage } from './api.ts';
import { ago, byId, count, h, plural, size } from './dom.ts';
import { isLocal } from './place.ts';

/** A page of the list; the server asks each session how it is. */
const PAGE = 30;
const REMEMBERED = isLocal ? 'adkvc-conversations-here' : 'adkvc-conversations';
/** Enough for a list that is shown while the server cannot be asked. */
const MAX_REMEMBERED = 100;
/** Ids of conversations that no client named, see the API. */
const IMPLICIT = /^auto_/;

type Entry = Pick<Session, 'id' | 'title' | 'turns' | 'last_used_at' | 'stored_bytes'>;

/**
 * The conversations of the key, as the server lists them: the same on every device. What it said last is remembered, to be shown at
 * once and when it cannot be asked; beside a key only until the tab is closed, for the next person at the machine has none.
 */
export class Sidebar {
  readonly #nav = byId<HTMLElement>('sidebar');
  readonly #list = byId<HTMLUListElement>('conversations');
  readonly #more = byId<HTMLButtonElement>('more');
  readonly #note = byId<HTMLParagraphElement>('list-note');
  readonly #remove: (id: string, title: string) => void;
  #entries = new Map<string, Entry>();
  #running: ReadonlySet<string> = new Set();
  #current = '';
  /** Where the next page begins. */
  #after: string | null = null;
  /** Pages that the reader has asked for. */
  #pages = 1;
  #total = 0;
  #asked = 0;

  /** @param remove called when the reader wants a conversation deleted */
  constructor(remove: (id: string, title: string) => void) {
    this.#remove = remove;
    this.#more.addEventListener('click', () => this.#showMore());
    for (const entry of remembered()) this.#entries.set(entry.id, entry);
    this.#draw();
  }

  knows(id: string): boolean {
    return this.#entries.has(id);
  }
  titleOf(id: string): string | undefined {
    return this.#entries.get(id)?.title;
  }

  show(current: string, running: ReadonlySet<string>): void {
    this.#current = current;
    this.#running = running;
    this.#draw();
  }

  close(): void {
    if (this.#nav.matches(':popover-open')) this.#nav.hidePopover();
  }

  /** One that has changed, or is new. */
  update(entry: Entry): void {
    if (!this.#entries.has(entry.id)) this.#total++;
    this.#entries.set(entry.id, entry);
    this.#changed();
  }
  forget(id: string): void {
    if (this.#entries.delete(id)) this.#total--;
    this.#changed();
  }
  clear(): void {
    this.#entries.clear();
    this.#pages = 1;
    this.#changed();
  }

  /** Asks the server for all the pages that are shown. @throws as the API does; what is remembered stays */
  async refresh(): Promise<void> {
    const asked = ++this.#asked;
    try {
      const fresh = new Map<string, Entry>();
      let page = await listSessions(PAGE);
      for (let pages = 1; ; pages++) {
        for (const session of page.data) fresh.set(session.id, session);
        if (pages === this.#pages || !page.has_more) break;
        page = await listSessions(PAGE, page.last_id);
      }
      // A later question has a newer answer.
      if (asked === this.#asked) this.#take(fresh, page);
    } catch (error) {
      this.#note.textContent = 'The list could not be brought up to date.';
      throw error;
    }
  }

  async #showMore(): Promise<void> {
    const asked = ++this.#asked;
    try {
      const page = await listSessions(PAGE, this.#after);
      if (asked !== this.#asked) return;
      this.#pages++;
      this.#take(new Map([...this.#entries, ...page.data.map((one) => [one.id, one] as const)]), page);
    } catch {
      this.#note.textContent = 'No more could be read: try again.';
    }
  }

  #take(entries: Map<string, Entry>, { last_id, has_more, total }: SessionPage): void {
    this.#entries = entries;
    this.#after = last_id;
    this.#total = total;
    this.#more.hidden = !has_more;
    this.#changed();
  }

  #changed(): void {
    this.#note.textContent = this.#more.hidden ? '' : `${count(this.#entries.size)} of ${count(this.#total)}`;
    this.#remember();
    this.#draw();
  }

  #remember(): void {
    const newest = this.#sorted().slice(0, MAX_REMEMBERED);
    const kept = newest.map(({ id, title, turns, last_used_at, stored_bytes }) => ({
      id,
      title,
      turns,
      last_used_at,
      stored_bytes,
    }));
    (hasKey() ? localStorage : sessionStorage).removeItem(REMEMBERED);
    (hasKey() ? sessionStorage : localStorage).setItem(REMEMBERED, JSON.stringify(kept));
  }

  #sorted(): Entry[] {
    return [...this.#entries.values()].sort((a, b) => b.last_used_at - a.last_used_at);
  }

  #draw(): void {
    // Where the keyboard is must survive.
    const focused = document.activeElement?.closest('li[data-id]') as HTMLElement | null;
    const onButton = document.activeElement instanceof HTMLButtonElement;
    const entries = this.#sorted();
    this.#list.replaceChildren(...entries.map((entry) => this.#item(entry)));
    if (entries.length === 0) this.#list.append(h('li', { class: 'faint none' }, 'No conversations yet.'));
    if (!focused) return;
    const again = [...this.#list.children].find(
      (li) => (li as HTMLElement).dataset.id === focused.dataset.id,
    );
    again?.querySelector<HTMLElement>(onButton ? 'button' : 'a')?.focus();
  }

  #item({ id, title, turns, last_used_at, stored_bytes }: Entry): HTMLLIElement {
    const name = title || (IMPLICIT.test(id) ? 'Untitled' : id);
    const facts = this.#running.has(id)
      ? 'answering …'
      : `${ago(last_used_at)} · ${plural(turns, 'turn')} · ${size(stored_bytes)}`;
    return h(
      'li',
      { 'data-id': id },
      h(
        'a',
        { href: `#${id}`, 'aria-current': id === this.#current ? 'page' : undefined, title: name },
        h('span', { class: 'name' }, name),
        h('span', { class: 'faint' }, IMPLICIT.test(id) ? `API · ${facts}` : facts),
      ),
      h(
        'button',
        {
          type: 'button',
          class: 'quiet icon delete',
          'aria-label': `Delete “${name}”`,
          click: () => this.#remove(id, name),
        },
        '✕',
      ),
    );
  }
}

function remembered(): Entry[] {
  try {
    const text = (hasKey() ? sessionStorage : localStorage).getItem(REMEMBERED);
    const list: unknown = JSON.parse(text ?? '[]');
    return Array.isArray(list) ? list : [];
  } catch {
    return [];
  }
}
