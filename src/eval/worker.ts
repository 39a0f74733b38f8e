import { handSide } from './hand.ts';
import { loadJobs } from './job.ts';

/** One worker's share of an evaluation: loads the model, then answers jobs one at a time (pool.ts). */
const side = await handSide();
const loaded = await loadJobs(side.options);
side.onJob(async (job) => {
  await loaded.run(job, {
    emit: (result) => side.answer({ type: 'result', result }),
    onTokens: (tokens) => side.answer({ type: 'tokens', tokens }),
    onNote: (note) => side.answer({ type: 'note', note }),
  });
  side.answer({ type: 'done' });
});
side.answer({ type: 'ready', identity: loaded.identity });
