/**
 * Every failure that a caller can act on is an `AdkvcError`: a stable `code`, a message that names the
 * field and the remedy, and the data it was built from. The HTTP layer alone maps codes to statuses.
 */
export class AdkvcError extends Error {
  readonly code: string;
  /** The field at fault, as the caller wrote it (`messages[2].content`, `--ratio`), if one is. */
  readonly param: string | undefined;
  readonly data: Readonly<Record<string, unknown>>;

  constructor(
    code: string,
    message: string,
    options: { param?: string; data?: Record<string, unknown>; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = new.target.name;
    this.code = code;
    this.param = options.param;
    this.data = options.data ?? {};
  }
}

/** A value the caller gave is wrong; the message says what would be right. */
export class InvalidInputError extends AdkvcError {
  constructor(message: string, param?: string, data?: Record<string, unknown>) {
    super('invalid_input', message, { param, data });
  }
}

/** Memory the isolate may not take: refused before anything grows. Bytes are decimal (1 MB = 1e6). */
export class MemoryLimitError extends AdkvcError {
  constructor(needed: number, available: number, what: string) {
    super('memory_limit', `${what} needs ${needed} bytes, ${available} are left`, {
      data: { needed, available, what },
    });
  }
}

/** More tokens than the model's context or the policy's budget holds. */
export class ContextLengthError extends AdkvcError {
  constructor(message: string, data: { tokens: number; limit: number }, param = 'messages') {
    super('context_length_exceeded', message, { param, data });
  }
}

/** A model file or bundle that cannot be used; the message names the tensor, type or architecture. */
export class UnsupportedModelError extends AdkvcError {
  constructor(message: string, data?: Record<string, unknown>) {
    super('unsupported_model', message, { data });
  }
}

/** Stored bytes that fail their checksum, version or shape. */
export class CorruptDataError extends AdkvcError {
  constructor(message: string, data?: Record<string, unknown>) {
    super('corrupt_data', message, { data });
  }
}

/** The caller went away or asked to stop. */
export class AbortedError extends AdkvcError {
  constructor(message = 'aborted') {
    super('aborted', message);
  }
}
