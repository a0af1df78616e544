import t from "tap";
import { genomeAttention } from "../../examples/genome-attention.ts";

t.test("attention over the lambda genome agrees with the reference", { timeout: 120_000 }, async (t) => {
  const { bases, peakBytes, errors } = await genomeAttention({
    genome: "test/data/lambda_phage_NC_001416.fa.gz",
    heads: 1,
    headDim: 64,
    checked: 32,
  });
  t.equal(bases, 48502);
  // Twice the bound of the short vectors: the sums have 48,502 terms, in float32.
  for (const [name, error] of Object.entries(errors)) t.ok(error < 2e-5, `${name}: ${error}`);
  // q, k, v, dout, out, dq, dk and dv are 12 MB each; scores would be 9.4 GB.
  t.ok(peakBytes < 2 ** 28, `${peakBytes} bytes`);
});
