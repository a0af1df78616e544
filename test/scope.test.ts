import { setImmediate } from "node:timers/promises";
import { attention, Scope, Tensor } from "longseq";
import t from "tap";

const make = () => Tensor.zeros([2]);

t.test("what a function makes is disposed, what it returns is kept", async (t) => {
  const made: Tensor[] = [];
  const note = () => {
    const tensor = make();
    made.push(tensor);
    return tensor;
  };
  const single = Scope.run(() => {
    note();
    return note();
  });
  t.strictSame(
    made.map((tensor) => tensor.disposed),
    [true, false],
  );
  t.equal(single, made[1]);

  made.length = 0;
  const nested = Scope.run(() => {
    const kept = { list: [note(), { deep: note() }], also: note() };
    note();
    return kept;
  });
  t.strictSame(
    made.map((tensor) => tensor.disposed),
    [false, false, false, true],
  );
  t.equal(nested.also, made[2]);

  made.length = 0;
  class Owner {
    readonly own = note();
    readonly #hidden = note();
    readonly around: unknown[] = [this, new Float32Array(2), this.#hidden.shape];
  }
  Scope.run(() => [new Map([["a", note()]]), new Set([note()]), new Owner(), new Map([[note(), 1]])]);
  t.strictSame(
    made.map((tensor) => tensor.disposed),
    [false, false, false, true, false],
  );
  t.equal(
    Scope.run(() => 7),
    7,
  );
  t.equal(
    Scope.run(() => undefined),
    undefined,
  );
});

t.test("an async function", async (t) => {
  let lost: Tensor | undefined;
  const out = await Scope.run(async () => {
    const q = Tensor.normal([1, 8, 1, 8]);
    await setImmediate();
    lost = q.to("bfloat16");
    return attention(q, q, q);
  });
  t.equal(lost?.disposed, true);
  t.equal(out.disposed, false);
  t.equal((await out.data()).length, 64);
});

t.test("a failure disposes all", async (t) => {
  const made: Tensor[] = [];
  const fault = new Error("mine");
  const fail = () => {
    made.push(make());
    throw fault;
  };
  t.throws(() => Scope.run(fail), fault);
  Scope.run((scope) => {
    const message = "Scope.adopt: tensor is object, expected a Tensor";
    t.throws(() => scope.adopt({ dispose: () => {} } as unknown as Tensor), { code: "ERR_OPTION", message });
  });
  t.throws(() => Scope.run(5 as unknown as () => void), { code: "ERR_OPTION", message: /work is number/ });
  await t.rejects(
    Scope.run(async () => {
      await setImmediate();
      fail();
    }),
    fault,
  );
  t.strictSame(
    made.map((tensor) => tensor.disposed),
    [true, true],
  );
  t.equal(Scope.current, undefined);
});

t.test("scopes within scopes", async (t) => {
  let innerLost: Tensor | undefined;
  let innerKept: Tensor | undefined;
  const outer = Scope.run(() => {
    innerKept = Scope.run(() => {
      innerLost = make();
      return make();
    });
    t.equal(innerLost?.disposed, true);
    t.equal(innerKept.disposed, false, "the inner scope's result belongs to the outer one");
    return make();
  });
  t.equal(innerKept?.disposed, true);
  t.equal(outer.disposed, false);
});

t.test("async functions in turns do not adopt each other's tensors", async (t) => {
  const step = async (turns: number) => {
    const mine: Tensor[] = [];
    const kept = await Scope.run(async () => {
      for (let turn = 0; turn < turns; turn++) {
        mine.push(make());
        await setImmediate();
        if (mine.some((tensor) => tensor.disposed)) t.fail("disposed by another scope");
      }
      return mine[0];
    });
    return { kept, mine };
  };
  const results = await Promise.all([step(2), step(7), step(4)]);
  for (const { kept, mine } of results) {
    t.strictSame(
      mine.map((tensor) => tensor.disposed),
      mine.map((tensor) => tensor !== kept),
    );
  }
});

t.test("the caller of an async function is not in its scope", async (t) => {
  const waiting = Scope.run(async () => {
    await setImmediate();
  });
  t.equal(Scope.current, undefined);
  const mine = make();
  await waiting;
  t.equal(mine.disposed, false);
  t.equal(Scope.current, undefined);
});

t.test("keep hands a tensor outwards", async (t) => {
  let inner: Tensor | undefined;
  Scope.run(() => {
    Scope.run((scope) => {
      inner = scope.keep(make());
    });
    t.equal(inner?.disposed, false);
  });
  t.equal(inner?.disposed, true, "to the scope around it");
  Scope.run((scope) => {
    inner = scope.keep(make());
  });
  t.equal(inner?.disposed, false, "to nobody");
});

t.test("using", async (t) => {
  let inBlock: Tensor | undefined;
  let kept: Tensor | undefined;
  {
    using scope = new Scope();
    inBlock = make();
    kept = scope.keep(make());
    t.equal(Scope.current, scope);
    await setImmediate();
    t.equal(Scope.current, scope, "across an await");
  }
  t.strictSame([inBlock.disposed, kept.disposed], [true, false]);
  t.equal(Scope.current, undefined);
  let tensor: Tensor;
  {
    using held = make();
    tensor = held;
  }
  t.equal(tensor.disposed, true);
});

t.test("a tensor that was disposed in its scope is no trouble", async (t) => {
  t.doesNotThrow(() => Scope.run(() => make().dispose()));
});

t.test("what is returned may be large, shared, deep or hold itself", (t) => {
  // A walk for each tensor, or for each way to one, would not end before the test's time limit.
  let deep: unknown = null;
  let lost: Tensor | undefined;
  const result = Scope.run(() => {
    lost = make();
    const kept = make();
    deep = { kept };
    for (let level = 0; level < 1e5; level++) deep = { deep };
    let shared: unknown = kept;
    for (let level = 0; level < 50; level++) shared = [shared, shared];
    const itself: { kept: Tensor; deep: unknown; shared: unknown; itself?: unknown; numbers: number[] } = {
      kept,
      deep,
      shared,
      numbers: new Array(1e5).fill(0.5),
    };
    itself.itself = itself;
    for (let i = 0; i < 1000; i++) make();
    return itself;
  });
  t.equal(result.kept.disposed, false);
  t.equal(lost?.disposed, true);
  t.end();
});
