import { parentPort } from 'node:worker_threads';
import { type CalibrationTask, runCalibrationTask } from '../prepare/calibrate.ts';
import { loadCliEngine } from './load-engine.ts';

/** A thread of `adkvc calibrate`: takes tasks, answers results. One model a thread, in the exact form. */
const engine = await loadCliEngine({ backend: 'wasm', exact: true });
parentPort!.on('message', async ({ index, task }: { index: number; task: CalibrationTask }) => {
  const result = await runCalibrationTask(engine, task, 'float', () => parentPort!.postMessage({ head: 1 }));
  parentPort!.postMessage({ index, result });
});
parentPort!.postMessage({ ready: true });
