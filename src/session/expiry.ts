import { expiresAt, type Head } from './head.ts';
import type { KeptHead } from './kept-head.ts';
import { EXPIRY_RETRY_MS } from './limits.ts';

/** One wake-up call, kept by the host: a Durable Object's alarm, a timer in Node. At least once; may come late. */
export interface Alarm {
  get(): Promise<number | null>;
  set(at: number): Promise<void>;
  clear(): Promise<void>;
}

/**
 * Idle sessions are deleted by the alarm. It is set once and not moved with every turn (each would be billed):
 * when it fires too early, it is set again.
 */
export async function armExpiry(alarm: Alarm, head: Head): Promise<void> {
  const at = expiresAt(head);
  if (at !== null && (await alarm.get()) === null) await alarm.set(at);
}

/**
 * What to do when the alarm fires: the time to set it to, or delete, or nothing.
 * @param resumed no alarm fired: the process began, and alarms are to be set
 */
export function onAlarm(
  head: ReturnType<KeptHead['peek']>,
  busy: boolean,
  now: number,
  resumed = false,
): number | 'delete' | undefined {
  if (busy) return now + EXPIRY_RETRY_MS;
  if (head === 'unfinished') return 'delete';
  // Only sessions that expire have an alarm: one that cannot be read any more is cleared away by it. Any other waits for who can read it.
  if (head === 'damaged') return resumed ? undefined : 'delete';
  const at = head && expiresAt(head);
  if (at === undefined || at === null) return undefined;
  return now >= at ? 'delete' : at;
}
