import { parentPort, workerData } from 'node:worker_threads';
import { type CalibrationTask, runCalibrationTask } from '../prepare/calibrate.ts';
import { folderSource } from '../prepare/folder-source.ts';
import { loadOnCpu } from './load-engine.ts';

/** A thread of `adkvc calibrate`: takes tasks, answers results. One model a thread, in the exact form: its bundle's folder is the worker's data. */
const engine = await loadOnCpu(folderSource(workerData as string));
parentPort!.on('message', async ({ index, task }: { index: number; task: CalibrationTask }) => {
  const result = await runCalibrationTask(engine, task, 'float', () => parentPort!.postMessage({ head: 1 }));
  parentPort!.postMessage({ index, result });
});
parentPort!.postMessage({ ready: true });
