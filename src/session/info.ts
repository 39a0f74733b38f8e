import type { SaidMessage, SessionInfo } from './api.ts';
import { expiresAt, type Head } from './head.ts';
import { titleOf } from './log.ts';

/** What is told of a session, as of its last commit. @param storedBytes all that its store holds @param busy a turn runs or waits */
export const sessionInfo = (head: Head, storedBytes: number, busy: boolean): SessionInfo => ({
  id: head.id,
  title: titleOf(head.log),
  model: head.engine?.model ?? '',
  createdAt: head.createdAt,
  lastUsedAt: head.lastUsedAt,
  expiresAt: expiresAt(head),
  turns: head.log.messages.filter(({ role }) => role === 'assistant').length,
  tokens: head.log.ids.length,
  cacheConfig: head.cacheConfig,
  cache: head.report,
  storedBytes,
  busy,
  ...(head.foreign && { foreign: head.foreign }),
});

export const saidMessages = ({ log }: Head): SaidMessage[] =>
  log.messages.map(({ role, content, made, given, withdrawn }) => ({
    role,
    content,
    ...(made && { made }),
    ...(given && { given }),
    ...(withdrawn && { withdrawn }),
  }));
