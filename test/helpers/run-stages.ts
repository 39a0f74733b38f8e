import type { OrtRunner } from '../../src/runtime/ort.ts';
import type { Stage } from '../../src/runtime/partition.ts';
import { interpret, type Value } from './graph-interpreter.ts';
import type { TinyDecoder } from './tiny-decoder.ts';

/**
 * Executes stages one after another: onnxruntime's on `runner`, the kernels' in the float64 interpreter.
 * `models`: the serialised models of the ort stages, in order.
 */
export async function runStages(
  decoder: TinyDecoder,
  stages: readonly Stage[],
  models: readonly Uint8Array[],
  ids: readonly number[],
  runner: OrtRunner,
): Promise<Map<string, Value>> {
  const left = [...models];
  let values = new Map<string, Value>([['input_ids', { dims: [ids.length], data: Float64Array.from(ids) }]]);
  for (const [i, stage] of stages.entries()) {
    // Only what the stage says that it reads: a wrong list must fail.
    const visible = new Map(stage.inputs.map((name) => [name, values.get(name)!] as const));
    const made = new Map<string, Value>();
    if (stage.kind === 'kernels') {
      interpret(stage.nodes, visible, decoder);
      for (const name of stage.outputs) made.set(name, visible.get(name)!);
    } else {
      const loaded = await runner.load(left.shift()!, decoder.f32(stage.weights));
      const out = await loaded.run(
        Object.fromEntries(
          [...visible].map(([name, { dims, data }]) => [
            name,
            {
              dims,
              data:
                dims.length === 1 ? BigInt64Array.from(data, (id) => BigInt(id)) : Float32Array.from(data),
            },
          ]),
        ),
      );
      for (const name of stage.outputs)
        made.set(name, {
          dims: [ids.length, out[name]!.length / ids.length],
          data: Float64Array.from(out[name]!),
        });
      await loaded.dispose();
    }
    const later = new Set(stages.slice(i + 1).flatMap((s) => s.inputs));
    values = new Map([...values, ...made].filter(([name]) => later.has(name) || made.has(name)));
  }
  return values;
}

export const largestDifference = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  if (a.length !== b.length) return Number.POSITIVE_INFINITY;
  let top = 0;
  for (let i = 0; i < a.length; i++) {
    const d = Math.abs(a[i]! - b[i]!);
    if (!(d <= top)) top = d;
  }
  return top;
};
