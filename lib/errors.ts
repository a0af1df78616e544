// Errors as Node makes them: a TypeError for the wrong kind, a RangeError for a wrong size or value, an Error for what
// went wrong outside, each with a stable code.

/**
 * Stable codes of the errors that longseq throws, on `error.code`:
 *
 * - `ERR_SHAPE`: a size, an axis, or a number of values (RangeError)
 * - `ERR_DTYPE`: an element type (TypeError)
 * - `ERR_OPTION`: another argument; a RangeError for its value, or an option that there is none of, a TypeError where it is
 *   of the wrong kind
 * - `ERR_DEVICE`: an unknown device, tensors of two devices, or a GPU's own error; after some of those, as the message
 *   says, the process can no longer use the GPU
 * - `ERR_DISPOSED`: a tensor, mask or device that was disposed
 * - `ERR_OUT_OF_MEMORY`: more memory than there is, or than `LONGSEQ_MEMORY_LIMIT` allows
 * - `ERR_FILE`: a file that cannot be read or written, or is damaged
 * - `ERR_COMM`: a rank that does not come, has failed or left, or that does something else than the others
 * - `ERR_NO_CUDA`: no GPU, or a build without CUDA
 * - `ERR_NO_NCCL`: no NCCL on this machine, or one that is too old
 * - `ERR_NO_BINARY`: no addon for this machine (when longseq is imported)
 */
export type ErrorCode =
  | "ERR_SHAPE"
  | "ERR_DTYPE"
  | "ERR_DEVICE"
  | "ERR_OPTION"
  | "ERR_DISPOSED"
  | "ERR_NO_BINARY"
  | "ERR_NO_CUDA"
  | "ERR_NO_NCCL"
  | "ERR_OUT_OF_MEMORY"
  | "ERR_FILE"
  | "ERR_COMM";

const ownCodes: Readonly<Record<ErrorCode, true>> = {
  ERR_SHAPE: true,
  ERR_DTYPE: true,
  ERR_DEVICE: true,
  ERR_OPTION: true,
  ERR_DISPOSED: true,
  ERR_NO_BINARY: true,
  ERR_NO_CUDA: true,
  ERR_NO_NCCL: true,
  ERR_OUT_OF_MEMORY: true,
  ERR_FILE: true,
  ERR_COMM: true,
};

/** Node's own errors have codes that look like ours. */
export function hasOwnCode(error: Error): boolean {
  return Object.hasOwn(ownCodes, String((error as NodeJS.ErrnoException).code));
}

/** An error with a code, to be thrown. */
export function failure(
  code: ErrorCode,
  message: string,
  options?: ErrorOptions,
): Error & { code: ErrorCode } {
  const made =
    code === "ERR_SHAPE" || code === "ERR_OPTION"
      ? new RangeError(message, options)
      : code === "ERR_DTYPE"
        ? new TypeError(message, options)
        : new Error(message, options);
  return Object.assign(made, { code });
}

/** The argument is no value of the right kind at all. */
export function wrongKind(what: string, expected: string, got: unknown): TypeError & { code: ErrorCode } {
  const found = got === null ? "null" : Array.isArray(got) ? "an array" : typeof got;
  return Object.assign(new TypeError(`${what} is ${found}, expected ${expected}`), {
    code: "ERR_OPTION" as const,
  });
}

/** A value in a message. Objects are not made texts: that may call, and fail in, the caller's code. */
export function shown(value: unknown): string {
  if (Array.isArray(value)) return `[${Array.from(value, shown).join(", ")}]`;
  if (value === null || !["object", "function"].includes(typeof value)) return String(value);
  return typeof value === "object" ? "an object" : "a function";
}

/** The names of options, each once: the compiler holds them equal to the type's. Of a union, those of all of its types. */
export type OptionNames<Options> = Readonly<Record<Options extends unknown ? keyof Options : never, true>>;

/** Options must be an object of known names, where these are given: a misspelt one would count for nothing, silently. */
export function checkOptions<Options extends object>(
  what: string,
  options: Options,
  names?: OptionNames<Options>,
): void {
  if (typeof options !== "object" || options === null)
    throw wrongKind(`${what}: options`, "an object", options);
  if (names !== undefined) checkNames(`${what}: options`, options, names);
}

/** As `checkOptions`, for an object that is one of the options. Every call of an operation comes here. */
export function checkNames<Options extends object>(
  what: string,
  options: Options,
  names: OptionNames<Options>,
): void {
  for (const name in options) {
    // Names that every object has, such as toString, are not `true`.
    if ((names as Readonly<Record<string, unknown>>)[name] === true || options[name] === undefined) continue;
    throw failure("ERR_OPTION", `${what} has no "${name}", only ${Object.keys(names).join(", ")}`);
  }
}
