import { loadCliEngineParts } from '../../src/cli/load-engine.ts';
import type { ModelEngine } from '../../src/engine/engine.ts';

/** The embedded model, prepared on first use as the commands do it. */
export const smollm = async (form: 'compact' | 'exact'): Promise<ModelEngine> =>
  (await loadCliEngineParts({ backend: 'wasm', exact: form === 'exact' })).engine;
