import { AdkvcError } from '../core/errors.ts';

export const notFound = (message = 'no such session'): AdkvcError =>
  new AdkvcError('session_not_found', message, { param: 'session_id' });

export const exists = (id: string): AdkvcError =>
  new AdkvcError('session_exists', `session ${id} exists already`, { param: 'id' });
