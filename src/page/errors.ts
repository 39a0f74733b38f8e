import { ApiError } from './api.ts';
import { LocalAppError } from './local-app.ts';

/** What happened, and what to do about it. The server's own messages name the field and the remedy. */
export function describe(error: unknown): string {
  if (error instanceof ApiError) {
    switch (error.code) {
      case 'invalid_api_key':
        return 'This server wants an API key. Enter one to go on.';
      case 'session_quota_exceeded':
        return `${error.message}. Delete conversations in the list to make room.`;
      case 'context_length_exceeded':
        return `${sentence(error.message)} Shorten the message, or start a new conversation.`;
      case 'broken_off':
        return 'The connection ended in the middle of the answer.';
      case 'unknown':
        return `${error.message} Try again in a moment.`;
      default:
        return sentence(error.message);
    }
  }
  if (error instanceof LocalAppError) return sentence(error.message);
  // fetch's own failure.
  if (error instanceof TypeError)
    return 'The server cannot be reached. Check that it runs and that you are connected, then try again.';
  return error instanceof Error ? error.message : String(error);
}

/** Seconds after which the same request may succeed by itself; undefined where it will not. */
export function retryAfter(error: unknown): number | undefined {
  if (!(error instanceof ApiError) || error.status !== 429 || error.code === 'session_quota_exceeded')
    return undefined;
  return Math.max(1, error.retryAfter ?? 5);
}

const sentence = (text: string): string => {
  const capital = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
};
