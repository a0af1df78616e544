import { createHmac } from "node:crypto";
import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import fc from "fast-check";
import { broadcast, type ExchangeOptions, exchange } from "longseq";
import t from "tap";
import { FrameReader, type FrameType, frameTypes, writeFrame } from "../../lib/launch/frames.ts";

const token = "a token of these tests";

function announced(): { listening: Promise<string>; onListening: (address: string) => void } {
  let onListening = (_: string) => {};
  const listening = new Promise<string>((resolve) => {
    onListening = resolve;
  });
  return { listening, onListening };
}

/** Rank 0's exchange, and where it listens. */
async function root(options: ExchangeOptions, value: string = "0") {
  const { listening, onListening } = announced();
  const result = exchange(value, {
    rank: 0,
    address: "127.0.0.1:0",
    token,
    timeoutMs: 20_000,
    onListening,
    ...options,
  });
  // Awaited by each test, maybe after it has failed.
  result.catch(() => {});
  return { result, address: await listening };
}

const member = (rank: number, size: number, address: string, options: ExchangeOptions = {}) =>
  exchange(String(rank), { rank, size, address, token, timeoutMs: 20_000, ...options });

function open(address: string): Promise<Socket> {
  const [host = "", port] = address.split(":");
  return new Promise((resolve, reject) => {
    const socket: Socket = connect({ host, port: Number(port) }, () => resolve(socket));
    socket.once("error", reject);
  });
}

/** As a rank speaks, by hand: the answers to a hello with this token, until the other side closes. */
async function hello(address: string, rank: number, size: number, key = token, extra?: [FrameType, string]) {
  const socket = await open(address);
  const reader = new FrameReader(1 << 20);
  const frames: string[] = [];
  socket.on("data", (chunk) => {
    reader.push(chunk as Buffer);
    for (let frame = reader.next(); frame; frame = reader.next()) {
      frames.push(frame.type === "failed" ? frame.body.toString() : frame.type);
      if (frame.type === "challenge") {
        const said = Buffer.alloc(44);
        for (const [i, value] of [rank, size, 20_000].entries()) said.writeUInt32BE(value, 4 * i);
        const mac = createHmac("sha256", key)
          .update("longseq rendezvous 1 rank")
          .update(frame.body)
          .update(said);
        writeFrame(socket, "hello", said, mac.digest());
        if (extra) writeFrame(socket, extra[0], Buffer.from(extra[1]));
      }
    }
  });
  socket.on("error", () => {});
  return { socket, frames, closed: once(socket, "close") };
}

t.test("all ranks get all values, in any order of coming", async (t) => {
  for (const size of [2, 3, 8]) {
    const zero = await root({ size });
    const others = Array.from({ length: size - 1 }, (_, i) => member(size - 1 - i, size, zero.address));
    const expected = Array.from({ length: size }, (_, i) => String(i));
    for (const values of await Promise.all([zero.result, ...others])) t.strictSame(values, expected);
  }
  t.strictSame(await exchange("alone", { rank: 0, size: 1 }), ["alone"], "one rank needs nobody");
});

t.test("bytes of any size, and one broadcast", async (t) => {
  const bytes = (seed: number, length: number) =>
    Uint8Array.from({ length }, (_, i) => (i * 31 + seed) & 255);
  const values = [bytes(1, 0), bytes(2, 128), bytes(3, 1 << 20), bytes(4, 65_537)];
  const { listening, onListening } = announced();
  const options = { size: 4, token, address: "localhost:0", onListening };
  const zero = exchange(values[0] ?? bytes(0, 0), { rank: 0, ...options });
  const address = await listening;
  const others = [1, 2, 3].map((rank) =>
    exchange(values[rank] ?? bytes(0, 0), { ...options, rank, address }),
  );
  for (const got of await Promise.all([zero, ...others]))
    t.ok(got.length === 4 && got.every((value, rank) => Buffer.compare(value, values[rank] ?? value) === 0));

  // The same address again at once, as by calls in a row.
  const id = bytes(9, 128);
  const ids = [0, 1, 2, 3].map((rank) =>
    broadcast(rank === 0 ? id : undefined, { ...options, rank, address }),
  );
  for (const got of await Promise.all(ids)) t.strictSame(got, id);
  for (let turn = 0; turn < 5; turn++) {
    const all = [0, 1].map((rank) => exchange(`${turn} ${rank}`, { ...options, size: 2, rank, address }));
    for (const got of await Promise.all(all)) t.strictSame(got, [`${turn} 0`, `${turn} 1`]);
  }
});

t.test("strangers are refused and harm nobody", async (t) => {
  const zero = await root({ size: 3 });
  const garbage = await open(zero.address);
  garbage.on("error", () => {}).write("GET / HTTP/1.1\r\n\r\n");
  garbage.resume();
  await once(garbage, "close");
  const slow = await open(zero.address);
  slow.on("error", () => {}).write(Buffer.of(0, 0));
  const thief = await hello(zero.address, 1, 3, "another token, as long");
  await thief.closed;
  t.strictSame(thief.frames, ["challenge"], "it learns nothing");
  const early = await hello(zero.address, 1, 3, "another token, as long", ["value", "\x01x"]);
  await early.closed;
  t.strictSame(early.frames, ["challenge"]);

  for (const [rank, size] of [
    [7, 3],
    [1, 4],
    [0, 3],
  ] as const) {
    const wrong = await hello(zero.address, rank, size);
    wrong.socket.on("end", () => wrong.socket.end());
    await wrong.closed;
    t.strictSame(wrong.frames.slice(1), ["welcome", `exchange: rank ${rank} of ${size} came to rank 0 of 3`]);
  }
  await t.rejects(member(1, 5, zero.address), {
    code: "ERR_COMM",
    message: /rank 1 of 5 came to rank 0 of 3/,
  });
  const first = member(1, 3, zero.address);
  // Long enough for its value to be there.
  await new Promise((done) => setTimeout(done, 200));
  await t.rejects(member(1, 3, zero.address), { code: "ERR_COMM", message: /rank 1 is already here/ });
  const lasts = [zero.result, first, member(2, 3, zero.address)];
  for (const values of await Promise.all(lasts)) t.strictSame(values, ["0", "1", "2"]);
  slow.destroy();
});

t.test("a rank that does not come is named to all that did, within the timeout", async (t) => {
  const began = performance.now();
  const zero = await root({ size: 5, timeoutMs: 30_000 });
  const late = { timeoutMs: 600 };
  const here = [member(1, 5, zero.address, late), member(3, 5, zero.address)];
  const message = /^exchange: ranks 2 and 4 of 5 did not come within/;
  for (const one of [zero.result, ...here]) await t.rejects(one, { code: "ERR_COMM", message });
  t.ok(performance.now() - began < 5000, "in the time of the least patient");

  const noRoot = exchange("1", { rank: 1, size: 2, address: "127.0.0.1:1", token, timeoutMs: 300 });
  await t.rejects(noRoot, {
    code: "ERR_COMM",
    message: /rank 0 at 127\.0\.0\.1:1 was not reached.*ECONNREFUSED/,
  });
  const other = await root({ size: 2, timeoutMs: 700 });
  const stranger = member(1, 2, other.address, { token: "not that token, no", timeoutMs: 300 });
  await t.rejects(stranger, {
    code: "ERR_COMM",
    message: /was not reached within 0.3 s: it has another token/,
  });
  await t.rejects(other.result, { code: "ERR_COMM", message: /rank 1 of 2 did not come.*refused: \d/ });
});

t.test("a rank that dies in the middle is named", async (t) => {
  const zero = await root({ size: 4 });
  const dying = await hello(zero.address, 2, 4, token, ["value", "\x012"]);
  const other = member(1, 4, zero.address);
  await new Promise((done) => setTimeout(done, 200));
  dying.socket.destroy();
  const died = { code: "ERR_COMM", message: "exchange: rank 2 left before all ranks had all values" };
  await t.rejects(zero.result, died);
  await t.rejects(other, died);

  const gone = await root({ size: 3 });
  const waiting = member(1, 3, gone.address);
  const half = await hello(gone.address, 2, 3);
  await new Promise((done) => setTimeout(done, 100));
  half.socket.destroy();
  // Before its value it may come again.
  const again = member(2, 3, gone.address);
  t.strictSame(await Promise.all([gone.result, waiting, again]), Array(3).fill(["0", "1", "2"]));
});

t.test("what listens at the address may be anything", async (t) => {
  const garbage = createServer((socket) => socket.on("error", () => {}).end("220 mail.example ESMTP\r\n"));
  const thief = createServer((socket) => {
    socket.on("error", () => {});
    writeFrame(socket, "challenge", Buffer.alloc(32));
    socket.once("data", () => writeFrame(socket, "welcome", Buffer.alloc(32)));
  });
  const silent = createServer((socket) => socket.on("error", () => {}).resume());
  for (const [server, why] of [
    [garbage, /not rank 0 of this job/],
    [thief, /not rank 0 of this job/],
    [silent, /does not answer/],
  ] as const) {
    await once(server.listen(0, "127.0.0.1"), "listening");
    const { port } = server.address() as { port: number };
    const lost = member(1, 2, `127.0.0.1:${port}`, { timeoutMs: 300 });
    await t.rejects(lost, { code: "ERR_COMM", message: why });
    server.close();
  }
});

t.test("interruption, and kinds that differ", async (t) => {
  const stop = new AbortController();
  const zero = await root({ size: 4 });
  const stopped = member(2, 4, zero.address, { signal: stop.signal });
  const other = member(1, 4, zero.address);
  setTimeout(() => stop.abort(new Error("enough")), 200);
  await t.rejects(stopped, { message: "enough" });
  await t.rejects(Promise.all([zero.result, other]), { code: "ERR_COMM", message: /rank 2 left/ });
  await t.rejects(other, { code: "ERR_COMM" });
  await t.rejects(member(1, 2, zero.address, { signal: AbortSignal.abort(new Error("before")) }), {
    message: "before",
  });

  const text = await root({ size: 2 });
  const bytes = exchange(Buffer.of(1), { rank: 1, size: 2, address: text.address, token });
  const message = "exchange: rank 1 gave bytes, expected a text (as rank 0)";
  await t.rejects(bytes, { code: "ERR_COMM", message });
  await t.rejects(text.result, { code: "ERR_COMM", message });
});

t.test("an address that is in use is waited for", async (t) => {
  const before = createServer((socket) => socket.destroy());
  await once(before.listen(0, "127.0.0.1"), "listening");
  const address = `127.0.0.1:${(before.address() as { port: number }).port}`;
  await t.rejects(exchange("0", { rank: 0, size: 2, address, token, timeoutMs: 250 }), {
    code: "ERR_COMM",
    message: /rank 1 of 2 did not come.*cannot listen.*EADDRINUSE/,
  });
  setTimeout(() => before.close(), 150);
  const both = [0, 1].map((rank) => exchange(`${rank}`, { rank, size: 2, address, token }));
  t.strictSame(await Promise.all(both), [
    ["0", "1"],
    ["0", "1"],
  ]);
});

t.test("address and token from the environment", async (t) => {
  const change = (env: Record<string, string | undefined>) => {
    for (const [name, value] of Object.entries(env)) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  };
  const { port } = await new Promise<{ port: number }>((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const address = server.address() as { port: number };
      server.close(() => resolve(address));
    });
  });
  const both = () =>
    Promise.all([0, 1].map((rank) => exchange(`${rank}`, { rank, size: 2, timeoutMs: 10_000 })));
  const none = {
    LONGSEQ_RENDEZVOUS: undefined,
    LONGSEQ_TOKEN: undefined,
    MASTER_ADDR: undefined,
    MASTER_PORT: undefined,
  };
  change(none);
  t.teardown(() => change({ ...none, TORCHELASTIC_USE_AGENT_STORE: undefined }));
  await t.rejects(both(), { code: "ERR_OPTION", message: /address has no value/ });
  change({ MASTER_ADDR: "127.0.0.1", MASTER_PORT: `${port}` });
  t.strictSame((await both())[1], ["0", "1"], "no token on a loopback address");
  change({ MASTER_PORT: `${port - 1}`, TORCHELASTIC_USE_AGENT_STORE: "True" });
  t.strictSame((await both())[1], ["0", "1"], "beside torchrun's store");
  change({ LONGSEQ_RENDEZVOUS: `127.0.0.1:${port}`, LONGSEQ_TOKEN: token, MASTER_ADDR: "nowhere" });
  t.strictSame((await both())[1], ["0", "1"]);
  change({ LONGSEQ_RENDEZVOUS: `node1:${port}`, LONGSEQ_TOKEN: undefined });
  await t.rejects(both(), { code: "ERR_OPTION", message: /token has no value/ });
});

t.test("bad input", async (t) => {
  const good = { rank: 0, size: 2, address: "127.0.0.1:0", token };
  const cases: [() => Promise<unknown>, RegExp | string][] = [
    [() => exchange(5 as never, good), /value is number, expected bytes/],
    [() => exchange("x".repeat((1 << 20) + 1), good), /value has 1048577 bytes, expected at most 1048576/],
    [() => exchange("", null as never), /options is null/],
    [() => exchange("", { ...good, rank: 2 }), "exchange: rank is 2, expected less than 2 (size)"],
    [() => exchange("", { ...good, size: 1.5 }), /size is 1.5/],
    [() => exchange("", { size: 2 }), /rank is undefined/],
    [() => exchange("", { ...good, address: "host" }), /address is "host", expected host:port/],
    [() => exchange("", { ...good, address: "a:70000" }), /address is "a:70000"/],
    [() => exchange("", good), /port 0 only on rank 0/],
    [
      () => exchange("", { ...good, address: "a:1", token: "short" }),
      /token has 5 bytes, expected at least 16/,
    ],
    [() => exchange("", { ...good, address: "a:1", token: 7 as never }), /token is number/],
    [() => exchange("", { ...good, timeoutMs: Number.NaN }), /timeoutMs is NaN/],
    [() => exchange("", { ...good, signal: {} as never }), /signal is object/],
    [() => exchange("", { ...good, onListening: 1 as never }), /onListening is number/],
    [() => broadcast(undefined, { rank: 0, size: 1 }), /broadcast: value is undefined/],
    [() => broadcast("text" as never, { rank: 0, size: 1 }), /broadcast: value is string/],
    [() => exchange("x", { ranks: 0 } as object), /exchange: options has no "ranks", only rank, size/],
    [() => broadcast(undefined, { timeout: 1 } as object), /broadcast: options has no "timeout", only rank/],
  ];
  for (const [call, message] of cases) await t.rejects(call(), { code: "ERR_OPTION", message });
});

t.test("frames, in whatever pieces they come", async (t) => {
  const holds = () =>
    fc.assert(
      fc.property(
        fc.array(fc.uint8Array({ maxLength: 40 }), { maxLength: 8 }),
        fc.array(fc.integer({ min: 1, max: 30 }), { minLength: 1 }),
        (bodies, cuts) => {
          const written: Buffer[] = [];
          const sink = { cork() {}, uncork() {}, write: (part: Buffer) => written.push(part) } as never;
          for (const body of bodies) writeFrame(sink, "value", body);
          const stream = Buffer.concat(written);
          const reader = new FrameReader(40);
          const read: Uint8Array[] = [];
          for (let at = 0, i = 0; at < stream.length; i++) {
            const length = cuts[i % cuts.length] ?? 1;
            reader.push(stream.subarray(at, at + length));
            at += length;
            for (let frame = reader.next(); frame; frame = reader.next())
              read.push(Uint8Array.from(frame.body));
          }
          return (
            read.length === bodies.length &&
            read.every((body, i) => Buffer.compare(body, bodies[i] ?? body) === 0)
          );
        },
      ),
    );
  t.doesNotThrow(holds);
  const head = (length: number, type: number) => Buffer.of(0, 0, 0, length, type);
  for (const bad of [head(41, frameTypes.value), head(1, 99), Buffer.from("GET / HTTP/1.1\r\n")]) {
    const reader = new FrameReader(40);
    reader.push(bad);
    t.throws(() => reader.next());
  }
});
