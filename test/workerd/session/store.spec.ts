import { runInDurableObject } from 'cloudflare:test';
import { env } from 'cloudflare:workers';
import { DurableObjectStore } from '../../../src/session/store/durable-object.ts';
import { storeConformance } from '../../session/store-conformance.ts';

let count = 0;

storeConformance('Durable Object SQLite', async (body) => {
  const stub = env.CONVERSATIONS.getByName(`store-${count++}`);
  await runInDurableObject(stub, (_object, state) =>
    body(new DurableObjectStore(state.storage), () => new DurableObjectStore(state.storage)),
  );
});
