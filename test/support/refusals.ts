// Calls that must be refused, each with the code and the message.
import type { ErrorCode } from "longseq";
import type { Test } from "tap";

export type Refused = [call: () => unknown, code: ErrorCode, message: string | RegExp];

/** As Node has it: a TypeError for the wrong kind, a RangeError for a wrong size or value. */
function typeOf(code: ErrorCode, message: string): ErrorConstructor {
  if (code === "ERR_DTYPE") return TypeError;
  if (code === "ERR_SHAPE") return RangeError;
  if (code !== "ERR_OPTION") return Error;
  return / is (null|undefined|an array|object|function|string|number|boolean|bigint|symbol), expected /.test(
    message,
  )
    ? TypeError
    : RangeError;
}

export function refuses(t: Test, refused: readonly Refused[]): void {
  for (const [call, code, message] of refused) {
    try {
      call();
      t.fail(`not refused, ${message}: ${call}`);
    } catch (error) {
      t.match(error, { code, message }, String(message));
      const type = typeOf(code, (error as Error).message);
      t.ok(Object.getPrototypeOf(error) === type.prototype, `${message}: ${(error as Error).name}`);
    }
  }
}
