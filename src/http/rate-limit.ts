import type { Context } from 'hono';
import { REQUESTS_BURST, REQUESTS_PER_SECOND } from '../session/limits.ts';
import type { Spent } from '../session/rate.ts';
import { HttpError } from './error-response.ts';

/**
 * Tells the client what its key has left, in OpenAI's headers (https://platform.openai.com/docs/guides/rate-limits).
 * @throws HttpError rate_limit_exceeded (data.retryAfter)
 */
export function admitRequest(c: Context, { wait, left }: Spent): void {
  c.header('x-ratelimit-limit-requests', String(REQUESTS_BURST));
  c.header('x-ratelimit-remaining-requests', String(left));
  if (wait === 0) return;
  const retryAfter = Math.ceil(wait);
  throw new HttpError(
    'rate_limit_exceeded',
    `This key sent its ${REQUESTS_BURST} requests (REQUESTS_BURST); ${REQUESTS_PER_SECOND} a second come back (REQUESTS_PER_SECOND): try again in ${retryAfter} s.`,
    { data: { retryAfter, limit: REQUESTS_BURST } },
  );
}
