import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, expect, test } from 'vitest';
import { createTemplate } from '../../src/engine/template.ts';
import { createTokenizer, type ModelTokenizer } from '../../src/engine/tokenizer.ts';
import type { ChatMessage, ChatTemplate } from '../../src/engine/types.ts';
import { EMBEDDED_MODEL } from '../../src/prepare/embedded-model.ts';
import { openGguf } from '../../src/prepare/gguf.ts';
import { tokenizerJsonFromGguf } from '../../src/prepare/tokenizer-json.ts';
import { describeShared, sharedPath } from '../helpers/shared.ts';

const ROOT = join(import.meta.dirname, '../..');

let tokenizer: ModelTokenizer;
let template: ChatTemplate;

beforeAll(async () => {
  const gguf = await openGguf(join(ROOT, EMBEDDED_MODEL.file));
  const json = tokenizerJsonFromGguf(gguf.metadata, gguf.file, 49152);
  tokenizer = createTokenizer(JSON.parse(JSON.stringify(json)));
  template = createTemplate(gguf.metadata.string('tokenizer.chat_template'), tokenizer, {
    bosId: null,
    eosIds: [2],
  });
  await gguf.close();
});

const golden = (file: string) => JSON.parse(readFileSync(sharedPath('golden', file)!, 'utf8'));

describeShared('the embedded tokenizer against HuggingFace tokenizers', () => {
  interface Case {
    id: number;
    text: string;
    ids: number[];
    decoded: string;
    decoded_skip_special?: string;
  }

  test('every golden string gives the golden ids and text', () => {
    const { strings } = golden('tokenizer-strings.json') as { strings: Case[] };
    expect(strings.length).toBeGreaterThan(300);
    for (const { id, text, ids, decoded, decoded_skip_special } of strings) {
      expect({ id, ids: tokenizer.encode(text, { specials: true }) }).toEqual({ id, ids });
      expect({ id, text: tokenizer.decode(ids) }).toEqual({ id, text: decoded });
      const skipped = decoded_skip_special ?? decoded;
      expect({ id, text: tokenizer.decode(ids, { skipSpecials: true }) }).toEqual({ id, text: skipped });
      const stream = tokenizer.stream();
      const pieces = ids.map((token) => stream.push(token));
      expect({ id, text: pieces.join('') + stream.end() }).toEqual({ id, text: skipped });
    }
  });
});

describeShared('the chat template against transformers', () => {
  interface Case {
    id: number;
    messages: ChatMessage[];
    add_generation_prompt: boolean;
    text: string;
    ids: number[];
  }
  const SPECIAL_IN_CONTENT =
    /<\|im_(start|end)\|>|<\|endoftext\|>|<repo_name>|<reponame>|<file_sep>|<jupyter/;

  test('every golden conversation', () => {
    const { conversations } = golden('chat-template.json') as { conversations: Case[] };
    let apart = 0;
    for (const { id, messages, add_generation_prompt: addGenerationPrompt, text, ids } of conversations) {
      expect({ id, text: template.render(messages, { addGenerationPrompt }) }).toEqual({ id, text });
      expect({ id, ids: tokenizer.encode(text, { specials: true }) }).toEqual({ id, ids });
      const encoded = template.encode(messages, { addGenerationPrompt });
      if (messages.some((m) => SPECIAL_IN_CONTENT.test(m.content))) {
        apart++;
        expect({ id, ids: encoded.ids }).not.toEqual({ id, ids });
        expect(tokenizer.decode(encoded.ids)).toBe(text);
      } else expect({ id, ids: encoded.ids }).toEqual({ id, ids });
    }
    expect(apart).toBe(6);
  });

  test('a reply that was generated is an exact prefix of the next turn wherever the golden says so', () => {
    interface Turn {
      user: string;
      prompt_ids: number[];
      generated_ids: number[];
      text: string;
      previous_prompt_plus_generated_is_prefix: boolean | null;
    }
    const { conversations } = golden('multiturn.json') as {
      conversations: { system: string | null; turns: Turn[] }[];
    };
    let checked = 0;
    for (const { system, turns } of conversations) {
      const messages: ChatMessage[] = system === null ? [] : [{ role: 'system', content: system }];
      let before: number[] = [];
      for (const turn of turns) {
        messages.push({ role: 'user', content: turn.user });
        const { ids, spans } = template.encode(messages, { addGenerationPrompt: true });
        expect(ids).toEqual(turn.prompt_ids);
        expect(spans).toHaveLength(messages.length);
        if (turn.previous_prompt_plus_generated_is_prefix) {
          expect(ids.slice(0, before.length)).toEqual(before);
          checked++;
        }
        messages.push({ role: 'assistant', content: turn.text });
        before = [...turn.prompt_ids, ...turn.generated_ids];
      }
    }
    expect(checked).toBeGreaterThanOrEqual(9);
  });
});
