import type { SessionHost } from '../session/api.ts';
import type { Listing } from '../session/directory.ts';
import { hex, hmac } from './auth.ts';

/** The name of an owner's directory. */
export const directoryOf = async (owner: string): Promise<string> => hex(await hmac(owner, 'directory'));

/** The host, for one owner: whatever is made there is listed in the owner's directory. */
export function ownedHost(host: SessionHost, owner: string): SessionHost {
  const listing = async (key: string): Promise<Listing> => ({ directory: await directoryOf(owner), key });
  const made: Partial<SessionHost> = {
    create: async (key, id, options) => host.create(key, id, { ...options, listing: await listing(key) }),
    import: async (key, id, file, options) =>
      host.import(key, id, file, { ...options, listing: await listing(key) }),
    fork: async (key, to, options) => host.fork(key, to, { ...options, listing: await listing(to.key) }),
    turn: async (key, id, request, signal) =>
      host.turn(key, id, { ...request, listing: await listing(key) }, signal),
  };
  return new Proxy(host, {
    get(target, name) {
      const member: unknown = Reflect.get(made, name) ?? Reflect.get(target, name);
      return typeof member === 'function' ? member.bind(target) : member;
    },
  });
}
