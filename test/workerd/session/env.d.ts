declare namespace Cloudflare {
  interface Env {
    DIRECTORIES: DurableObjectNamespace<import('../../../src/session/durable-object.ts').SessionDirectory>;
    CONVERSATIONS: DurableObjectNamespace<
      import('../../../src/session/durable-object.ts').Conversation<unknown>
    >;
  }
  interface GlobalProps {
    mainModule: typeof import('./worker.ts');
  }
}
