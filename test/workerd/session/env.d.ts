declare namespace Cloudflare {
  interface Env {
    CONVERSATIONS: DurableObjectNamespace<
      import('../../../src/session/durable-object.ts').Conversation<unknown>
    >;
  }
  interface GlobalProps {
    mainModule: typeof import('./worker.ts');
  }
}
