import type { Message } from './api.ts';
import { h } from './dom.ts';
import { renderMarkdown } from './markdown.ts';

const SPEAKER = { user: 'You', assistant: 'Model', system: 'System' };

export interface MessageActions {
  edit(view: MessageView): void;
  fork(view: MessageView): void;
  regenerate(view: MessageView): void;
  resume(view: MessageView): void;
  /** Tells the reader that it is done. */
  told(text: string): void;
}

/** Browsers have no clipboard for pages over plain HTTP from elsewhere. */
const copy = async (text: string): Promise<void> => navigator.clipboard.writeText(text);

/** 'cut': there could be more of it. */
type State = 'done' | 'running' | 'cut';

/** One message: what was said, what can be done with it, and a line of facts. */
export class MessageView {
  readonly element: HTMLLIElement;
  readonly role: Message['role'];
  readonly #text: HTMLDivElement;
  readonly #facts: HTMLParagraphElement;
  readonly #resume: HTMLButtonElement | undefined;
  #state: State = 'done';
  #content = '';
  #shown = '';
  #frame = 0;
  /** The seed that the answer was drawn with, so that going on draws the same. */
  seed: number | undefined;
  tokens = 0;

  constructor({ role, content }: Message, actions: MessageActions) {
    this.role = role;
    this.#text = h('div', { class: 'text', dir: 'auto' });
    this.#facts = h('p', { class: 'facts' });
    const buttons = h('div', { class: 'actions' });
    const button = (name: string, label: string, click: () => void): HTMLButtonElement => {
      const made = h('button', { type: 'button', class: 'quiet', 'aria-label': label, click }, name);
      buttons.append(made);
      return made;
    };
    const whose = role === 'user' ? 'your message' : 'the answer';
    button('Copy', `Copy ${whose}`, () => {
      copy(this.#content).then(
        () => actions.told('Copied.'),
        () => actions.told('The browser does not allow copying here.'),
      );
    });
    if (role === 'user') {
      button('Edit', 'Edit this message', () => actions.edit(this));
      // The last message has no answer where the turn broke off before it began.
      button('Get an answer', 'Get an answer', () => actions.resume(this)).classList.add('last-only');
    }
    if (role === 'assistant') {
      button('Fork', 'Fork the conversation after this answer', () => actions.fork(this));
      button('Answer again', 'Answer again', () => actions.regenerate(this)).classList.add('last-only');
      this.#resume = button('Continue', 'Continue this answer', () => actions.resume(this));
      this.#resume.classList.add('last-only');
      this.#resume.hidden = true;
    }
    this.element = h(
      'li',
      { class: `message ${role}` },
      h('h3', { class: 'hidden' }, SPEAKER[role]),
      this.#text,
      h('div', { class: 'under' }, this.#facts, buttons),
    );
    this.append(content);
  }

  get content(): string {
    return this.#content;
  }
  /** As it reads, without its markup. */
  get spoken(): string {
    this.#draw();
    return this.#text.textContent ?? '';
  }
  get message(): Message {
    return { role: this.role, content: this.#content };
  }

  /** Shown with the next frame: pieces come faster than a screen is drawn. */
  append(piece: string): void {
    this.#content += piece;
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  replace(content: string): void {
    this.#content = content;
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  #draw(): void {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    if (this.#shown === this.#content) return;
    this.#shown = this.#content;
    if (this.role === 'assistant') this.#text.replaceChildren(...renderMarkdown(this.#content));
    else this.#text.textContent = this.#content;
    this.element.dispatchEvent(new CustomEvent('drawn', { bubbles: true }));
  }

  facts(text: string): void {
    this.#facts.textContent = text;
  }
  get state(): State {
    return this.#state;
  }
  set state(state: State) {
    this.#state = state;
    this.element.classList.toggle('running', state === 'running');
    this.element.classList.toggle('cut', state === 'cut');
    if (this.#resume) this.#resume.hidden = state !== 'cut';
  }
}
