import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { type MessagePort, parentPort, Worker, workerData } from 'node:worker_threads';
import type { Job, LoadOptions } from './job.ts';

/** A worker that does jobs: a thread, or a process where the kernels' library (Dawn) bears one thread only. */
export interface Hand {
  readonly events: Pick<Worker, 'on' | 'off'>;
  readonly gone: boolean;
  post(job: Job): void;
  /** Tells it that nothing new may begin. A thread sees the shared flag. */
  stop(): void;
  terminate(): Promise<unknown>;
}

/** Starts the module `entry`. Its errors are events, never this process's end. */
export function startHand(entry: URL, options: LoadOptions): Hand {
  return options.backend === 'webgpu' ? processHand(entry, options) : threadHand(entry, options);
}

function threadHand(entry: URL, workerData: LoadOptions): Hand {
  const worker = new Worker(entry, { workerData });
  worker.on('error', () => {});
  return {
    events: worker,
    get gone() {
      return worker.threadId < 0;
    },
    post: (job) => worker.postMessage(job),
    stop: () => {},
    terminate: () => worker.terminate(),
  };
}

type ToProcess = { options: Omit<LoadOptions, 'stop'> } | { job: Job } | { stop: true };

function processHand(entry: URL, { stop: _, ...options }: LoadOptions): Hand {
  const child: ChildProcess = fork(fileURLToPath(entry), { serialization: 'advanced' });
  child.on('error', () => {});
  const send = (message: ToProcess): void => {
    // Who has ended hears nothing; the event 'exit' tells it.
    if (child.connected) child.send(message);
  };
  send({ options });
  return {
    events: child as unknown as Hand['events'],
    get gone() {
      return child.exitCode !== null || child.signalCode !== null;
    },
    post: (job) => send({ job }),
    stop: () => send({ stop: true }),
    async terminate() {
      if (this.gone) return;
      const ended = new Promise((resolve) => child.once('exit', resolve));
      child.kill('SIGKILL');
      await ended;
    },
  };
}

/** The other side of `startHand`: what a worker's module gets, and where its answers go. */
export interface HandSide {
  readonly options: LoadOptions;
  onJob(listener: (job: Job) => void): void;
  answer(message: unknown): void;
}

export async function handSide(): Promise<HandSide> {
  return parentPort ? threadSide(parentPort) : processSide();
}

function threadSide(port: MessagePort): HandSide {
  return {
    options: workerData as LoadOptions,
    onJob: (listener) => void port.on('message', listener),
    answer: (message) => port.postMessage(message),
  };
}

async function processSide(): Promise<HandSide> {
  const stop = new Int32Array(1);
  let listener: ((job: Job) => void) | undefined;
  const options = await new Promise<Omit<LoadOptions, 'stop'>>((resolve) => {
    process.on('message', (message: ToProcess) => {
      if ('options' in message) resolve(message.options);
      else if ('job' in message) listener?.(message.job);
      else stop[0] = 1;
    });
  });
  // Signals to the whole group are the asking process's to answer: it sends `stop`. Without it there is nothing to do.
  process.on('SIGINT', () => {}).on('SIGTERM', () => {});
  process.on('disconnect', () => process.exit());
  return {
    options: { ...options, stop },
    onJob(wanted) {
      listener = wanted;
    },
    answer: (message) => void process.send?.(message),
  };
}
