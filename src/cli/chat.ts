import { randomUUID } from 'node:crypto';
import { createInterface } from 'node:readline';
import type { Command } from 'commander';
import { AdkvcError } from '../core/errors.ts';
import { GREEDY } from '../engine/sampler.ts';
import type { SamplingOptions } from '../engine/types.ts';
import { ANONYMOUS_OWNER } from '../http/auth.ts';
import { sessionKey } from '../http/conversation.ts';
import { SESSION_ID } from '../http/schema.ts';
import { folderSource } from '../prepare/folder-source.ts';
import { readManifest } from '../runtime/model.ts';
import type { SessionHost, TurnEvent } from '../session/api.ts';
import { bundleFolder } from './bundle-folder.ts';
import { addEngineOptions, cacheConfig, count, type EngineOptions } from './engine-options.ts';
import { loadCliEngine } from './load-engine.ts';
import { localSessions, SESSIONS_FOLDER } from './local-sessions.ts';

interface ChatOptions extends EngineOptions {
  session?: string;
  system?: string;
  maxTokens: number;
}

type Finished = Extract<TurnEvent, { type: 'finished' }>;

const HELP =
  '/stats  what the cache holds    /new  another conversation    /quit  (Ctrl-D; Ctrl-C stops an answer)';

/** `adkvc chat`: a conversation in the terminal. Answers go to standard output, everything else to standard error. */
export function chatCommand(program: Command): void {
  addEngineOptions(program.command('chat'))
    .description('talk to the model in the terminal')
    .option(
      '--session <name>',
      'keep the conversation under this name and go on with it; without it nothing is kept',
    )
    .option('--system <text>', 'system message of a new conversation')
    .option('--max-tokens <n>', 'tokens of one answer', count, 512)
    .action(async (options: ChatOptions) => {
      if (options.session !== undefined && !SESSION_ID.test(options.session))
        throw new AdkvcError('invalid_input', '--session must be 1 to 128 letters, digits, "_", "." or "-"');
      const engine = await loadCliEngine(options);
      const bundle = folderSource(await bundleFolder(options.exact ? 'exact' : 'compact'));
      const { generation } = await readManifest(bundle);
      const host = await localSessions(engine, options.session === undefined ? undefined : SESSIONS_FOLDER);
      try {
        await converse(host, options, {
          ...GREEDY,
          temperature: generation.temperature,
          topP: generation.topP,
          seed: options.seed,
        });
      } finally {
        host.close();
      }
    });
}

async function converse(host: SessionHost, options: ChatOptions, sampling: SamplingOptions): Promise<void> {
  const tell = (text: string): boolean => process.stderr.write(`${text}\n`);
  let id = options.session ?? randomUUID();
  let key = await sessionKey(ANONYMOUS_OWNER, id);
  let last: Finished | undefined;
  let running: AbortController | undefined;
  // Commands that come by a pipe are no terminal: no prompt, and the end of input ends the chat.
  const terminal = process.stdin.isTTY === true;
  const lines = createInterface({ input: process.stdin, output: process.stderr, terminal, prompt: '> ' });
  lines.on('SIGINT', () => (running ? running.abort() : lines.close()));

  const stored = await host.messages(key).catch(notFound);
  if (stored) tell(`going on with "${id}": ${stored.length} messages`);
  let fresh = stored === undefined;
  tell(HELP);
  if (terminal) lines.prompt();
  for await (const line of lines) {
    const text = line.trim();
    if (text === '/quit') break;
    if (text === '/stats') tell(await stats(host, key, last));
    else if (text === '/new') {
      id = randomUUID();
      key = await sessionKey(ANONYMOUS_OWNER, id);
      [fresh, last] = [true, undefined];
      tell('another conversation; it is not kept under a name');
    } else if (text.startsWith('/')) tell(HELP);
    else if (text !== '') {
      running = new AbortController();
      try {
        const system = fresh && options.system ? [{ role: 'system' as const, content: options.system }] : [];
        const events = await host.turn(
          key,
          id,
          {
            messages: [...system, { role: 'user', content: text }],
            mode: fresh ? 'whole' : 'append',
            overwrite: false,
            store: true,
            implicit: false,
            sampling,
            stop: [],
            maxTokens: options.maxTokens,
            cache: cacheConfig(options),
          },
          running.signal,
        );
        for await (const event of events) {
          if (event.type === 'token' || event.type === 'finished') process.stdout.write(event.text);
          if (event.type === 'finished') last = event;
          if (event.type === 'failed' && event.error.code !== 'aborted')
            tell(`error: ${event.error.message}`);
        }
        fresh = false;
      } catch (error) {
        if (!(error instanceof AdkvcError)) throw error;
        tell(`error: ${error.message}`);
      }
      process.stdout.write('\n');
      running = undefined;
    }
    if (terminal) lines.prompt();
  }
  lines.close();
}

const notFound = (error: unknown): undefined => {
  if (error instanceof AdkvcError && error.code === 'session_not_found') return undefined;
  throw error;
};

async function stats(host: SessionHost, key: string, last: Finished | undefined): Promise<string> {
  const info = await host.get(key).catch(notFound);
  if (!info?.cache) return 'nothing is cached yet';
  const { cache } = info;
  const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(2)} MB`;
  const tiers = Object.entries(cache.tiers).map(([tier, count]) => `${tier} ${count}`);
  const facts = [
    `${cache.tokens} tokens in ${megabytes(cache.bytes)} (fp16 ${megabytes(cache.fp16Bytes)}, ratio ${cache.ratio.toFixed(2)}, peak ${megabytes(cache.peakBytes)}), policy ${cache.policy}`,
    `token-heads by tier: ${tiers.join(', ')}`,
    `${info.turns} turns, ${megabytes(info.storedBytes)} stored`,
  ];
  if (last) {
    const { usage, timing } = last;
    const rate = (tokens: number, ms: number): string =>
      ms > 0 ? `${((tokens * 1000) / ms).toFixed(1)} tokens/s` : '-';
    facts.push(
      `last turn: ${usage.promptTokens} prompt tokens, ${usage.cachedTokens} reused; prefill ${rate(usage.promptTokens - usage.cachedTokens, timing.prefillMs)}, decode ${rate(usage.completionTokens, timing.decodeMs)}`,
    );
  }
  return facts.join('\n');
}
