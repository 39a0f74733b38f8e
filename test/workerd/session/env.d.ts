declare namespace Cloudflare {
  interface Env {
    ADKVC_FAULTS: string;
    DIRECTORIES: DurableObjectNamespace<import('../../../src/session/durable-object.ts').SessionDirectory>;
    CONVERSATIONS: DurableObjectNamespace<
      import('../../../src/session/durable-object.ts').Conversation<unknown>
    >;
  }
  interface GlobalProps {
    mainModule: typeof import('./worker.ts');
  }
}
