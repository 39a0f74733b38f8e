import { wasmFolder } from '../cli/load-engine.ts';
import { AdkvcError } from '../core/errors.ts';
import { type Hand, startHand } from './hand.ts';
import { type Identity, type Job, type JobResult, type LoadOptions, loadJobs } from './job.ts';

/** Jobs that one worker does in a row: what the first computes, the next may reuse. */
export type Unit = readonly Job[];

/** Runs jobs on some cores. */
export interface Pool {
  readonly identity: Identity;
  /**
   * Answers all jobs, units in order as workers come free, until `stop`.
   * @throws what keeps workers from starting: the jobs that are not done have no rows
   */
  run(units: readonly Unit[], listener: JobListener): Promise<void>;
  /** No job is begun from now on, and those under way put their work aside or give it up. */
  stop(): void;
  close(): Promise<void>;
}

export interface JobListener {
  readonly onResult: (job: Job, result: JobResult) => void;
  /** Tokens that the job has fed so far. */
  readonly onTokens: (job: Job, tokens: number) => void;
  readonly onDone: (job: Job) => void;
  /** A worker died, and why; what it had not finished is tried again. */
  readonly onDeath: (job: Job, reason: string) => void;
  readonly onNote: (note: string) => void;
}

type Message =
  | { type: 'ready'; identity: Identity }
  | { type: 'result'; result: JobResult }
  | { type: 'tokens'; tokens: number }
  | { type: 'note'; note: string }
  | { type: 'done' };

/** Workers that a method of a job may cost before its row says so instead of a score. */
const MOST_DEATHS = 2;

/**
 * 0 workers: everything in this thread, one job after the other.
 * @param entry the module that workers run
 */
export async function createPool(
  options: Omit<LoadOptions, 'stop'>,
  workers: number,
  entry = workerModule(),
): Promise<Pool> {
  const { bundle, data, backend, maxBytes, aside } = options;
  // Shared memory: a worker in the middle of a computation hears no messages.
  const stop = new Int32Array(new SharedArrayBuffer(4));
  const load = { bundle, data, backend, maxBytes, aside, stop };
  // Built once, before all workers want them at the same time.
  if (backend === 'wasm') await wasmFolder();
  try {
    return workers === 0 ? await inThread(load) : await inWorkers(load, workers, entry);
  } catch (cause) {
    // What a thread threw has lost its class on the way.
    const message = cause instanceof Error ? cause.message : String(cause);
    const remedy = /memory/i.test(message) ? ': --memory says how much it may take' : '';
    throw new AdkvcError('evaluation_not_started', `a worker cannot start: ${message}${remedy}`, { cause });
  }
}

const stopping = ({ stop }: LoadOptions): boolean => Atomics.load(stop, 0) !== 0;
const setStop = ({ stop }: LoadOptions): void => {
  Atomics.store(stop, 0, 1);
};

async function inThread(options: LoadOptions): Promise<Pool> {
  const loaded = await loadJobs(options);
  return {
    identity: loaded.identity,
    async run(units, { onResult, onTokens, onDone, onNote }) {
      for (const job of units.flat()) {
        if (stopping(options)) return;
        await loaded.run(job, {
          emit: (result) => onResult(job, result),
          onTokens: (tokens) => onTokens(job, tokens),
          onNote,
        });
        onDone(job);
        // Timers (the deadline) and signals get their turn.
        await new Promise((resolve) => setImmediate(resolve));
      }
    },
    stop: () => setStop(options),
    close: async () => {},
  };
}

/** This file's own ending: .ts in the sources, .js where they were compiled. */
const workerModule = (): URL => new URL(`./worker${import.meta.url.slice(-3)}`, import.meta.url);

async function inWorkers(options: LoadOptions, count: number, entry: URL): Promise<Pool> {
  const start = async (): Promise<{ worker: Hand; identity: Identity }> => {
    // One that dies between two jobs is found out by the next one.
    const worker = startHand(entry, options);
    live.add(worker);
    return { worker, identity: await ready(worker) };
  };
  const live = new Set<Hand>();
  const close = async (): Promise<void> => {
    await Promise.all([...live].map((w) => w.terminate()));
  };
  try {
    const started = await Promise.all(Array.from({ length: count }, start));
    return {
      identity: started[0]!.identity,
      async run(units, listener) {
        const queue = [...units];
        const deaths = new Map<string, number>();
        await Promise.all(
          started.map(async ({ worker: first }) => {
            let worker = first;
            for (let unit = queue.shift(); unit && !stopping(options); unit = queue.shift())
              for (const [i, job] of unit.entries()) {
                if (stopping(options)) return;
                const open = new Set(job.methods.keys());
                const onResult = (from: Job, result: JobResult): void => {
                  open.delete(result.method);
                  listener.onResult(from, result);
                };
                try {
                  await answer(worker, job, { ...listener, onResult });
                  listener.onDone(job);
                } catch (error) {
                  const reason = error instanceof Error ? error.message : String(error);
                  listener.onDeath(job, reason);
                  live.delete(worker);
                  await worker.terminate();
                  const again: Job[] = [];
                  for (const index of open) {
                    const name = `${job.task} ${job.length} ${job.sample} ${job.seed} ${JSON.stringify(job.methods[index]!.config)}`;
                    const died = (deaths.get(name) ?? 0) + 1;
                    deaths.set(name, died);
                    if (died < MOST_DEATHS) again.push({ ...job, methods: [job.methods[index]!] });
                    else
                      listener.onResult(job, {
                        method: index,
                        error: `its worker died ${died} times: ${reason}`,
                        processPeakBytes: process.resourceUsage().maxRSS * 1024,
                      });
                  }
                  // Alone, so that the method at fault takes no other with it.
                  queue.unshift(...again.map((one) => [one]), unit.slice(i + 1));
                  worker = (await start()).worker;
                  break;
                }
              }
          }),
        );
      },
      stop() {
        setStop(options);
        for (const worker of live) worker.stop();
      },
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

const ready = (worker: Hand): Promise<Identity> =>
  conversation(worker, (message, done) => {
    if (message.type === 'ready') done(message.identity);
  });

const answer = (
  worker: Hand,
  job: Job,
  listener: Pick<JobListener, 'onResult' | 'onTokens' | 'onNote'>,
): Promise<void> => {
  const finished = conversation<void>(worker, (message, done) => {
    if (message.type === 'result') listener.onResult(job, message.result);
    else if (message.type === 'tokens') listener.onTokens(job, message.tokens);
    else if (message.type === 'note') listener.onNote(message.note);
    else if (message.type === 'done') done();
  });
  worker.post(job);
  return finished;
};

/** Listens until `done`; a worker that fails or leaves ends it with an error. */
function conversation<T>(
  worker: Hand,
  listen: (message: Message, done: (value: T) => void) => void,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const stop = (): void => {
      worker.events.off('message', onMessage).off('error', onError).off('exit', onExit);
    };
    const onMessage = (message: Message): void =>
      listen(message, (value) => {
        stop();
        resolve(value);
      });
    const onError = (error: Error): void => {
      stop();
      reject(error);
    };
    const onExit = (code: number | null): void => {
      stop();
      reject(new Error(`an evaluation worker ended with code ${code}`));
    };
    worker.events.on('message', onMessage).on('error', onError).on('exit', onExit);
    // Gone before anybody listened.
    if (worker.gone) onExit(-1);
  });
}
