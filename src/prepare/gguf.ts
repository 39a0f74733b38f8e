import { createHash } from 'node:crypto';
import { type FileHandle, open, stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { GGMLQuantizationType, gguf } from '@huggingface/gguf';
import { InvalidInputError, UnsupportedModelError } from '../core/errors.ts';
import { SOURCE_BLOCK, type SourceType } from '../kernels/weights.ts';

export interface GgufTensor {
  readonly name: string;
  readonly type: SourceType;
  /** Outermost first: [n, k] or [dim] (the file stores them innermost first). */
  readonly shape: readonly number[];
  /** From the file's start. */
  readonly offset: number;
  readonly bytes: number;
}

/** A local GGUF file: its tables in memory, its tensors read one by one. */
export interface GgufFile {
  readonly path: string;
  readonly file: string;
  readonly bytes: number;
  readonly metadata: GgufMetadata;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
  read(tensor: GgufTensor): Promise<Uint8Array>;
  /** Of the whole file, streamed. */
  sha256(): Promise<string>;
  close(): Promise<void>;
}

/** Typed look-ups; a value of another type, or a missing required one, is refused by its key. */
export interface GgufMetadata {
  has(key: string): boolean;
  number(key: string): number;
  number(key: string, fallback: number): number;
  optionalNumber(key: string): number | undefined;
  string(key: string): string;
  optionalString(key: string): string | undefined;
  boolean(key: string, fallback: boolean): boolean;
  strings(key: string): string[];
  numbers(key: string): number[];
}

const MAGIC = 'GGUF';

/**
 * Opens a GGUF file and checks that every tensor is of a supported type and lies within the file.
 * @throws InvalidInputError when there is no such file
 * @throws UnsupportedModelError when it is no GGUF, truncated, or holds a tensor type that no kernel reads
 */
export async function openGguf(path: string): Promise<GgufFile> {
  const file = basename(path);
  const info = await stat(path).catch(() => undefined);
  if (!info?.isFile()) throw new InvalidInputError(`there is no model file at ${path}`, '--model');
  const handle = await open(path, 'r');
  try {
    await checkMagic(handle, file, info.size);
    const { metadata, tensors } = await parse(path, file, info.size);
    return {
      path,
      file,
      bytes: info.size,
      metadata,
      tensors,
      read: (tensor) => readExactly(handle, tensor.offset, tensor.bytes, `${file}: tensor ${tensor.name}`),
      sha256: () => sha256OfFile(handle),
      close: () => handle.close(),
    };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

async function checkMagic(handle: FileHandle, file: string, bytes: number): Promise<void> {
  const head = await readExactly(handle, 0, Math.min(bytes, 4), file);
  const magic = String.fromCharCode(...head);
  if (magic !== MAGIC)
    throw new UnsupportedModelError(
      `${file} is not a GGUF file: it starts with ${JSON.stringify(magic)} instead of "GGUF"`,
      { file, magic },
    );
}

async function parse(path: string, file: string, bytes: number) {
  let parsed: Awaited<ReturnType<typeof gguf>>;
  try {
    parsed = await gguf(path, { allowLocalFile: true });
  } catch (error) {
    throw new UnsupportedModelError(
      `${file}: its GGUF header cannot be read (${(error as Error).message}); the file is damaged or truncated`,
      { file },
    );
  }
  // The parser reads zeros past the end of the file, so a header cut short shows only here.
  const headerEnd = Number(parsed.tensorDataOffset);
  if (parsed.tensorInfoByteRange[1] > bytes)
    throw new UnsupportedModelError(
      `${file} is truncated: its header ends at byte ${parsed.tensorInfoByteRange[1]}, the file has ${bytes}`,
      { file, expected: parsed.tensorInfoByteRange[1], bytes },
    );
  if (!parsed.littleEndian)
    throw new UnsupportedModelError(`${file}: big-endian GGUF files are not supported`, { file });

  const tensors = new Map<string, GgufTensor>();
  for (const info of parsed.tensorInfos) {
    const type = GGMLQuantizationType[info.dtype] ?? `type ${info.dtype}`;
    if (!(type in SOURCE_BLOCK))
      throw new UnsupportedModelError(
        `${file}: tensor ${info.name} has type ${type}; supported are ${Object.keys(SOURCE_BLOCK).join(', ')}`,
        { file, tensor: info.name, type },
      );
    const shape = info.shape.map(Number).reverse();
    const block = SOURCE_BLOCK[type as SourceType];
    const k = shape.at(-1) ?? 0;
    if (shape.length === 0 || shape.some((d) => d < 1) || k % block.elements !== 0)
      throw new UnsupportedModelError(
        `${file}: tensor ${info.name} of type ${type} has the impossible shape [${shape.join(', ')}]`,
        { file, tensor: info.name, shape },
      );
    const size = (shape.reduce((a, b) => a * b, 1) / block.elements) * block.bytes;
    const offset = headerEnd + Number(info.offset);
    if (offset + size > bytes)
      throw new UnsupportedModelError(
        `${file} is truncated: tensor ${info.name} ends at byte ${offset + size}, the file has ${bytes}`,
        { file, tensor: info.name, expected: offset + size, bytes },
      );
    if (tensors.has(info.name))
      throw new UnsupportedModelError(`${file}: tensor ${info.name} is listed twice`, {
        file,
        tensor: info.name,
      });
    tensors.set(info.name, { name: info.name, type: type as SourceType, shape, offset, bytes: size });
  }
  return { metadata: typedMetadata({ ...parsed.metadata }, file), tensors };
}

function typedMetadata(raw: Record<string, unknown>, file: string): GgufMetadata {
  const refuse = (key: string, wanted: string): never => {
    throw new UnsupportedModelError(
      raw[key] === undefined
        ? `${file}: metadata ${key} is missing`
        : `${file}: metadata ${key} is not ${wanted}`,
      { file, key },
    );
  };
  const asNumber = (key: string): number => {
    const value = raw[key];
    return typeof value === 'bigint'
      ? Number(value)
      : typeof value === 'number'
        ? value
        : refuse(key, 'a number');
  };
  const asString = (key: string): string => {
    const value = raw[key];
    return typeof value === 'string' ? value : refuse(key, 'a string');
  };
  const asArray = <T>(key: string, is: (value: unknown) => boolean, wanted: string): T[] => {
    const value = raw[key];
    return Array.isArray(value) && value.every(is) ? (value as T[]) : refuse(key, wanted);
  };
  return {
    has: (key) => raw[key] !== undefined,
    number: (key: string, fallback?: number) =>
      raw[key] === undefined && fallback !== undefined ? fallback : asNumber(key),
    optionalNumber: (key) => (raw[key] === undefined ? undefined : asNumber(key)),
    string: asString,
    optionalString: (key) => (raw[key] === undefined ? undefined : asString(key)),
    boolean: (key, fallback) => {
      const value = raw[key];
      return value === undefined ? fallback : typeof value === 'boolean' ? value : refuse(key, 'a boolean');
    },
    strings: (key) => asArray<string>(key, (v) => typeof v === 'string', 'a list of strings'),
    numbers: (key) => asArray<number>(key, (v) => typeof v === 'number', 'a list of numbers'),
  };
}

async function readExactly(
  handle: FileHandle,
  offset: number,
  bytes: number,
  what: string,
): Promise<Uint8Array> {
  const out = new Uint8Array(bytes);
  let at = 0;
  while (at < bytes) {
    const { bytesRead } = await handle.read(out, at, bytes - at, offset + at);
    if (bytesRead === 0)
      throw new UnsupportedModelError(`${what} is truncated: ${bytes} bytes expected, ${at} read`);
    at += bytesRead;
  }
  return out;
}

async function sha256OfFile(handle: FileHandle): Promise<string> {
  const hash = createHash('sha256');
  const piece = new Uint8Array(1 << 20);
  for (let at = 0; ; ) {
    const { bytesRead } = await handle.read(piece, 0, piece.length, at);
    if (bytesRead === 0) return hash.digest('hex');
    hash.update(piece.subarray(0, bytesRead));
    at += bytesRead;
  }
}
