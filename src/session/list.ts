import { AdkvcError } from '../core/errors.ts';
import type { SessionInfo, SessionPage } from './api.ts';
import type { Directories } from './directory.ts';
import { UNSEEN_ENTRY_MS } from './limits.ts';

/**
 * A page of an owner's sessions, each as it tells of itself. Entries whose session does not exist are removed on the way, unless they are so new that
 * the session may be about to be written.
 */
export async function listSessions(
  directories: Directories,
  get: (key: string) => Promise<SessionInfo>,
  now: number,
  directory: string,
  { limit, after }: { limit: number; after?: string },
): Promise<SessionPage> {
  const entries = await directories.list(directory);
  const start = after === undefined ? 0 : entries.findIndex(({ id }) => id === after) + 1;
  if (after !== undefined && start === 0)
    throw new AdkvcError('session_not_found', `There is no session "${after}".`, { param: 'after' });
  const page = entries.slice(start, start + limit);
  const more = start + page.length < entries.length;
  const found = await Promise.all(
    page.map(async (entry, at) => {
      try {
        return await get(entry.key);
      } catch (error) {
        // A damaged session is still listed nowhere but in the directory, which keeps it.
        if (!(error instanceof AdkvcError)) throw error;
        const gone = error.code === 'session_not_found' && now - entry.createdAt > UNSEEN_ENTRY_MS;
        // The next page is asked for by the last entry of this one.
        if (gone && !(more && at === page.length - 1)) await directories.remove(directory, entry.key);
        return undefined;
      }
    }),
  );
  return {
    sessions: found.filter((info) => info !== undefined),
    last: page.at(-1)?.id ?? null,
    more,
    total: entries.length,
  };
}
