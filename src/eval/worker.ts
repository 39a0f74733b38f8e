import { parentPort, workerData } from 'node:worker_threads';
import { type Job, type LoadOptions, loadJobs } from './job.ts';

/** One core's share of an evaluation: loads the model, then answers jobs one at a time (pool.ts). */
const port = parentPort!;
const loaded = await loadJobs(workerData as LoadOptions);
port.on('message', async (job: Job) => {
  await loaded.run(
    job,
    (result) => port.postMessage({ type: 'result', result }),
    (tokens) => port.postMessage({ type: 'tokens', tokens }),
  );
  port.postMessage({ type: 'done' });
});
port.postMessage({ type: 'ready', identity: loaded.identity });
