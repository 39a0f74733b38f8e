import type { ChatMessage } from '../../src/engine/types.ts';
import type { TurnRequest } from '../../src/session/api.ts';
import { LocalHost } from '../../src/session/local-host.ts';
import { Scheduler, type SchedulerOptions } from '../../src/session/scheduler.ts';
import type { SessionServices } from '../../src/session/services.ts';
import { MemoryStore } from '../../src/session/store/memory.ts';
import type { SessionStore } from '../../src/session/store/session-store.ts';
import { FakeEngine, type FakeOptions } from './fake-engine.ts';
import { fakeGenerate } from './fake-generate.ts';
import { type Outcome, read, request } from './turns.ts';

export * from './turns.ts';

export const pause = (ms: number): Promise<void> =>
  new Promise((resolve) => void (ms === 0 ? setImmediate(resolve) : setTimeout(resolve, ms)));

/** A host over stores that outlive it: `reopen` is a restart of the process. */
export class World {
  readonly stores = new Map<string, SessionStore>();
  engine: FakeEngine;
  host!: LocalHost;
  scheduler!: Scheduler;
  time = 1_000_000;
  readonly #scheduling: Partial<SchedulerOptions>;

  constructor(options: FakeOptions & { scheduling?: Partial<SchedulerOptions> } = {}) {
    this.engine = new FakeEngine(options);
    this.#scheduling = options.scheduling ?? {};
    this.reopen();
  }

  get services(): SessionServices {
    return {
      loadEngine: async () => this.engine,
      generate: fakeGenerate,
      scheduler: this.scheduler,
      now: () => this.time,
    };
  }

  /** Everything in memory goes; with another engine if one is given. */
  reopen(engine: FakeEngine = this.engine): void {
    this.host?.close();
    this.engine = engine;
    this.scheduler = new Scheduler({ pause, ...this.#scheduling });
    this.host = new LocalHost(this.services, (key) => this.store(key));
  }

  store(key = 'k'): SessionStore {
    let store = this.stores.get(key);
    if (!store) this.stores.set(key, (store = new MemoryStore()));
    return store;
  }

  async turn(messages: readonly ChatMessage[], more: Partial<TurnRequest> = {}, key = 'k'): Promise<Outcome> {
    return read(
      await this.host.turn(key, `id-${key}`, request(messages, more), new AbortController().signal),
    );
  }
}
