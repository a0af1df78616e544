import { existsSync } from "node:fs";
import { chmod, lstat, mkdir, readdir, readFile, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { Device, loadSafetensors, saveSafetensors, Tensor } from "longseq";
import t from "tap";

const folder = t.testdir({});
let count = 0;
const newPath = () => join(folder, `${count++}.safetensors`);

/** A file with this header, as text or as what is to be JSON, and this data. */
async function fileOf(header: unknown, data: Uint8Array = new Uint8Array()): Promise<string> {
  const json = Buffer.from(typeof header === "string" ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  const path = newPath();
  await writeFile(path, Buffer.concat([length, json, data]));
  return path;
}

const entry = (dtype: string, shape: unknown, begin: unknown, end: unknown) => ({
  dtype,
  shape,
  data_offsets: [begin, end],
});

t.test("every type comes back as it went, bit by bit", async (t) => {
  const path = newPath();
  const tensors = {
    f: Tensor.from([1.5, -0, Number.NaN, Number.POSITIVE_INFINITY, 1e-45, 3], [2, 3]),
    b: Tensor.from(Uint16Array.of(0x3f80, 0x7fc1, 0xffff), [3], { dtype: "bfloat16" }),
    h: Tensor.from(Uint16Array.of(0x3c00, 0x0001, 0xfbff), [3, 1], { dtype: "float16" }),
    i: Tensor.from(Int32Array.of(-(2 ** 31), 2 ** 31 - 1), [1, 2]),
    u: Tensor.from(Uint8Array.of(0, 255, 7), [3]),
    empty: Tensor.from(new Float32Array(0), [0, 4]),
  };
  await saveSafetensors(path, tensors, { step: "100", clé: "ü\n" });
  const file = await loadSafetensors(path);
  t.same(file.metadata, { step: "100", clé: "ü\n" });
  t.same(Object.keys(file.tensors).sort(), Object.keys(tensors).sort());
  for (const [name, tensor] of Object.entries(tensors)) {
    const read = file.tensors[name];
    t.same([read?.dtype, read?.shape], [tensor.dtype, tensor.shape], name);
    t.same(await read?.bits(), await tensor.bits(), name);
  }
});

t.test("the header is aligned and laid out as the format's own writer does", async (t) => {
  const path = newPath();
  await saveSafetensors(path, { u: Tensor.from(Uint8Array.of(1), [1]), f: Tensor.from([1], [1]) });
  const bytes = await readFile(path);
  const length = Number(bytes.readBigUInt64LE());
  t.equal(length % 8, 0);
  t.same(JSON.parse(bytes.subarray(8, 8 + length).toString()), {
    f: entry("F32", [1], 0, 4),
    u: entry("U8", [1], 4, 5),
  });
});

t.test("random tensors round-trip", async (t) => {
  const tensor = fc.record({
    name: fc.string({ minLength: 1 }).filter((name) => name !== "__metadata__"),
    values: fc.array(fc.float({ noNaN: true }), { maxLength: 40 }),
  });
  const property = fc.asyncProperty(
    fc.uniqueArray(tensor, { selector: ({ name }) => name, maxLength: 5 }),
    async (all) => {
      const path = newPath();
      const tensors = all.map(({ name, values }) => [name, Tensor.from(values, [values.length])] as const);
      await saveSafetensors(path, Object.fromEntries(tensors));
      const read = await loadSafetensors(path);
      for (const { name, values } of all) {
        const back = Object.hasOwn(read.tensors, name) ? await read.tensors[name]?.data() : undefined;
        if (!back || back.some((value, i) => !Object.is(value, values[i]))) return false;
      }
      return Object.keys(read.tensors).length === all.length;
    },
  );
  await t.resolves(fc.assert(property, { numRuns: 50 }));
});

t.test("views are written as what they show, and large tensors in pieces", async (t) => {
  const path = newPath();
  const rows = 9_000_000; // past two staging buffers
  using bytes = Tensor.from(
    Uint8Array.from({ length: 4 * rows }, (_, i) => i % 251),
    [rows, 4],
  );
  using columns = bytes.slice(1, 1, 3);
  await saveSafetensors(path, { columns });
  const { tensors } = await loadSafetensors(path);
  using read = tensors.columns;
  const values = await read?.data();
  t.equal(values?.length, 2 * rows);
  t.ok(values?.every((value, i) => value === (4 * (i >> 1) + 1 + (i % 2)) % 251));
});

t.test("I64 is narrowed where it fits and refused where not, BOOL is uint8", async (t) => {
  const header = { i: entry("I64", [2], 0, 16), b: entry("BOOL", [2], 16, 18) };
  const data = (values: bigint[]) => {
    return Buffer.concat([Buffer.from(BigInt64Array.from(values).buffer), Buffer.of(1, 0)]);
  };
  const { tensors } = await loadSafetensors(await fileOf(header, data([-5n, 2n ** 31n - 1n])));
  t.same(await tensors.i?.data(), Int32Array.of(-5, 2 ** 31 - 1));
  t.same(await tensors.b?.data(), Uint8Array.of(1, 0));
  const path = await fileOf(header, data([2n ** 31n, 0n]));
  await t.rejects(loadSafetensors(path), {
    code: "ERR_FILE",
    message: /tensor "i" holds the I64 value 2147483648/,
  });
});

t.test("some tensors of a file, also where others are of a type that there is not", async (t) => {
  using device = new Device();
  const path = await fileOf(
    { wide: entry("F64", [1], 0, 8), a: entry("U8", [2], 8, 10), b: entry("U8", [1], 10, 11) },
    Buffer.from([0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]),
  );
  const { tensors } = await loadSafetensors(path, { device, names: ["b", "a", "b"] });
  t.strictSame(Object.keys(tensors), ["b", "a"]);
  t.strictSame(await tensors.a?.data(), Uint8Array.of(1, 2));
  t.strictSame((await loadSafetensors(path, { device, names: [] })).tensors, {});
  for (const tensor of Object.values(tensors)) tensor.dispose();
  const refused: [names: string[] | undefined, RegExp][] = [
    [undefined, /tensor "wide" has dtype "F64", expected one of F32, /],
    [["a", "wide"], /tensor "wide" has dtype "F64"/],
    [["a", "c"], /there is no tensor "c"/],
  ];
  for (const [names, message] of refused) {
    await t.rejects(loadSafetensors(path, { device, ...(names && { names }) }), {
      code: "ERR_FILE",
      message,
    });
  }
  t.equal(device.memory().tensors, 0);
});

t.test("a hostile file is an error that names it, and leaves nothing behind", async (t) => {
  using device = new Device("cpu");
  const four = Buffer.alloc(4);
  const nested = `{"a":${"[".repeat(200_000)}`;
  const hostile: [string, RegExp][] = [
    [await fileOf({ a: entry("F32", [1], 0, 8) }, four), /the file has 4 bytes of data/],
    [await fileOf({ a: entry("F32", [2], 0, 4) }, four), /has 4 bytes, expected 8 for F32 \[2\]/],
    [await fileOf({ a: entry("F32", [2 ** 40, 2 ** 40], 0, 4) }, four), /has 4 bytes, expected/],
    [await fileOf({ a: entry("F32", Array(2000).fill(2 ** 52), 0, 4) }, four), /expected up to 32 sizes/],
    [await fileOf({ a: entry("U8", [2], 0, 2), b: entry("U8", [3], 1, 4) }, four), /overlaps/],
    [await fileOf({ a: entry("U8", [1], 0, 1), b: entry("U8", [2], 2, 4) }, four), /leaves a hole/],
    [await fileOf({ a: entry("U8", [2], 0, 2) }, four), /its tensors end at byte 2/],
    [await fileOf({ a: entry("U8", [1], 3, 2) }, four), /data_offsets \[3, 2\]/],
    [await fileOf({ a: entry("U8", [-1], 0, 1) }, four), /has shape \[-1\]/],
    [await fileOf({ a: entry("U8", [1.5], 0, 1) }, four), /has shape \[1.5\]/],
    [await fileOf({ a: entry("U8", "x", 0, 1) }, four), /has shape "x"/],
    [await fileOf({ a: { dtype: "U8" } }, four), /has shape nothing/],
    [await fileOf({ a: entry("U8", [4], "0", 4) }, four), /has data_offsets/],
    [await fileOf({ a: entry("F64", [1], 0, 8) }, Buffer.alloc(8)), /has dtype "F64"/],
    [await fileOf({ a: entry("toString", [1], 0, 4) }, four), /has dtype "toString"/],
    [await fileOf({ a: null }), /is not a JSON object/],
    [await fileOf([1]), /header is not a JSON object/],
    [await fileOf("{"), /not JSON/],
    [await fileOf(nested), /not JSON/],
    [await fileOf({ __metadata__: { a: 1 } }), /__metadata__ "a" is not a string/],
    [await fileOf({ __metadata__: [] }), /__metadata__ is not/],
    [
      await fileOf(
        '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}',
        four,
      ),
      /begins at byte 2, expected 0/,
    ],
    [join(folder, "absent"), /ENOENT/],
    [folder, /EISDIR|directory/],
  ];
  const raw: [Uint8Array, RegExp][] = [
    [Buffer.alloc(0), /it has 0 bytes/],
    [Buffer.alloc(7), /it has 7 bytes/],
    [Buffer.alloc(8, 0xff), /its header claims 18446744073709551615 bytes/],
    [Buffer.of(3, 0, 0, 0, 0, 0, 0, 0, 0x7b), /its header claims 3 bytes, the file has 1/],
    [Buffer.of(2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe), /not JSON in UTF-8/],
  ];
  for (const [bytes, message] of raw) {
    const path = newPath();
    await writeFile(path, bytes);
    hostile.push([path, message]);
  }
  for (const [path, message] of hostile) {
    await t.rejects(loadSafetensors(path, { device }), { code: "ERR_FILE", message }, String(message));
    await t.rejects(loadSafetensors(path, { device }), { message: `loadSafetensors: ${path}: ` }, path);
  }
  t.equal(device.memory().liveBytes, 0);
});

t.test("no header crashes the reader", async (t) => {
  const bytes = fc.oneof(
    fc.json().map((text) => Buffer.from(text)),
    fc.uint8Array({ maxLength: 64 }),
    fc
      .record({ dtype: fc.constantFrom("F32", "U8", "X"), shape: fc.anything(), data_offsets: fc.anything() })
      .map((a) => Buffer.from(JSON.stringify({ a }))),
  );
  const property = fc.asyncProperty(bytes, fc.uint8Array({ maxLength: 16 }), async (header, data) => {
    const path = newPath();
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(header.length));
    await writeFile(path, Buffer.concat([length, header, data]));
    try {
      await loadSafetensors(path);
      return true;
    } catch (error) {
      return (error as { code?: string }).code === "ERR_FILE";
    }
  });
  await t.resolves(fc.assert(property, { numRuns: 200 }));
});

t.test("a name like __proto__ is a name", async (t) => {
  const path = await fileOf('{"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', Buffer.of(9));
  const { tensors } = await loadSafetensors(path);
  t.same(Object.keys(tensors), ["__proto__"]);
});

t.test("a failed write leaves the old file and no other", async (t) => {
  const place = join(folder, "writes");
  await mkdir(place);
  const path = join(place, "a.safetensors");
  const kept = Tensor.from([1], [1]);
  await saveSafetensors(path, { kept });
  const before = await readFile(path);
  const gone = Tensor.from([2], [1]);
  gone.dispose();
  await t.rejects(saveSafetensors(path, { kept, gone }), { code: "ERR_DISPOSED" });
  await t.rejects(saveSafetensors(path, { __metadata__: kept }), { code: "ERR_OPTION" });
  await t.rejects(saveSafetensors(path, { kept }, { step: 3 as unknown as string }), { code: "ERR_OPTION" });
  await t.rejects(saveSafetensors(join(place, "no", "folder"), { kept }), {
    code: "ERR_FILE",
    message: /ENOENT/,
  });
  t.same(await readFile(path), before);
  t.same(await readdir(place), ["a.safetensors"]);
  t.notOk(existsSync(join(place, "no")));
});

t.test("a link stays a link, a file keeps its mode, and what is no file is refused", async (t) => {
  const place = join(folder, "places");
  await mkdir(place);
  const [path, link] = [join(place, "real"), join(place, "link")];
  const [first, second] = [Tensor.from([1], [1]), Tensor.from([2], [1])];
  await saveSafetensors(path, { first });
  await chmod(path, 0o600);
  await symlink("real", link);
  await saveSafetensors(link, { second });
  t.ok((await lstat(link)).isSymbolicLink());
  t.equal((await stat(path)).mode & 0o777, 0o600);
  t.same(await (await loadSafetensors(path)).tensors.second?.data(), [2]);
  await t.rejects(saveSafetensors(place, { first }), { code: "ERR_FILE", message: /is no file/ });
  t.same(await readdir(place), ["link", "real"]);
});

t.test("what is no path, no tensor, no option", async (t) => {
  const path = newPath();
  const w = Tensor.from([1], [1]);
  const refused: [Promise<unknown>, string][] = [
    [saveSafetensors(5 as never, {}), "saveSafetensors: path is number, expected a string"],
    [saveSafetensors(path, null as never), "saveSafetensors: tensors is null, expected an object of Tensors"],
    [
      saveSafetensors(path, [w] as never),
      "saveSafetensors: tensors is an array, expected an object of Tensors",
    ],
    [saveSafetensors(path, { w: 5 as never }), 'saveSafetensors: "w" is number, expected a Tensor'],
    [saveSafetensors(path, { w }, null as never), "saveSafetensors: metadata is null, expected an object"],
    [loadSafetensors(5 as never), "loadSafetensors: path is number, expected a string"],
    [loadSafetensors(path, null as never), "loadSafetensors: options is null, expected an object"],
    [
      loadSafetensors(path, { names: "a" as never }),
      "loadSafetensors: names is string, expected an array of strings",
    ],
    [
      loadSafetensors(path, { device: "cpu" as never }),
      "loadSafetensors: device is string, expected a Device",
    ],
  ];
  for (const [call, message] of refused) {
    await t.rejects(call, { code: "ERR_OPTION", name: "TypeError", message });
  }
  t.notOk(existsSync(path));
  // Node's own code for these begins with ERR_ too.
  await t.rejects(loadSafetensors("a\0b"), { code: "ERR_FILE" });
  await t.rejects(saveSafetensors("a\0b", { w }), { code: "ERR_FILE" });
});
