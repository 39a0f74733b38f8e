import { beforeAll } from 'vitest';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { perplexityGoldens } from '../helpers/golden-suites.ts';
import { describeShared } from '../helpers/shared.ts';
import { smollm } from '../helpers/smollm.ts';

describeShared(
  'the exact form against an independent float32 implementation: the whole context of 8,192',
  () => {
    let engine: ModelEngine;
    beforeAll(async () => {
      engine = await smollm('exact');
    });
    perplexityGoldens(() => engine, ['pg19-test-9931-8192'], 1_500_000);
  },
);
