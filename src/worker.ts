import { DurableObject } from 'cloudflare:workers';

export interface Env {
  readonly ASSETS: Fetcher;
  readonly CONVERSATIONS: DurableObjectNamespace<ConversationObject>;
}

export class ConversationObject extends DurableObject<Env> {}

export default {
  async fetch(request: Request, env: Env): Promise<Response> {
    return env.ASSETS.fetch(request);
  },
} satisfies ExportedHandler<Env>;
