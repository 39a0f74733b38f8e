import { beforeAll } from 'vitest';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { logitGoldens } from '../helpers/golden-suites.ts';
import { describeShared } from '../helpers/shared.ts';
import { smollm } from '../helpers/smollm.ts';

describeShared('the exact form against an independent float32 implementation: up to 7,000 tokens', () => {
  let engine: ModelEngine;
  beforeAll(async () => {
    engine = await smollm('exact');
  });
  logitGoldens(() => engine, ['chat-document', 'far-7000'], 1_500_000);
});
