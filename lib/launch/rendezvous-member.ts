// The side of all ranks but 0: it tries until rank 0 is there and has proved that it knows the token, gives its value,
// and waits for everybody's.
import { randomBytes } from "node:crypto";
import { connect, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { FrameReader, unpackValues, writeFrame } from "./frames.ts";
import {
  communicationFailure,
  formatAddress,
  isProof,
  type Meeting,
  mostBytes,
  nonceBytes,
  proof,
  seconds,
} from "./meeting.ts";

/** What listens there may not be rank 0, and never answer. */
const answerMs = 3000;
const silence = "what listens there does not answer";

/** The values of all ranks, in their order. */
export async function meetAsMember(value: Buffer, meeting: Meeting): Promise<Buffer[]> {
  const where = `rank 0 at ${formatAddress(meeting.address)}`;
  let pauseMs = 20;
  let reason: string | undefined;
  for (;;) {
    const leftMs = meeting.deadline - performance.now();
    if (leftMs <= 0) {
      throw communicationFailure(
        meeting,
        `${where} was not reached within ${seconds(meeting.timeoutMs)}: ${reason ?? "nothing was tried"}`,
      );
    }
    const outcome = await attempt(value, meeting, where, leftMs);
    if (Array.isArray(outcome)) return outcome;
    // Silence until the end cut the attempt short says less than what an attempt before it met.
    if (reason === undefined || outcome !== silence || leftMs > answerMs) reason = outcome;
    await sleep(Math.min(pauseMs, Math.max(0, meeting.deadline - performance.now())), undefined, {
      ...(meeting.signal && { signal: meeting.signal }),
    }).catch(() => meeting.signal?.throwIfAborted());
    pauseMs = Math.min(2 * pauseMs, 500);
  }
}

/** The values, or why there is no meeting there yet. What goes wrong after rank 0 has shown itself is final. */
function attempt(value: Buffer, meeting: Meeting, where: string, leftMs: number): Promise<Buffer[] | string> {
  const { address, signal, key, rank, size } = meeting;
  return new Promise((resolve, reject) => {
    const socket: Socket = connect(address);
    socket.setNoDelay(true);
    const nonce = randomBytes(nonceBytes);
    const said = Buffer.concat([uint32(rank), uint32(size), uint32(Math.floor(leftMs)), nonce]);
    const reader = new FrameReader(nonceBytes);
    let expected: Buffer | undefined;
    let isWelcome = false;
    const settle = (settled: () => void) => {
      clearTimeout(patience);
      signal?.removeEventListener("abort", onAbort);
      settled();
    };
    const stop = (why: string) => {
      socket.destroy();
      settle(() => (isWelcome ? reject(communicationFailure(meeting, `${where} ${why}`)) : resolve(why)));
    };
    const onAbort = () => {
      socket.destroy();
      settle(() => reject(signal?.reason));
    };
    const onSilence = () => stop(`did not answer within ${seconds(meeting.timeoutMs)}`);
    let patience = setTimeout(() => stop(silence), Math.min(answerMs, leftMs));
    signal?.addEventListener("abort", onAbort, { once: true });

    const receive = (type: string, body: Buffer) => {
      if (type === "challenge" && expected === undefined) {
        expected = proof(key, "root", body, said);
        writeFrame(socket, "hello", said, proof(key, "rank", body, said));
      } else if (type === "welcome" && !isWelcome && expected && isProof(body, expected)) {
        isWelcome = true;
        clearTimeout(patience);
        patience = setTimeout(onSilence, Math.max(0, meeting.deadline - performance.now()));
        reader.limit = size * (5 + mostBytes);
        writeFrame(socket, "value", value);
      } else if (type === "values" && isWelcome) {
        const values = unpackValues(body, size);
        writeFrame(socket, "done");
        socket.end();
        settle(() => resolve(values));
      } else if (type === "failed" && isWelcome) {
        socket.destroy();
        const what = body.toString().replace(/^[\w.]+: /, "");
        settle(() => reject(communicationFailure(meeting, what)));
      } else throw new Error("out of turn");
    };
    socket.on("data", (chunk: Buffer) => {
      try {
        reader.push(chunk);
        for (let frame = reader.next(); frame !== undefined; frame = reader.next()) {
          receive(frame.type, frame.body);
        }
      } catch {
        stop("what listens there is not rank 0 of this job");
      }
    });
    socket.on("error", (error) => stop(isWelcome ? `left: ${error.message}` : error.message));
    socket.on("close", () =>
      stop(isWelcome ? "left before all ranks had come" : "it has another token, or is closing"),
    );
  });
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}
