import * as ort from 'onnxruntime-web/wasm';
import { InvalidInputError, UnsupportedModelError } from '../core/errors.ts';

/** Rows of f32, or token ids. `dims` as ONNX counts them: [rows, width], [rows]. */
export interface OrtTensor {
  readonly dims: readonly number[];
  readonly data: Float32Array | BigInt64Array;
}

/** One loaded stage. */
export interface OrtStage {
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  /** Every input of the stage must be given. The result's arrays are copies that the caller owns. */
  run(inputs: Readonly<Record<string, OrtTensor>>): Promise<Record<string, Float32Array>>;
  /** Frees the stage's weights within the heap. The heap itself never shrinks. */
  dispose(): Promise<void>;
}

/** onnxruntime-web on one thread. Nothing is instantiated, and no heap taken, before the first `load`. */
export interface OrtRunner {
  /**
   * @param model a serialised ONNX model whose weights are external
   * @param weights f32 values, or codes, for every location that the model names; copied into the heap
   */
  load(model: Uint8Array, weights?: Readonly<Record<string, Float32Array | Uint8Array>>): Promise<OrtStage>;
  /** Bytes of the WebAssembly memory: 0 until the first `load`, and never less afterwards. */
  heapBytes(): number;
}

export interface OrtRunnerOptions {
  /**
   * onnxruntime-web/ort-wasm-simd-threaded.wasm, compiled: how a host gets there is its own affair. workerd can only import it
   * as a module; Node compiles the package's file (src/runtime/ort-node.ts). Called once, at the first `load`.
   */
  readonly wasm: () => WebAssembly.Module | Promise<WebAssembly.Module>;
}

/**
 * onnxruntime-web keeps one instance for each JavaScript realm, in module state of its own; so must whoever feeds and counts it.
 * `queue`: sessions are created one at a time, for external data passes through state that all creations share.
 * Creating one awaits neither I/O nor timers (the module of a Worker is there already), so a request that dies cannot leave the queue stuck.
 */
const instance: { memory?: WebAssembly.Memory; queue: Promise<unknown> } = { queue: Promise.resolve() };

/**
 * @example
 * const runner = createOrtRunner({ wasm: () => module });
 * const loaded = await runner.load(stageModel(stage, shapeOf), weights);
 * const { y } = await loaded.run({ x: { dims: [1, 64], data: new Float32Array(64) } });
 */
export function createOrtRunner(options: OrtRunnerOptions): OrtRunner {
  return {
    load(model, weights = {}) {
      const create = () => createStage(model, weights);
      const loading = instance.queue.then(() => (instance.memory ? create() : start(options.wasm, create)));
      instance.queue = loading.catch(() => {});
      return loading;
    },
    heapBytes: () => instance.memory?.buffer.byteLength ?? 0,
  };
}

async function createStage(
  model: Uint8Array,
  weights: Readonly<Record<string, Float32Array | Uint8Array>>,
): Promise<OrtStage> {
  const session = await ort.InferenceSession.create(model, {
    executionProviders: ['wasm'],
    externalData: Object.entries(weights).map(([path, w]) => ({
      path,
      data: new Uint8Array(w.buffer, w.byteOffset, w.byteLength),
    })),
  }).catch((cause: unknown) => {
    throw new UnsupportedModelError(`onnxruntime-web refuses a stage: ${cause}`, { cause });
  });
  let disposed = false;
  return {
    inputs: session.inputNames,
    outputs: session.outputNames,
    async run(inputs) {
      if (disposed) throw new Error('the stage has been disposed of');
      const feeds: Record<string, ort.Tensor> = {};
      for (const name of session.inputNames) {
        const given = inputs[name];
        if (!given) throw new InvalidInputError(`the stage's input ${name} is missing`, name);
        feeds[name] =
          given.data instanceof Float32Array
            ? new ort.Tensor('float32', given.data, given.dims)
            : new ort.Tensor('int64', given.data, given.dims);
      }
      const results = await session.run(feeds);
      const out: Record<string, Float32Array> = {};
      for (const name of session.outputNames) {
        const tensor = results[name]!;
        if (!(tensor.data instanceof Float32Array))
          throw new UnsupportedModelError(`the stage's output ${name} is ${tensor.type}, not float32`);
        out[name] = tensor.data;
        tensor.dispose();
      }
      return out;
    },
    async dispose() {
      if (disposed) return;
      disposed = true;
      await session.release();
    },
  };
}

/**
 * The stock API compiles its WebAssembly from bytes, which workerd forbids; but it takes bytes instead of an address and passes
 * them to WebAssembly.instantiate. So that function is wrapped while the first session is created, and the one call that carries
 * our own (empty) bytes gets the compiled module; every other call goes through untouched.
 */
async function start<T>(wasm: OrtRunnerOptions['wasm'], createFirst: () => Promise<T>): Promise<T> {
  const module = await wasm();
  const token = new ArrayBuffer(8);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.proxy = false;
  ort.env.wasm.wasmBinary = token;
  ort.env.logLevel = 'error';
  const stock = WebAssembly.instantiate;
  const wrapped = async (source: unknown, imports?: WebAssembly.Imports): Promise<unknown> => {
    const bytes = ArrayBuffer.isView(source) ? source.buffer : source;
    if (bytes !== token) return Reflect.apply(stock, WebAssembly, [source, imports]);
    const made = new WebAssembly.Instance(module, imports);
    instance.memory = findMemory(made, imports);
    return { module, instance: made };
  };
  WebAssembly.instantiate = wrapped as typeof WebAssembly.instantiate;
  try {
    return await createFirst();
  } finally {
    WebAssembly.instantiate = stock;
  }
}

function findMemory(
  made: WebAssembly.Instance,
  imports: WebAssembly.Imports | undefined,
): WebAssembly.Memory {
  const all = [made.exports, ...Object.values(imports ?? {})].flatMap((space) => Object.values(space));
  const memory = all.find((value) => value instanceof WebAssembly.Memory);
  if (!memory) throw new Error('onnxruntime-web has no WebAssembly memory');
  return memory;
}
