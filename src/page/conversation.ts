import {
  type Answer,
  ApiError,
  type Cache,
  loadMessages,
  loadSession,
  type Message,
  runTurn,
  type TurnRequest,
} from './api.ts';
import { count, h, plural } from './dom.ts';
import { describe, retryAfter } from './errors.ts';
import { type MessageActions, MessageView } from './message-view.ts';
import { localRemedy } from './place.ts';

/** What a conversation asks of the page around it. */
export interface Shell {
  readonly actions: MessageActions;
  /** Runs `work`; where the server wants a key the reader is asked for one, and it runs again. */
  withKey<T>(work: () => Promise<T>): Promise<T>;
  model(): Promise<string>;
  /** Something that the page shows of the conversation has changed. */
  changed(conversation: Conversation): void;
  /** For those who do not see the page. */
  announce(conversation: Conversation, text: string): void;
  notice(conversation: Conversation, notice: Notice | undefined): void;
  /** What could not be sent goes back to where it can be sent again. */
  giveBack(conversation: Conversation, draft: Draft): void;
  /** Sends what stands in the message field. */
  resubmit(conversation: Conversation): void;
}

export interface Notice {
  readonly text: string;
  readonly kind: 'failed' | 'told';
  /** The remedy, as a button. */
  readonly action?: { readonly name: string; readonly run: () => void };
  /** Seconds until the page tries again by itself. */
  readonly countdown?: number;
}

/** What stands in the message field, and the message that it will replace. */
export interface Draft {
  readonly content: string;
  readonly editing?: number | undefined;
}

/** Tries of a turn that the server is too busy for. */
const MAX_TRIES = 20;
/** Waits for what a stopped turn commits, ms. */
const SETTLE_MS = [50, 150, 300, 500, 1_000, 2_000];
/** Between looks at a conversation that is answered elsewhere, ms; the last one again and again. */
const CATCH_UP_MS = [100, 200, 400, 800, 2_000];
/** Looks until the reader is told what they wait for: what was stopped here is stored sooner. */
const SILENT_LOOKS = 4;
/** Tokens that going on asks for beyond what is there. */
const MORE_TOKENS = 512;

/** One conversation: its messages on the page, and the turn that may run. It goes on while another is looked at. */
export class Conversation {
  readonly id: string;
  readonly list = h('ol', { class: 'messages', 'aria-label': 'Messages' });
  readonly views: MessageView[] = [];
  cache: Cache | null = null;
  notice: Notice | undefined;
  /** Whether the page and the server may differ: the server is asked before anything is sent. */
  #stale: boolean;
  #loading: Promise<boolean> | undefined;
  /** A turn that is not this page's runs on the server. */
  #busy = false;
  #running: AbortController | undefined;
  readonly #shell: Shell;

  /** @param isNew false: the server may hold it, and until it is loaded nothing is known of it */
  constructor(id: string, shell: Shell, isNew: boolean) {
    this.id = id;
    this.#shell = shell;
    this.#stale = !isNew;
  }

  get running(): boolean {
    return this.#running !== undefined;
  }
  get empty(): boolean {
    return this.views.length === 0;
  }
  get title(): string {
    return (
      this.views
        .find(({ role }) => role === 'user')
        ?.content.replaceAll(/\s+/g, ' ')
        .slice(0, 80) ?? ''
    );
  }

  stop(): void {
    this.#running?.abort();
  }

  /** What the server holds. Whoever asks meanwhile waits for the same. @returns whether it holds the conversation */
  load(): Promise<boolean> {
    this.#loading ??= this.#load().finally(() => {
      this.#loading = undefined;
    });
    return this.#loading;
  }

  async #load(): Promise<boolean> {
    try {
      const [messages, { cache, busy }] = await this.#shell.withKey(() =>
        Promise.all([loadMessages(this.id), loadSession(this.id)]),
      );
      this.#show(messages);
      this.cache = cache;
      this.#busy = busy;
      this.#stale = busy;
      this.#shell.changed(this);
      return true;
    } catch (error) {
      if (!isGone(error)) {
        this.#stale = true;
        throw error;
      }
      this.#show([]);
      this.cache = null;
      this.#busy = false;
      this.#stale = false;
      this.#shell.changed(this);
      return false;
    }
  }

  /**
   * After `load`: an answer that another page waits for, or that was left in the middle, is shown once it is stored.
   * @param wanted asked before each look
   * @returns whether anything was shown
   */
  async catchUp(wanted: () => boolean): Promise<boolean> {
    let shown = false;
    for (let looks = 0; this.#busy && wanted(); looks++) {
      if (looks === SILENT_LOOKS)
        this.#tell({
          kind: 'told',
          text: 'An answer is being written: it will stand here when it is whole.',
        });
      await new Promise((resolve) => setTimeout(resolve, CATCH_UP_MS[looks] ?? CATCH_UP_MS.at(-1)));
      if (!wanted()) break;
      const busy = await this.#shell
        .withKey(() => loadSession(this.id))
        .then(
          (session) => session.busy,
          // What was to be its first answer failed.
          (error: unknown) => !isGone(error) && Promise.reject(error),
        );
      if (busy || !wanted()) continue;
      await this.load();
      shown = true;
      if (looks >= SILENT_LOOKS) this.#tell(undefined);
    }
    return shown;
  }

  /** Sends what was written: after all the messages, or in place of one, whose answer and all that followed go. */
  async send(draft: Draft): Promise<void> {
    if (this.running) return;
    const { content, editing } = draft;
    await this.#exclusively(draft, async (signal) => {
      if (this.#stale) {
        const wentOn = await this.#bringUpToDate(signal);
        if (editing === undefined && this.#holds(content)) return;
        if (editing !== undefined && wentOn) return this.#tellWentOn(draft);
      }
      const question: Message = { role: 'user', content };
      const kept = this.views.slice(0, editing).map(({ message }) => message);
      const appended = editing === undefined && kept.length > 0;
      this.#cut(editing);
      this.#add(question);
      await this.#turn(
        appended
          ? { messages: [question], mode: 'append' }
          : { messages: [...kept, question], mode: 'whole' },
        signal,
      );
    });
  }

  /**
   * What the page does not know yet is shown before anything is cut: an answer that is being written elsewhere is waited for.
   * @returns whether other messages stand there than those that were shown
   */
  async #bringUpToDate(signal: AbortSignal): Promise<boolean> {
    // An answer may have got longer since it broke off.
    const asked = () => JSON.stringify(this.views.map(({ role, content }) => role === 'user' && content));
    const before = asked();
    await this.load();
    await this.catchUp(() => !signal.aborted);
    signal.throwIfAborted();
    return asked() !== before;
  }

  /** What would have been cut unseen is there to be looked at first. */
  #tellWentOn(draft?: Draft): void {
    if (draft) this.#shell.giveBack(this, draft);
    this.#tell({
      kind: 'told',
      text: 'The conversation had gone on elsewhere: look at it, then do this again.',
    });
  }

  /** A message whose outcome was unknown, and that the server took, is not sent twice. */
  #holds(content: string): boolean {
    const question = this.views.findLast(({ role }) => role === 'user');
    if (question?.content !== content) return false;
    if (this.views.at(-1)?.role !== 'assistant') {
      // Asked and not answered: it is sent again in its place.
      this.#cut(this.views.indexOf(question));
      return false;
    }
    this.views.at(-1)!.state = 'cut';
    this.#tell({ kind: 'told', text: 'This message had been received: here is its answer.' });
    return true;
  }

  /** The last answer once more, drawn otherwise. */
  async regenerate(): Promise<void> {
    await this.#again(() => ({ seed: crypto.getRandomValues(new Uint32Array(1))[0]! >>> 1 }));
  }

  /** The last answer from where it was cut: the same request draws the same tokens, and those that are stored are not computed again. */
  async resume(): Promise<void> {
    await this.#again((answer) => answer && { seed: answer.seed, maxTokens: answer.tokens + MORE_TOKENS });
  }

  async #again(how: (answer: MessageView | undefined) => Partial<TurnRequest> | undefined): Promise<void> {
    if (this.running || this.empty) return;
    await this.#exclusively(undefined, async (signal) => {
      if (this.#busy && (await this.#bringUpToDate(signal))) return this.#tellWentOn();
      const last = this.views.at(-1)!;
      const answer = last.role === 'assistant' ? last : undefined;
      const more = how(answer);
      if (answer) this.#cut(this.views.length - 1);
      await this.#turn(
        { messages: this.views.map(({ message }) => message), mode: 'whole', ...more },
        signal,
      );
    });
  }

  /** Runs what a turn consists of; however it ends, what is on the page is true afterwards, and nothing typed is lost. */
  async #exclusively(draft: Draft | undefined, work: (signal: AbortSignal) => Promise<void>): Promise<void> {
    const abort = new AbortController();
    this.#running = abort;
    this.#tell(undefined);
    this.#shell.changed(this);
    try {
      await work(abort.signal);
    } catch (error) {
      if (abort.signal.aborted) await this.#settle(draft);
      else await this.#failed(error, draft);
    } finally {
      this.#running = undefined;
      this.#shell.changed(this);
    }
  }

  async #turn(
    turn: Pick<TurnRequest, 'messages' | 'mode' | 'seed' | 'maxTokens'>,
    signal: AbortSignal,
  ): Promise<void> {
    const answer = this.#add({ role: 'assistant', content: '' });
    answer.seed = turn.seed;
    answer.state = 'running';
    answer.facts('Waiting …');
    this.#shell.changed(this);
    this.#shell.announce(this, 'The model answers.');
    const model = await this.#shell.withKey(() => this.#shell.model());
    const result = await this.#tryUntilServed(signal, () =>
      this.#shell.withKey(() =>
        runTurn({ model, sessionId: this.id, ...turn }, followAnswer(answer), signal),
      ),
    );
    this.#stale = false;
    this.cache = result.cache;
    answer.tokens = result.usage.completion_tokens;
    answer.state = result.reason === 'length' ? 'cut' : 'done';
    answer.facts(factsOf(result));
    this.#shell.announce(this, answer.spoken);
  }

  /** A busy server is asked again when it said to, until the reader stops that. */
  async #tryUntilServed<T>(signal: AbortSignal, attempt: () => Promise<T>): Promise<T> {
    for (let tries = 1; ; tries++) {
      try {
        return await attempt();
      } catch (error) {
        const wait = retryAfter(error);
        if (wait === undefined || tries === MAX_TRIES) throw error;
        this.#tell({ kind: 'told', text: `The server is busy. ${describe(error)}`, countdown: wait });
        await new Promise<void>((resolve, reject) => {
          const timer = setTimeout(resolve, wait * 1000);
          const stop = (): void => {
            clearTimeout(timer);
            reject(signal.reason);
          };
          signal.addEventListener('abort', stop, { once: true });
        });
        this.#tell(undefined);
      }
    }
  }

  /** After a stop the server commits what was said until then; the page shows what is kept. */
  async #settle(draft: Draft | undefined): Promise<void> {
    const answer = this.views.at(-1);
    if (answer?.role === 'assistant') answer.facts('Stopping …');
    const said = this.#said();
    this.#stale = true;
    for (const wait of said === '' ? [] : SETTLE_MS) {
      await new Promise((resolve) => setTimeout(resolve, wait));
      const stored = await loadMessages(this.id).catch(() => undefined);
      const last = stored?.at(-1);
      if (!answer || last?.role !== 'assistant' || stored?.length !== this.views.length) continue;
      if (!last.content.startsWith(said)) continue;
      answer.replace(last.content);
      this.cache = (await loadSession(this.id).catch(() => undefined))?.cache ?? this.cache;
      this.#stale = false;
      break;
    }
    this.#shell.announce(this, 'Stopped.');
    if (said !== '') this.#cutShort('Stopped');
    else {
      await this.#withdraw(draft);
      this.#tell({ kind: 'told', text: 'Stopped before the answer began.' });
    }
  }

  async #failed(error: unknown, draft: Draft | undefined): Promise<void> {
    this.#stale = true;
    const text = describe(error);
    if (this.#said() !== '') {
      this.#cutShort('Broken off');
      const run = (): void => void this.resume();
      this.#tell({ kind: 'failed', text, action: { name: 'Continue', run } });
      return;
    }
    await this.#withdraw(draft);
    const run = draft ? () => this.#shell.resubmit(this) : () => void this.resume();
    const name = remedyOf(error);
    const action = localRemedy(error) ?? (name === undefined ? undefined : { name, run });
    this.#tell({ kind: 'failed', text, ...(action ? { action } : {}) });
  }

  /** What of the running turn's answer has come. */
  #said(): string {
    const last = this.views.at(-1);
    return last?.role === 'assistant' && last.state === 'running' ? last.content : '';
  }

  #cutShort(facts: string): void {
    const answer = this.views.at(-1)!;
    answer.state = 'cut';
    answer.facts(facts);
  }

  /** Takes an answer that never came, and its question, off the page; the question goes back to where it was typed. */
  async #withdraw(draft: Draft | undefined): Promise<void> {
    const last = this.views.at(-1);
    if (last?.role === 'assistant' && last.state === 'running') this.#cut(this.views.length - 1);
    if (draft && this.views.at(-1)?.content === draft.content) this.#cut(this.views.length - 1);
    if (draft) this.#shell.giveBack(this, draft);
    // An edit or another answer had taken messages off the page that the server may still hold.
    if (!draft || draft.editing !== undefined) await this.load().catch(() => undefined);
  }

  /** Takes messages off the page, from one on; undefined: none. */
  #cut(from: number | undefined): void {
    if (from !== undefined) for (const { element } of this.views.splice(from)) element.remove();
  }

  #tell(notice: Notice | undefined): void {
    this.notice = notice;
    this.#shell.notice(this, notice);
  }

  #add(message: Message): MessageView {
    const view = new MessageView(message, this.#shell.actions);
    this.views.push(view);
    this.list.append(view.element);
    return view;
  }

  #show(messages: readonly Message[]): void {
    this.views.length = 0;
    this.list.replaceChildren();
    for (const message of messages) this.#add(message);
  }
}

/** The server holds no such conversation. */
const isGone = (error: unknown): boolean => error instanceof ApiError && error.status === 404;

/** The name of what the reader can do; undefined where the message itself must change. */
function remedyOf(error: unknown): string | undefined {
  if (!(error instanceof ApiError)) return 'Send again';
  if (error.code === 'invalid_api_key') return 'Enter a key';
  return error.status >= 400 && error.status < 500 && error.status !== 429 ? undefined : 'Send again';
}

/** Pieces into the message, and the speed at which they come. */
function followAnswer(answer: MessageView): Parameters<typeof runTurn>[1] {
  let pieces = 0;
  let began = 0;
  return {
    progress: (position, total) => answer.facts(`Reading ${count(position)} of ${count(total)} tokens …`),
    text(piece) {
      if (pieces++ === 0) began = performance.now();
      answer.append(piece);
      const seconds = (performance.now() - began) / 1000;
      answer.facts(seconds > 0.5 ? `Writing, ${count(Math.round(pieces / seconds))} tokens/s` : 'Writing …');
    },
  };
}

function factsOf({ usage, timing, reason, recovered }: Answer): string {
  const facts = [];
  // The first token comes with the prefill: the others are what decoding took its time for.
  const decoded = usage.completion_tokens - 1;
  if (timing.decode_ms > 0 && decoded > 0)
    facts.push(`${count(Math.round((decoded / timing.decode_ms) * 1e4) / 10)} tokens/s`);
  facts.push(plural(usage.completion_tokens, 'token'));
  const { cached_tokens: cached } = usage.prompt_tokens_details;
  facts.push(`${count(cached)} of ${count(usage.prompt_tokens)} prompt tokens reused`);
  if (recovered) facts.push(`cache repaired (${recovered.reason})`);
  if (reason === 'length') facts.push('cut at the token limit');
  return facts.join(' · ');
}
