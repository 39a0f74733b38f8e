import {
  Conversation,
  durableObjectDirectories,
  durableObjectHost,
  pause,
  type SessionDirectory,
} from '../../../src/session/durable-object.ts';
import { Scheduler } from '../../../src/session/scheduler.ts';
import type { SessionServices } from '../../../src/session/services.ts';
import { toWire } from '../../../src/session/wire.ts';
import { FakeEngine } from '../../helpers/fake-engine.ts';
import { fakeGenerate } from '../../helpers/fake-generate.ts';

export { SessionDirectory } from '../../../src/session/durable-object.ts';

interface Env {
  readonly DIRECTORIES: DurableObjectNamespace<SessionDirectory>;
  readonly CONVERSATIONS: DurableObjectNamespace<ConversationObject>;
}

export const engine = new FakeEngine({ layers: 4 });
export const scheduler = new Scheduler({ pause });
const services: SessionServices = { loadEngine: async () => engine, generate: fakeGenerate, scheduler };

export class ConversationObject extends Conversation<Env> {
  protected services(env: Env): SessionServices {
    return { ...services, directories: durableObjectDirectories(env.DIRECTORIES) };
  }
}

/** A turn over HTTP, as the product's own Worker forwards it: for tests of clients that go away. */
export default {
  async fetch(request, env): Promise<Response> {
    const key = new URL(request.url).pathname.slice(1);
    const encoder = new TextEncoder();
    try {
      const events = await durableObjectHost(
        env.CONVERSATIONS,
        durableObjectDirectories(env.DIRECTORIES),
      ).turn(key, key, await request.json(), request.signal);
      const iterator = events[Symbol.asyncIterator]();
      return new Response(
        new ReadableStream<Uint8Array>({
          async pull(controller) {
            const { done, value } = await iterator.next();
            if (done) controller.close();
            else controller.enqueue(encoder.encode(`${JSON.stringify(value)}\n`));
          },
          async cancel() {
            await iterator.return?.();
          },
        }),
      );
    } catch (error) {
      return Response.json(toWire(error), { status: 500 });
    }
  },
} satisfies ExportedHandler<Env>;
