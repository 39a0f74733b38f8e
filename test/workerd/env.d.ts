declare namespace Cloudflare {
  interface Env {
    ASSETS: Fetcher;
    CONVERSATIONS: DurableObjectNamespace<import('../../src/worker.ts').ConversationObject>;
  }
}
