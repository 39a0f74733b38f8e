import type { Ptr } from '../core/arena.ts';
import { type WasmMemory, wasmMemory } from './memory.ts';

/** Functions of wasm/simd/plan.ts. */
export interface PlanExports {
  /** Of `count` floats, not negative, in their upper 16 bits: the least above 0, or 65535, in the result's upper half; the largest in its lower one. */
  planRange(line: Ptr, count: number): number;
  /** A head's words, of its tokens' relevance f32 in position order. @param least the upper 16 bits that count as 0 */
  planWords(shape: Ptr, head: number, line: Ptr, least: number): void;
  /** Bytes of the kvHeads from `head` on, a layer's. @param limits u16 [kvHeads][8] @param sampled as an eighth of the tokens tells, without filling groups */
  planBytes(shape: Ptr, head: number, limits: Ptr, sampled: boolean): number;
  /** Puts the new tiers of these heads in the place of those that they hold. */
  planTiers(shape: Ptr, head: number, limits: Ptr): void;
  heapBase(): number;
}

/** The kernels' module once more, over a memory of its own: what a plan ranks is not the cache's, and is gone when the plan is made. */
export interface PlanInstance {
  readonly exports: PlanExports;
  readonly memory: WasmMemory;
}

/** Beyond what the longest conversation's plan takes: 4 bytes a token-head. */
const MAX_BYTES = 1e9;

/** Lends instances to plans; a host has mostly one at a time, and keeps that. */
export class PlanInstances {
  readonly #module: WebAssembly.Module;
  readonly #lent = new Set<PlanInstance>();
  #idle: PlanInstance | undefined;

  /** @param module either variant of wasm/build: these functions are the same in both */
  constructor(module: WebAssembly.Module) {
    this.#module = module;
  }

  /** That their memories hold. A memory never shrinks. */
  get bytes(): number {
    let bytes = this.#idle?.memory.buffer.byteLength ?? 0;
    for (const { memory } of this.#lent) bytes += memory.buffer.byteLength;
    return bytes;
  }

  take(): PlanInstance {
    const instance = this.#idle ?? this.#make();
    this.#idle = undefined;
    this.#lent.add(instance);
    return instance;
  }

  #make(): PlanInstance {
    const memory = wasmMemory(MAX_BYTES);
    const abort = (): never => {
      throw new Error('the WASM module aborted while it planned');
    };
    const instance = new WebAssembly.Instance(this.#module, { env: { memory: memory.memory, abort } });
    return { exports: instance.exports as unknown as PlanExports, memory };
  }

  /** Nobody uses it any more. */
  give(instance: PlanInstance): void {
    this.#lent.delete(instance);
    this.#idle = instance;
  }
}
