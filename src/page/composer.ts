import type { Draft } from './conversation.ts';
import { byId } from './dom.ts';

const DRAFT = 'adkvc-draft:';

/** The message field. What stands in it is kept for each conversation, over reloads, until it is sent. */
export class Composer {
  readonly #form = byId<HTMLFormElement>('composer');
  readonly #input = byId<HTMLTextAreaElement>('input');
  readonly #send = byId<HTMLButtonElement>('send');
  readonly #stop = byId<HTMLButtonElement>('stop');
  readonly #editingLine = byId<HTMLParagraphElement>('editing');
  #id = '';
  /** Under which the draft is kept. */
  #key = '';
  #editing: number | undefined;
  /** What stood in the field before an earlier message was put there. */
  #aside = '';

  /** @param up the reader presses the up key in an empty field */
  constructor(on: { send(draft: Draft): void; stop(): void; up(): void }) {
    const submit = (event: Event): void => {
      event.preventDefault();
      const draft = this.draft;
      // While an answer comes there is no sending: what was typed stays.
      if (draft.content === '' || this.#send.hidden) return;
      this.set({ content: this.#aside });
      this.#aside = '';
      on.send(draft);
    };
    this.#form.addEventListener('submit', submit);
    this.#input.addEventListener('input', () => this.#keep());
    this.#input.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) submit(event);
      if (event.key === 'ArrowUp' && this.#input.value === '') {
        event.preventDefault();
        on.up();
      }
      if (event.key === 'Escape' && this.#editing !== undefined) {
        event.stopPropagation();
        this.cancelEdit();
      }
    });
    this.#stop.addEventListener('click', () => on.stop());
    byId('cancel-edit').addEventListener('click', () => this.cancelEdit());
  }

  get draft(): Draft {
    return { content: this.#input.value.trim(), editing: this.#editing };
  }

  /** The field as it was left in this conversation. */
  open(id: string, key: string): void {
    this.#id = id;
    this.#key = key;
    this.#aside = '';
    this.set({ content: sessionStorage.getItem(DRAFT + key) ?? '' });
    this.focus();
  }
  keepUnder(key: string): void {
    sessionStorage.removeItem(DRAFT + this.#key);
    this.#key = key;
    this.#keep();
  }

  set({ content, editing }: Draft): void {
    this.#input.value = content;
    this.#editing = editing;
    this.#editingLine.hidden = editing === undefined;
    this.#keep();
  }

  edit(content: string, index: number): void {
    if (this.#editing === undefined) this.#aside = this.#input.value;
    this.set({ content, editing: index });
    this.focus();
  }
  cancelEdit(): void {
    this.set({ content: this.#aside });
    this.#aside = '';
    this.focus();
  }

  /** What could not be sent, in front of what was typed since. */
  giveBack(id: string, draft: Draft): void {
    if (draft.editing !== undefined && id === this.#id) {
      this.edit(draft.content, draft.editing);
      return;
    }
    const since = id === this.#id ? this.#input.value : (sessionStorage.getItem(DRAFT + id) ?? '');
    const content = [draft.content, since.trim()].filter((text) => text !== '').join('\n');
    if (id === this.#id) this.set({ ...draft, content });
    else sessionStorage.setItem(DRAFT + id, content);
  }

  set running(running: boolean) {
    if (this.#send.hidden === running) return;
    const hadFocus = document.activeElement === this.#stop || document.activeElement === this.#send;
    this.#send.hidden = running;
    this.#stop.hidden = !running;
    // A hidden button cannot keep the keyboard.
    if (hadFocus) (running ? this.#stop : this.#input).focus();
  }

  submit(): void {
    this.#form.requestSubmit();
  }
  focus(): void {
    this.#input.focus();
  }

  #keep(): void {
    const { value } = this.#input;
    if (value === '') sessionStorage.removeItem(DRAFT + this.#key);
    else sessionStorage.setItem(DRAFT + this.#key, value);
  }
}
