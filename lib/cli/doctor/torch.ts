// Whether the Python of `bench --peer torch` has PyTorch.
import { spawnSync } from "node:child_process";

export interface Peer {
  readonly python: string;
  readonly torch: string | null;
}

/** Asks for the package's version without importing it, which would take seconds. */
export function torchPeer(): Peer {
  const python = process.env.LONGSEQ_PYTHON || "python3";
  const question = "import importlib.metadata as m; print(m.version('torch'))";
  const options = { encoding: "utf8", timeout: 10_000, killSignal: "SIGKILL" } as const;
  const { status, stdout } = spawnSync(python, ["-c", question], options);
  const [version = null] = /^\d\S*(?=\s*$)/.exec(stdout ?? "") ?? [];
  return { python, torch: status === 0 ? version : null };
}
