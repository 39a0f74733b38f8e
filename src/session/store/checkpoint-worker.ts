import { DatabaseSync } from 'node:sqlite';
import { pathToFileURL } from 'node:url';
import { parentPort } from 'node:worker_threads';

/**
 * Carries what is in a database's log over into its file, beside whoever writes on: https://sqlite.org/wal.html#ckpt. A path comes in; it goes back when that is done, or cannot be: the log
 * holds everything, and the next one tries again.
 */
parentPort!.on('message', (path: string) => {
  try {
    // Not one that has been deleted.
    const database = new DatabaseSync(`${pathToFileURL(path).href}?mode=rw`);
    try {
      database.exec('PRAGMA wal_checkpoint(PASSIVE)');
    } finally {
      database.close();
    }
  } catch {}
  parentPort!.postMessage(path);
});
