import * as v from 'valibot';
import { AdkvcError, InvalidInputError } from '../core/errors.ts';
import type { ChatMessage } from '../engine/types.ts';

/** At least one token id. Whether the model has them is for the tokenizer or the engine to say. */
export const idsSchema = v.pipe(
  v.array(v.pipe(v.number(), v.integer(), v.minValue(0))),
  v.minLength(1, 'expected at least one id'),
);

/** A conversation as chat templates take it; which roles there are is for the model's template to say. */
const role = v.custom<ChatMessage['role']>(
  (value) => typeof value === 'string' && value !== '',
  (issue) => `expected the name of a role, got ${issue.received}`,
);
export const messagesSchema = v.pipe(
  v.array(v.object({ role, content: v.string() })),
  v.minLength(1, 'expected at least one message'),
);

/** Where lines come from and go to; standard streams unless a test says otherwise. */
export interface LineStreams {
  readonly input: AsyncIterable<Uint8Array>;
  readonly output: { write(text: string, done: () => void): unknown };
  readonly progress: { write(text: string): unknown; readonly isTTY?: boolean };
}

/**
 * Answers JSON lines: one line out for each line in, in the same order. A line that is not valid or fails gives
 * {"error": {"code", "message", "param"}}, the others are still answered, and the process ends with exit code 1.
 * @param handle `progress(done, total)` shows how far a line is, on standard error
 * @returns how many lines failed
 */
export async function runJsonLines<S extends v.GenericSchema>(
  schema: S,
  handle: (
    line: v.InferOutput<S>,
    progress: (done: number, total: number) => void,
  ) => object | Promise<object>,
  streams: LineStreams = { input: process.stdin, output: process.stdout, progress: process.stderr },
): Promise<number> {
  const progress = lineProgress(streams.progress);
  let failed = 0;
  let number = 0;
  for await (const text of lines(streams.input)) {
    number++;
    let answer: object;
    try {
      answer = await handle(parse(schema, text), (done, total) => progress.show(number, done, total));
    } catch (error) {
      failed++;
      answer = { error: describe(error) };
    }
    progress.clear();
    await new Promise<void>((done) => streams.output.write(`${JSON.stringify(answer)}\n`, done));
  }
  if (failed > 0) process.exitCode = 1;
  return failed;
}

/** Split at line feeds alone: U+2028 and a lone carriage return may stand inside of a JSON string or between its tokens. */
async function* lines(input: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let pieces: string[] = [];
  for await (const chunk of input) {
    const parts = decoder.decode(chunk, { stream: true }).split('\n');
    for (const part of parts.slice(0, -1)) {
      pieces.push(part);
      yield pieces.join('');
      pieces = [];
    }
    pieces.push(parts.at(-1)!);
  }
  const last = pieces.join('') + decoder.decode();
  if (last !== '') yield last;
}

function parse<S extends v.GenericSchema>(schema: S, text: string): v.InferOutput<S> {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new InvalidInputError(`the line is not valid JSON: ${(error as Error).message}`);
  }
  const parsed = v.safeParse(schema, json);
  if (parsed.success) return parsed.output;
  const issue = parsed.issues[0]!;
  throw new InvalidInputError(issue.message, v.getDotPath(issue) ?? undefined);
}

function describe(error: unknown): { code: string; message: string; param: string | null } {
  if (error instanceof AdkvcError)
    return { code: error.code, message: error.message, param: error.param ?? null };
  process.stderr.write(`${error instanceof Error ? error.stack : error}\n`);
  return {
    code: 'internal_error',
    message: error instanceof Error ? error.message : String(error),
    param: null,
  };
}

/** One line on a terminal, rewritten at most ten times a second; nothing where standard error is a file or a pipe. */
function lineProgress(stream: LineStreams['progress']) {
  let shownAt = Number.NEGATIVE_INFINITY;
  let shown = false;
  return {
    show(line: number, done: number, total: number): void {
      const now = performance.now();
      if (!stream.isTTY || now - shownAt < 100) return;
      shownAt = now;
      shown = true;
      stream.write(`\r\x1b[Kline ${line}: ${done} of ${total}`);
    },
    clear(): void {
      if (shown) stream.write('\r\x1b[K');
      shown = false;
    },
  };
}
