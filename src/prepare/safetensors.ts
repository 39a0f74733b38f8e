import type { createHash } from 'node:crypto';
import { type FileHandle, open, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import * as v from 'valibot';
import { UnsupportedModelError } from '../core/errors.ts';
import type { SourceType } from '../kernels/weights.ts';

export interface SafeTensor {
  readonly name: string;
  /** BF16 is widened to F32 when it is read. */
  readonly type: SourceType;
  readonly shape: readonly number[];
  /** Bytes in the file. */
  readonly bytes: number;
  read(): Promise<Uint8Array>;
}

export interface SafeTensors {
  readonly tensors: ReadonlyMap<string, SafeTensor>;
  readonly bytes: number;
  /** Adds the files' bytes to a hash. */
  hash(into: ReturnType<typeof createHash>): Promise<void>;
  close(): Promise<void>;
}

const WIDTHS: Readonly<Record<string, number>> = { F32: 4, F16: 2, BF16: 2 };
const size = v.pipe(v.number(), v.integer(), v.minValue(0));
const headerSchema = v.record(
  v.string(),
  v.object({ dtype: v.string(), shape: v.array(size), data_offsets: v.tuple([size, size]) }),
);
/** A header beyond this is damaged: names and shapes of ten thousand tensors take one. */
const MAX_HEADER_BYTES = 16 * 1024 * 1024;

/**
 * The weights of a HuggingFace folder: model.safetensors, or the files that model.safetensors.index.json lists.
 * Source of the format: https://huggingface.co/docs/safetensors
 * @throws UnsupportedModelError when a file is missing, truncated or malformed, or holds a type other than F32, F16 and BF16
 */
export async function openSafetensors(folder: string): Promise<SafeTensors> {
  const handles: FileHandle[] = [];
  const tensors = new Map<string, SafeTensor>();
  let bytes = 0;
  const close = async (): Promise<void> => {
    for (const handle of handles) await handle.close();
  };
  try {
    for (const file of await weightFiles(folder)) {
      const path = join(folder, file);
      const info = await stat(path).catch(() => undefined);
      if (!info?.isFile()) throw new UnsupportedModelError(`${folder}: ${file} is missing`, { file });
      const handle = await open(path, 'r');
      handles.push(handle);
      bytes += info.size;
      for (const tensor of await readTable(handle, file, info.size)) tensors.set(tensor.name, tensor);
    }
  } catch (error) {
    await close();
    throw error;
  }
  return {
    tensors,
    bytes,
    close,
    async hash(into) {
      const piece = new Uint8Array(1 << 20);
      for (const handle of handles)
        for (let at = 0; ; ) {
          const { bytesRead } = await handle.read(piece, 0, piece.length, at);
          if (bytesRead === 0) break;
          into.update(piece.subarray(0, bytesRead));
          at += bytesRead;
        }
    },
  };
}

async function weightFiles(folder: string): Promise<string[]> {
  const index = await readFile(join(folder, 'model.safetensors.index.json'), 'utf8').catch(() => undefined);
  if (index === undefined) return ['model.safetensors'];
  const parsed = v.safeParse(
    v.object({ weight_map: v.record(v.string(), v.pipe(v.string(), v.regex(/^[\w.-]+$/))) }),
    parseJson(index, 'model.safetensors.index.json'),
  );
  if (!parsed.success) throw new UnsupportedModelError('model.safetensors.index.json has no weight_map');
  return [...new Set(Object.values(parsed.output.weight_map))].sort();
}

async function readTable(handle: FileHandle, file: string, fileBytes: number): Promise<SafeTensor[]> {
  const truncated = (what: string, end: number): never => {
    throw new UnsupportedModelError(
      `${file} is truncated: ${what} ends at byte ${end}, the file has ${fileBytes}`,
      { file, expected: end, bytes: fileBytes },
    );
  };
  if (fileBytes < 8) truncated('the header length', 8);
  const head = await readAt(handle, 0, 8);
  const headerBytes = Number(new DataView(head.buffer).getBigUint64(0, true));
  if (headerBytes > MAX_HEADER_BYTES)
    throw new UnsupportedModelError(
      `${file} is no safetensors file: its header would have ${headerBytes} bytes`,
      {
        file,
      },
    );
  const start = 8 + headerBytes;
  if (start > fileBytes) truncated('the header', start);
  const json = parseJson(new TextDecoder().decode(await readAt(handle, 8, headerBytes)), file);
  if (typeof json === 'object' && json !== null) delete (json as Record<string, unknown>).__metadata__;
  const parsed = v.safeParse(headerSchema, json);
  if (!parsed.success)
    throw new UnsupportedModelError(`${file}: malformed header: ${v.summarize(parsed.issues)}`, { file });

  return Object.entries(parsed.output).map(
    ([
      name,
      {
        dtype,
        shape,
        data_offsets: [from, to],
      },
    ]): SafeTensor => {
      const width = WIDTHS[dtype];
      if (width === undefined)
        throw new UnsupportedModelError(
          `${file}: tensor ${name} has type ${dtype}; supported are ${Object.keys(WIDTHS).join(', ')}`,
          { file, tensor: name, type: dtype },
        );
      const bytes = shape.reduce((a, b) => a * b, width);
      if (to - from !== bytes)
        throw new UnsupportedModelError(
          `${file}: tensor ${name} of [${shape.join(', ')}] has ${to - from} bytes instead of ${bytes}`,
          { file, tensor: name },
        );
      if (start + to > fileBytes) truncated(`tensor ${name}`, start + to);
      return {
        name,
        type: dtype === 'F16' ? 'F16' : 'F32',
        shape,
        bytes,
        read: async () => {
          const data = await readAt(handle, start + from, bytes);
          return dtype === 'BF16' ? widen(data) : data;
        },
      };
    },
  );
}

/** bfloat16 is the upper half of a float32. */
function widen(data: Uint8Array): Uint8Array {
  const out = new Uint8Array(data.length * 2);
  for (let i = 0; i < data.length; i += 2) {
    out[2 * i + 2] = data[i]!;
    out[2 * i + 3] = data[i + 1]!;
  }
  return out;
}

function parseJson(text: string, file: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new UnsupportedModelError(`${file} is not valid JSON`, { file });
  }
}

async function readAt(handle: FileHandle, offset: number, bytes: number): Promise<Uint8Array<ArrayBuffer>> {
  const out = new Uint8Array(bytes);
  for (let at = 0; at < bytes; ) {
    const { bytesRead } = await handle.read(out, at, bytes - at, offset + at);
    if (bytesRead === 0) throw new UnsupportedModelError('a weight file became shorter while it was read');
    at += bytesRead;
  }
  return out;
}
