import { Worker } from 'node:worker_threads';
import { wasmFolder } from '../cli/load-engine.ts';
import { type Identity, type Job, type JobResult, type LoadOptions, loadJobs } from './job.ts';

/** Runs jobs on some cores. */
export interface Pool {
  readonly identity: Identity;
  /** Answers all jobs, in any order. @throws what broke a worker: its job's rows are not there, the others' are */
  run(jobs: readonly Job[], listener: JobListener): Promise<void>;
  close(): Promise<void>;
}

export interface JobListener {
  readonly onResult: (job: Job, result: JobResult) => void;
  /** Tokens that the job has fed so far. */
  readonly onTokens: (job: Job, tokens: number) => void;
  readonly onDone: (job: Job) => void;
}

type Message =
  | { type: 'ready'; identity: Identity }
  | { type: 'result'; result: JobResult }
  | { type: 'tokens'; tokens: number }
  | { type: 'done' };

/** 0 workers: everything in this thread, one job after the other. */
export async function createPool(options: LoadOptions, workers: number): Promise<Pool> {
  const { bundle, data, backend, maxBytes } = options;
  const load = { bundle, data, backend, maxBytes };
  // Built once, before all workers want them at the same time.
  if (backend === 'wasm') await wasmFolder();
  return workers === 0 ? inThread(load) : inWorkers(load, workers);
}

async function inThread(options: LoadOptions): Promise<Pool> {
  const loaded = await loadJobs(options);
  return {
    identity: loaded.identity,
    async run(jobs, { onResult, onTokens, onDone }) {
      for (const job of jobs) {
        await loaded.run(
          job,
          (result) => onResult(job, result),
          (tokens) => onTokens(job, tokens),
        );
        onDone(job);
      }
    },
    close: async () => {},
  };
}

/** This file's own ending: .ts in the sources, .js where they were compiled. */
const entry = (): URL => new URL(`./worker${import.meta.url.slice(-3)}`, import.meta.url);

async function inWorkers(options: LoadOptions, count: number): Promise<Pool> {
  const workers = Array.from({ length: count }, () => new Worker(entry(), { workerData: options }));
  const close = async (): Promise<void> => {
    await Promise.all(workers.map((w) => w.terminate()));
  };
  try {
    const identities = await Promise.all(workers.map(ready));
    return {
      identity: identities[0]!,
      async run(jobs, listener) {
        const queue = [...jobs];
        await Promise.all(
          workers.map(async (worker) => {
            for (let job = queue.shift(); job; job = queue.shift()) {
              await answer(worker, job, listener);
              listener.onDone(job);
            }
          }),
        );
      },
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

const ready = (worker: Worker): Promise<Identity> =>
  conversation(worker, (message, done) => {
    if (message.type === 'ready') done(message.identity);
  });

const answer = (worker: Worker, job: Job, listener: JobListener): Promise<void> => {
  const finished = conversation<void>(worker, (message, done) => {
    if (message.type === 'result') listener.onResult(job, message.result);
    else if (message.type === 'tokens') listener.onTokens(job, message.tokens);
    else if (message.type === 'done') done();
  });
  worker.postMessage(job);
  return finished;
};

/** Listens until `done`; a worker that fails or leaves ends it with an error. */
function conversation<T>(
  worker: Worker,
  listen: (message: Message, done: (value: T) => void) => void,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const stop = (): void => {
      worker.off('message', onMessage).off('error', onError).off('exit', onExit);
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
    const onExit = (code: number): void => {
      stop();
      reject(new Error(`an evaluation worker ended with code ${code}`));
    };
    worker.on('message', onMessage).on('error', onError).on('exit', onExit);
  });
}
